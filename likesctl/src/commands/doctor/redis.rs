//! Checks of the Redis servers.

use shared::redis::Impaired;

use super::findings::{Findings, State};
use crate::{context::Context, exit::CliError, output::many};

/// Oldest supported major version of Redis and Valkey.
const MAJOR_VERSION: u32 = 7;

/// Percentages of maxmemory for a warning and for a failure.
const MEMORY_WARN_PERCENT: u64 = 75;
const MEMORY_FAIL_PERCENT: u64 = 90;

/// The reply to INFO.
struct Info<'a>(&'a str);

impl<'a> Info<'a> {
    fn text(&self, name: &str) -> &'a str {
        self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or("")
    }

    fn number(&self, name: &str) -> u64 {
        self.text(name).parse().unwrap_or(0)
    }
}

pub(super) async fn check(findings: &mut Findings, context: &Context) -> Result<(), CliError> {
    let (servers, impaired) = context.redis.check().await;
    if impaired.is_empty() {
        findings
            .ok("writes", format!("{} writes", many(servers as u64, "server accepts", "servers accept")))?;
    }
    report(findings, "writes", impaired)?;
    let refuse_scripts = context.redis.check_scripts().await;
    if refuse_scripts.is_empty() {
        findings.ok("scripts", "Redis runs scripts")?;
    }
    report(findings, "scripts", refuse_scripts)?;
    for (address, info) in context.streams.servers_info().await? {
        let info = Info(&info);
        version(findings, &info, &address)?;
        eviction(findings, &info)?;
        persistence(findings, &info)?;
        memory(findings, info.number("used_memory"), info.number("maxmemory"))?;
    }
    Ok(())
}

fn report(findings: &mut Findings, check: &'static str, impaired: Vec<Impaired>) -> Result<(), CliError> {
    for Impaired { server, problem, remedy } in impaired {
        let advice =
            remedy.unwrap_or("likes are neither accepted nor stored there; check the server and its log");
        findings.fail(check, format!("{server}: {problem}"), advice)?;
    }
    Ok(())
}

fn version(findings: &mut Findings, info: &Info<'_>, address: &str) -> Result<(), CliError> {
    // Valkey's redis_version is the version that it is compatible with.
    let valkey = info.text("valkey_version");
    let (name, version) =
        if valkey.is_empty() { ("Redis", info.text("redis_version")) } else { ("Valkey", valkey) };
    let major: u32 = version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
    if major >= MAJOR_VERSION {
        findings.ok("version", format!("{name} {version} at {address}"))
    } else {
        let seen = format!("{name} {version} at {address}");
        findings.fail("version", seen, "this version is not supported; use Redis 7.0, Valkey 8, or newer")
    }
}

fn eviction(findings: &mut Findings, info: &Info<'_>) -> Result<(), CliError> {
    let policy = info.text("maxmemory_policy");
    if policy == "noeviction" {
        return findings.ok("eviction", policy);
    }
    let state = if policy.starts_with("allkeys") { State::Fail } else { State::Warn };
    let advice = "Redis may evict likes when its memory is full; run CONFIG SET maxmemory-policy noeviction, and CONFIG REWRITE";
    findings.bad("eviction", state, policy, advice)
}

fn persistence(findings: &mut Findings, info: &Info<'_>) -> Result<(), CliError> {
    if info.number("aof_enabled") != 1 {
        let advice = "a crash of Redis loses likes accepted since the last snapshot; run CONFIG SET appendonly yes, and CONFIG REWRITE";
        findings.warn("persistence", "no append-only file", advice)
    } else if info.text("aof_last_write_status") == "err" {
        let seen = "the last write to the append-only file failed";
        findings.fail("persistence", seen, "a crash of Redis may lose likes; check its disk")
    } else {
        findings.ok("persistence", "append-only file")
    }
}

fn memory(findings: &mut Findings, used: u64, limit: u64) -> Result<(), CliError> {
    let mib = |bytes: u64| bytes >> 20;
    let Some(percent) = (used * 100).checked_div(limit) else {
        return findings.ok("memory", format!("{} MiB used, no maxmemory", mib(used)));
    };
    let seen = format!("{} of {} MiB used, {percent} %", mib(used), mib(limit));
    let state = match percent {
        MEMORY_FAIL_PERCENT.. => State::Fail,
        MEMORY_WARN_PERCENT.. => State::Warn,
        _ => return findings.ok("memory", seen),
    };
    let advice = "Redis refuses likes when its memory is full; start consumers or raise maxmemory, \
                  and see docs/runbook.md#redis-memory";
    findings.bad("memory", state, seen, advice)
}
