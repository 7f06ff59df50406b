//! Checks of pending entries.

use consumer::{entry::EntryId, stream::PendingSummary};
use shared::wire::partition::Partition;

use super::{STUCK_AFTER, findings::Findings};
use crate::{
    context::Context,
    exit::CliError,
    output::{age, count},
    overview::Overview,
    selection::EntryRef,
};

/// Number of deliveries above which an entry is suspect: the default of MAX_DELIVERIES.
const SUSPECT_DELIVERIES: u64 = 5;

/// Number of pending entries per partition that are checked, oldest first, and number per request.
const CHECKED: u64 = 10_000;
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
    let checked = count(extremes.checked);
    match extremes.longest_idle {
        Some((idle_ms, entry)) if u128::from(idle_ms) > STUCK_AFTER.as_millis() => findings.fail(
            "stuck",
            format!("{entry} is pending and idle for {}", age(idle_ms)),
            "likesctl pending list --min-idle 5m, then likesctl pending retry --min-idle 5m",
        )?,
        _ => {
            let pending = count(overview.total.pending);
            let seen = format!("no pending entry is idle for long, of {checked} checked, {pending} in total");
            findings.ok("stuck", seen)?;
        }
    }
    match extremes.most_delivered {
        Some((deliveries, entry)) => findings.warn(
            "poison",
            format!("{entry} was delivered {deliveries} times: it may kill consumers"),
            format!("likesctl pending show {entry} (runbook: stuck pending)"),
        )?,
        None => findings.ok("poison", format!("no entry was delivered too often, of {checked} checked"))?,
    }
    match extremes.first_deleted {
        Some(entry) => {
            let deleted = count(extremes.deleted);
            let seen =
                format!("{deleted} pending entries were deleted from their streams, the first is {entry}");
            findings.fail("lost", seen, "their likes are lost (runbook: lost entries)")
        }
        None => {
            findings.ok("lost", format!("all pending entries are in their streams, of {checked} checked"))
        }
    }
}

/// Extreme values over the oldest pending entries.
#[derive(Default)]
struct Extremes {
    checked: u64,
    deleted: u64,
    first_deleted: Option<EntryRef>,
    /// The suspect entry with the most deliveries.
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
