//! Checks of the group, its consumers, its backlog and its dead letters, all from an overview.

use super::{STUCK_AFTER, findings::Findings};
use crate::{
    context::REASSIGN_CONSUMER,
    exit::CliError,
    output::{age, count, many},
    overview::{ConsumerOverview, Overview, PartitionOverview},
};

pub(super) fn check(findings: &mut Findings, overview: &Overview) -> Result<(), CliError> {
    existence(findings, overview)?;
    let alive = overview.consumers.iter().filter(|consumer| consumer.is_alive()).count();
    if alive == 0 {
        findings.fail("consumers", "none is alive", "start consumers; meanwhile likes are safe in Redis")?;
    } else {
        findings.ok("consumers", format!("{alive} alive"))?;
    }
    for consumer in &overview.consumers {
        consumer_state(findings, consumer)?;
    }
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
    let advice = "start a consumer: it creates the group at the first entry; or correct LIKES_GROUP";
    findings.fail("group", format!("{group} is missing on partitions {missing}"), advice)
}

fn consumer_state(findings: &mut Findings, consumer: &ConsumerOverview) -> Result<(), CliError> {
    let ConsumerOverview { name, state, pending, .. } = consumer;
    match *state {
        "stuck" => {
            let seen = format!("{name} is stuck: it can't write to Postgres");
            findings.fail("consumers", seen, "check its log, and postgres above")
        }
        _ if name == REASSIGN_CONSUMER && *pending > 0 => {
            let seen = format!("{} reassigned, not claimed yet", many(*pending, "entry", "entries"));
            let advice = "the owners of their partitions claim them within seconds: start consumers";
            findings.warn("consumers", seen, advice)
        }
        "dead" | "gone" if *pending > 0 => {
            let entries = many(*pending, "pending entry", "pending entries");
            let advice = format!(
                "living consumers claim them within seconds; if not: likesctl consumers remove {name}"
            );
            findings.warn("consumers", format!("{name} is {state} and has {entries}"), advice)
        }
        _ => Ok(()),
    }
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
        format!("when you are done: likesctl resume{flag}"),
    )
}

fn owners(findings: &mut Findings, overview: &Overview) -> Result<(), CliError> {
    let unowned = numbers(overview, |row| row.owners.is_empty() && !row.paused);
    if unowned.is_empty() {
        return Ok(());
    }
    let advice = "start consumers with CONSUMER_PARTITIONS=auto, or with a static assignment of them";
    findings.fail("owners", format!("no consumer reads partitions {unowned}"), advice)
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
                "Redis loses track of the lag after some events; it recovers when consumers have caught up";
            findings.warn("backlog", seen, advice)
        }
        Some(backlog) if u128::from(oldest_ms) > STUCK_AFTER.as_millis() => {
            let seen = format!("{} entries, the oldest is {} old", count(backlog), age(oldest_ms));
            findings.warn("backlog", seen, "runbook: backlog grows")
        }
        Some(backlog) => findings.ok("backlog", format!("{} entries", count(backlog))),
    }
}

pub(super) fn dead_letters(findings: &mut Findings, overview: &Overview) -> Result<(), CliError> {
    if overview.total.dead == 0 {
        return findings.ok("dead letters", "none");
    }
    let dead_letters = many(overview.total.dead, "dead letter", "dead letters");
    let seen = format!("{dead_letters}: likes that could not be stored");
    findings.warn("dead letters", seen, "likesctl dead list (runbook: dead letters)")
}
