//! Checks of the group, its consumers, its backlog and its dead letters, all from an overview.

use consumer::stream::REASSIGN_CONSUMER;

use super::{STALE_AFTER, findings::Findings};
use crate::{
    exit::CliError,
    output::{age, count, many},
    overview::{ConsumerOverview, Overview, PartitionOverview},
};

/// Time by which an id may be ahead of Redis's clock: a clock is corrected by a little at times.
const MAX_AHEAD_MS: u64 = 60_000;

pub(super) fn check(findings: &mut Findings, overview: &Overview) -> Result<(), CliError> {
    existence(findings, overview)?;
    let alive = overview.consumers.iter().filter(|consumer| consumer.is_alive()).count();
    if alive == 0 {
        findings.fail(
            "consumers",
            "no live consumers",
            "likes stay in Redis until consumers run; start consumers",
        )?;
    } else {
        findings.ok("consumers", format!("{alive} live"))?;
    }
    for consumer in &overview.consumers {
        consumer_state(findings, consumer)?;
    }
    entry_ids(findings, overview)?;
    paused(findings, overview)?;
    if alive > 0 {
        owners(findings, overview)?;
    }
    backlog(findings, overview)
}

fn existence(findings: &mut Findings, overview: &Overview) -> Result<(), CliError> {
    let group = &overview.group;
    let missing = numbers(overview, |row| !row.has_group);
    if missing.is_empty() {
        return findings.ok("group", format!("{group} exists on all partitions"));
    }
    let advice = "start a consumer: it creates the group and reads each stream from its first entry; or correct LIKES_GROUP";
    findings.fail("group", format!("{group} does not exist on partitions {missing}"), advice)
}

fn consumer_state(findings: &mut Findings, consumer: &ConsumerOverview) -> Result<(), CliError> {
    let ConsumerOverview { name, state, pending, .. } = consumer;
    match *state {
        "stuck" => {
            let seen = format!("{name} is stuck: it cannot write to Postgres");
            findings.fail("consumers", seen, "see the check \"writer\" at its /readyz?verbose, or its log")
        }
        _ if name == REASSIGN_CONSUMER && *pending > 0 => {
            let entries = many(*pending, "reassigned entry", "reassigned entries");
            let seen = format!("{entries} not claimed yet");
            let advice = "the owners of their partitions claim them within seconds; if not, check that consumers are running";
            findings.warn("consumers", seen, advice)
        }
        "dead" | "gone" if *pending > 0 => {
            let entries = many(*pending, "pending entry", "pending entries");
            let advice = format!(
                "live consumers claim them within seconds; if not, run likesctl consumers remove {name}"
            );
            findings.warn("consumers", format!("{name} is {state} and has {entries}"), advice)
        }
        _ => Ok(()),
    }
}

/// Redis continues from the last id, even if another program or an earlier clock has set it.
fn entry_ids(findings: &mut Findings, overview: &Overview) -> Result<(), CliError> {
    let exhausted = numbers(overview, |row| row.ids_exhausted);
    if !exhausted.is_empty() {
        let seen = format!(
            "partitions {exhausted} have reached the largest possible id: Redis rejects further entries"
        );
        let advice = "stop ingest; when the backlog of these partitions is 0, delete their streams, which ingest creates again";
        findings.fail("entry ids", seen, advice)?;
    }
    let is_ahead = |row: &&PartitionOverview| row.ids_ahead_ms > MAX_AHEAD_MS && !row.ids_exhausted;
    if let Some(most) = overview.partitions.iter().filter(is_ahead).map(|row| row.ids_ahead_ms).max() {
        let ahead = numbers(overview, |row| is_ahead(&row));
        let seen = format!("the last ids of partitions {ahead} are up to {} in the future", age(most));
        let advice = "their ages and latencies show as 0, and STREAM_RETENTION keeps their entries until that time; check the clock of Redis, and other programs that append entries";
        findings.warn("entry ids", seen, advice)?;
    }
    Ok(())
}

fn paused(findings: &mut Findings, overview: &Overview) -> Result<(), CliError> {
    let paused = numbers(overview, |row| row.paused);
    if paused.is_empty() {
        return Ok(());
    }
    let flag = if overview.all_paused { String::new() } else { format!(" -p {paused}") };
    findings.warn(
        "paused",
        format!("partitions {paused}"),
        format!("their likes wait in Redis; to continue, run likesctl resume{flag}"),
    )
}

fn owners(findings: &mut Findings, overview: &Overview) -> Result<(), CliError> {
    let unowned = numbers(overview, |row| row.owners.is_empty() && !row.paused);
    if unowned.is_empty() {
        return Ok(());
    }
    let advice =
        "start consumers with CONSUMER_PARTITIONS=auto, or with a static assignment of these partitions";
    findings.fail("owners", format!("partitions {unowned} have no owner"), advice)
}

/// Returns the numbers of the matching partitions, separated by commas.
fn numbers(overview: &Overview, matches: impl Fn(&PartitionOverview) -> bool) -> String {
    let matching = overview.partitions.iter().filter(|row| matches(row));
    matching.map(|row| row.partition.to_string()).collect::<Vec<_>>().join(",")
}

fn backlog(findings: &mut Findings, overview: &Overview) -> Result<(), CliError> {
    let total = &overview.total;
    let oldest_ms = total.oldest_age_ms.unwrap_or(0);
    match total.backlog {
        None => {
            let seen = format!("unknown, at least {}", count(total.pending));
            let advice =
                "Redis cannot compute the lag after some events; it can again when consumers have caught up";
            findings.warn("backlog", seen, advice)
        }
        Some(backlog) if u128::from(oldest_ms) > STALE_AFTER.as_millis() => {
            let entries = many(backlog, "entry", "entries");
            let seen = format!("{entries}, the oldest is {} old", age(oldest_ms));
            let advice = "consumers do not keep up; see docs/runbook.md#backlog-too-old";
            findings.warn("backlog", seen, advice)
        }
        Some(backlog) => findings.ok("backlog", many(backlog, "entry", "entries")),
    }
}

pub(super) fn dead_letters(findings: &mut Findings, overview: &Overview) -> Result<(), CliError> {
    if overview.total.dead == 0 {
        return findings.ok("dead letters", "none");
    }
    let seen = many(overview.total.dead, "dead letter", "dead letters");
    let advice = "their likes are not stored; run likesctl dead list, and see docs/runbook.md#dead-letters";
    findings.warn("dead letters", seen, advice)
}
