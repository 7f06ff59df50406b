//! Checks of pending entries.

use consumer::{entry::EntryId, stream::PendingSummary};
use shared::wire::partition::Partition;

use super::{STALE_AFTER, findings::Findings};
use crate::{
    context::Context,
    exit::CliError,
    output::{age, count, many},
    overview::Overview,
    selection::EntryRef,
};

/// Number of deliveries above which an entry is suspect: the default of MAX_DELIVERIES.
const SUSPECT_DELIVERIES: u64 = 5;

/// Maximum number of pending entries that are checked per partition, oldest first.
const CHECKED: u64 = 10_000;

/// Number of entries per request.
const PAGE: usize = 1_000;

pub(super) async fn check(
    findings: &mut Findings,
    context: &Context,
    overview: &Overview,
) -> Result<(), CliError> {
    let mut extremes = Extremes::default();
    for partition in context.partitions.partitions() {
        extremes.read(context, partition).await?;
    }
    let checked = format!("{} of {} checked", count(extremes.checked), count(overview.total.pending));
    match extremes.longest_idle {
        Some((idle_ms, entry)) if u128::from(idle_ms) > STALE_AFTER.as_millis() => findings.fail(
            "pending",
            format!("{entry} is pending and has been idle for {}", age(idle_ms)),
            "its likes may not be stored; run likesctl pending list --min-idle 5m and see docs/runbook.md#stuck-pending",
        )?,
        _ => {
            let limit = STALE_AFTER.as_secs() / 60;
            let seen = format!("no pending entry has been idle for more than {limit}m ({checked})");
            findings.ok("pending", seen)?;
        }
    }
    if let Some((deliveries, entry)) = extremes.most_delivered {
        let seen = format!("{entry} was delivered {deliveries} times");
        let advice = format!(
            "it may crash consumers; run likesctl pending show {entry}, and see docs/runbook.md#stuck-pending"
        );
        findings.warn("suspect", seen, advice)?;
    } else {
        let seen = format!("no pending entry has more than {SUSPECT_DELIVERIES} deliveries ({checked})");
        findings.ok("suspect", seen)?;
    }
    match extremes.first_deleted {
        Some(entry) => {
            let deleted = many(extremes.deleted, "pending entry", "pending entries");
            let seen = format!("{deleted} deleted from the streams, first {entry}");
            findings.fail("lost", seen, "their likes are lost unless a live consumer has them in flight; see docs/runbook.md#lost-entries")
        }
        None => findings.ok("lost", format!("all pending entries are in their streams ({checked})")),
    }
}

/// Extreme values over the oldest pending entries.
#[derive(Default)]
struct Extremes {
    checked: u64,
    deleted: u64,
    first_deleted: Option<EntryRef>,
    /// The entry with the most deliveries, if more than [`SUSPECT_DELIVERIES`].
    most_delivered: Option<(u64, EntryRef)>,
    longest_idle: Option<(u64, EntryRef)>,
}

impl Extremes {
    async fn read(&mut self, context: &Context, partition: Partition) -> Result<(), CliError> {
        let mut from = EntryId::default();
        let mut checked = 0;
        while checked < CHECKED {
            let page = context.streams.summarize_pending(partition, from, PAGE).await?;
            checked += page.entries;
            self.add(partition, &page);
            match page.last.and_then(EntryId::after) {
                Some(next) if page.entries == PAGE as u64 => from = next,
                _ => break,
            }
        }
        Ok(())
    }

    fn add(&mut self, partition: Partition, page: &PendingSummary) {
        let entry = |id: EntryId| EntryRef { partition: partition.number(), id };
        self.checked += page.entries;
        self.deleted += page.deleted.len() as u64;
        self.first_deleted = self.first_deleted.or(page.deleted.first().copied().map(entry));
        if let Some(id) = page.most_delivered
            && page.most_deliveries > self.most_delivered.map_or(SUSPECT_DELIVERIES, |(most, _)| most)
        {
            self.most_delivered = Some((page.most_deliveries, entry(id)));
        }
        if let Some(id) = page.longest_idle
            && page.longest_idle_ms > self.longest_idle.map_or(0, |(longest, _)| longest)
        {
            self.longest_idle = Some((page.longest_idle_ms, entry(id)));
        }
    }
}
