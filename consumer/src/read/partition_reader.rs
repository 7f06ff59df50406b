//! One partition's way from Redis into the process: what this consumer left pending, what others did, and what is
//! new.
//!
//! One read at a time, and never a read dropped half way: an entry that Redis has handed out and nobody has received
//! stays pending until somebody looks for it.

use std::{future::Future, sync::Arc, time::Duration};

use fred::prelude::Error;
use futures_util::future::join_all;
use shared::{
    backoff::Backoff,
    error_chain::one_line,
    redis,
    telemetry::{log_rate::LogRate, spans::Tracing},
    wire::{
        dead_letter::{DeadLetter, Reason},
        partition::Partition,
    },
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    entry::{Entry, EntryId, RawEntry},
    group::membership::{LIVENESS_TIMEOUT, Ownership},
    in_flight::InFlight,
    metrics::{Metrics, StreamOperation},
    read::supervisor::ReadHealth,
    stream::{Claimed, Inherited, Streams},
    trace,
};

/// Between two reads of a partition: the first wait, as a part of `BATCH_LINGER` and within these bounds, doubled up to
/// the last one while nothing is new. A read that comes back full is followed by the next one at once.
const POLLS_PER_LINGER: u32 = 4;
const POLL_MIN: Duration = Duration::from_millis(4);
const POLL_MAX: Duration = Duration::from_millis(64);

/// How many new entries are read at once: what is made of a reply should still be in the processor's cache when the next
/// thing is made of it.
const READ_COUNT_MAX: usize = 500;

/// How many pending entries a claim takes over at once.
const CLAIM_COUNT: u64 = 100;

/// Between two rounds of claims, as a part of `CLAIM_MIN_IDLE`, and at most.
const CLAIM_ROUNDS_PER_MIN_IDLE: u32 = 4;
const CLAIM_INTERVAL_MAX: Duration = Duration::from_secs(2);

/// An entry that was delivered too often is tried alone this often before it is given up: a kill that came by chance
/// in the middle of the first try is not its fault.
const MAX_QUARANTINES: u64 = 2;

/// What the readers go by.
#[derive(Clone, Copy)]
pub(crate) struct ReadLimits {
    /// Rows in flight, beyond which nothing is read.
    pub(crate) rows_in_flight: usize,
    /// The first wait between two reads, see [`poll_min`].
    pub(crate) poll_min: Duration,
    /// How long an entry must be pending with a member before it is claimed.
    pub(crate) claim_min_idle: Duration,
    /// How often an entry may be delivered before it is tried alone.
    pub(crate) max_deliveries: u64,
    /// When the readers' clock started.
    pub(crate) started: Instant,
}

/// The first wait between two reads: where batches wait long for more, there is no need to look often for it.
pub(crate) fn poll_min(linger: Duration) -> Duration {
    (linger / POLLS_PER_LINGER).clamp(POLL_MIN, POLL_MAX)
}

/// Reads one partition and sends its entries on, decoded.
pub(crate) struct PartitionReader {
    pub(crate) partition: Partition,
    pub(crate) streams: Streams,
    pub(crate) limits: ReadLimits,
    pub(crate) in_flight: Arc<InFlight>,
    /// Not bounded itself: what is in flight is.
    pub(crate) entries: mpsc::UnboundedSender<Entry>,
    pub(crate) ownership: watch::Receiver<Ownership>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) tracing: Tracing,
    pub(crate) log_rates: LogRates,
    pub(crate) health: Arc<ReadHealth>,
    /// The process ends: nothing more is read.
    pub(crate) shutdown: CancellationToken,
}

/// Of lines that every read of a partition could bring.
#[derive(Default)]
pub(crate) struct LogRates {
    taken_up: LogRate,
    claimed: LogRate,
}

/// The writer is gone, nobody takes entries any more.
struct Closed;

/// What a reader does next.
enum Step {
    RecoverOwnPending,
    Claim,
    ReadNew,
}

impl PartitionReader {
    /// Reads for as long as the partition is wanted, until shutdown, or until nobody takes entries any more. What Redis
    /// may have handed out to nobody is looked for before it ends, unless it is by shutdown.
    pub(crate) async fn run(mut self, mut must_recover_pending: bool, mut wanted: watch::Receiver<bool>) {
        let mut expected_rows = RowsPerEntry::default();
        let mut claims = ClaimRound::new(self.limits.claim_min_idle);
        let mut poll = self.limits.poll_min;
        let mut backoff = Backoff::server();
        while !self.shutdown.is_cancelled() && (must_recover_pending || *wanted.borrow()) {
            if self.ownership.has_changed().unwrap_or(false) {
                self.ownership.mark_unchanged();
                claims.begin();
            }
            let step = match claims.due() {
                _ if must_recover_pending => Step::RecoverOwnPending,
                true => Step::Claim,
                false => Step::ReadNew,
            };
            let done = match step {
                Step::RecoverOwnPending => self.recover_own_pending(&mut must_recover_pending).await,
                Step::Claim => self.claim(&mut claims, &mut wanted).await,
                Step::ReadNew => self.read_new(&mut expected_rows, &mut poll, &mut wanted).await,
            };
            match done {
                Ok(Ok(())) => {
                    backoff = Backoff::server();
                    self.health.passed(self.partition);
                }
                Ok(Err(Closed)) => return,
                Err(error) => {
                    // Redis may have handed out entries in a reply that never came.
                    must_recover_pending = true;
                    self.after_error(&error, &mut backoff).await;
                }
            }
        }
        self.health.passed(self.partition);
    }

    async fn read_new(
        &self,
        expected: &mut RowsPerEntry,
        poll: &mut Duration,
        wanted: &mut watch::Receiver<bool>,
    ) -> Result<Result<(), Closed>, Error> {
        let permit = self.in_flight.read_permit(self.limits.rows_in_flight);
        let Some(permit) = self.while_wanted(wanted, permit).await else { return Ok(Ok(())) };
        let readers = self.ownership.borrow().to_read().count().max(1);
        let count = expected.entries_for(permit.rows).div_ceil(readers).min(READ_COUNT_MAX);
        let read = self.streams.read_new(self.partition, count as u64);
        let entries = self.metrics.timed(StreamOperation::Read, read).await?;
        self.metrics.read(entries.len());
        let read = entries.len();
        let rows = match self.take(entries).await? {
            Ok(rows) => rows,
            Err(closed) => return Ok(Err(closed)),
        };
        drop(permit);
        expected.observed(read, rows);
        *poll = if read == 0 { (*poll * 2).min(POLL_MAX) } else { self.limits.poll_min };
        if read < count {
            let tick = next_tick(self.limits.started, Instant::now(), *poll);
            self.while_wanted(wanted, sleep_until(tick)).await;
        }
        Ok(Ok(()))
    }

    /// Reads all that was delivered to this consumer and never acknowledged. What is in flight is among that, so it
    /// waits until nothing is.
    async fn recover_own_pending(&self, unknown: &mut bool) -> Result<Result<(), Closed>, Error> {
        let mut after = EntryId::default();
        loop {
            let wait = self.in_flight.drained(self.partition);
            if self.shutdown.run_until_cancelled(wait).await.is_none() {
                return Ok(Ok(()));
            }
            let entries = self.streams.read_own_pending(self.partition, after, CLAIM_COUNT).await?;
            let Some(last) = entries.last() else {
                *unknown = false;
                return Ok(Ok(()));
            };
            after = last.at.id;
            if let Some(entries) = self.log_rates.taken_up.record(entries.len()) {
                tracing::info!(partition = %self.partition, entries, "taking up entries that were left pending");
            }
            self.metrics.reclaimed(entries.len());
            if self.take_again(entries).await?.is_err() {
                return Ok(Err(Closed));
            }
        }
    }

    /// Takes over what dead members left, or a page of what living ones left for too long.
    async fn claim(
        &self,
        round: &mut ClaimRound,
        wanted: &mut watch::Receiver<bool>,
    ) -> Result<Result<(), Closed>, Error> {
        let permit = self.in_flight.read_permit(self.limits.rows_in_flight);
        let Some(permit) = self.while_wanted(wanted, permit).await else { return Ok(Ok(())) };
        drop(permit);
        let members = Arc::clone(&self.ownership.borrow().members);
        let liveness_timeout_ms = milliseconds(LIVENESS_TIMEOUT);
        let inherited =
            self.streams.claim_departed(self.partition, &members, liveness_timeout_ms, CLAIM_COUNT);
        if let Some(Inherited { from, entries, deleted }) = inherited.await? {
            self.claimed(entries.len(), &deleted, &from);
            return self.take_again(entries).await;
        }
        let min_idle_ms = milliseconds(self.limits.claim_min_idle);
        let claimed = self.streams.claim(self.partition, min_idle_ms, round.cursor, CLAIM_COUNT);
        let Claimed { entries, deleted, cursor } =
            self.metrics.timed(StreamOperation::Claim, claimed).await?;
        self.claimed(entries.len(), &deleted, "members that had them for too long");
        round.advance(cursor);
        self.take_again(entries).await
    }

    /// Nothing when the wait is over because the partition is no longer wanted, or by shutdown.
    async fn while_wanted<T>(
        &self,
        wanted: &mut watch::Receiver<bool>,
        wait: impl Future<Output = T>,
    ) -> Option<T> {
        tokio::select! {
            done = wait => Some(done),
            _ = wanted.wait_for(|wanted| !wanted) => None,
            () = self.shutdown.cancelled() => None,
        }
    }

    fn claimed(&self, entries: usize, deleted: &[EntryId], from: &str) {
        self.metrics.reclaimed(entries);
        if let Some(entries) = self.log_rates.claimed.record(entries) {
            tracing::info!(partition = %self.partition, entries, from, "claimed entries that were left pending");
        }
        // They are off the pending list by now.
        self.lost(deleted);
    }

    /// Sends entries on that were delivered before, except those that are in flight already. One that was delivered
    /// too often may have killed whoever had it, and so comes after all others, alone.
    async fn take_again(&self, entries: Vec<RawEntry>) -> Result<Result<(), Closed>, Error> {
        let deliveries = join_all(entries.iter().map(|entry| self.streams.deliveries(entry.at))).await;
        let (mut harmless, mut suspect) = (Vec::new(), Vec::new());
        for (entry, deliveries) in entries.into_iter().zip(deliveries) {
            let deliveries = deliveries?;
            if deliveries > self.limits.max_deliveries && !self.in_flight.contains(entry.at) {
                suspect.push((entry, deliveries));
            } else {
                harmless.push(entry);
            }
        }
        let permit = self.in_flight.read_permit(self.limits.rows_in_flight);
        let Some(permit) = self.shutdown.run_until_cancelled(permit).await else { return Ok(Ok(())) };
        let mut taken = self.take(harmless).await?.map(drop);
        drop(permit);
        for (entry, deliveries) in suspect {
            if taken.is_err() || self.shutdown.is_cancelled() {
                break;
            }
            taken = self.process_quarantined(entry, deliveries).await?;
        }
        Ok(taken)
    }

    /// Sends an entry on when nothing else is in flight, and waits until it is settled. Should the process not survive
    /// that, the begun try stays on record; after [`MAX_QUARANTINES`] of them the entry is given up unread.
    async fn process_quarantined(
        &self,
        entry: RawEntry,
        deliveries: u64,
    ) -> Result<Result<(), Closed>, Error> {
        let RawEntry { at, fields: Some(fields) } = entry else {
            return self.take(vec![entry]).await.map(|taken| taken.map(drop));
        };
        let Some(_alone) = self.shutdown.run_until_cancelled(self.in_flight.exclusive_permit()).await else {
            return Ok(Ok(()));
        };
        let tries_before = self.streams.begin_quarantine(at).await?.saturating_sub(1);
        tracing::warn!(partition = %at.partition, id = %at.id, deliveries, tries_before, "delivered too often: tried alone");
        let entry = if tries_before < MAX_QUARANTINES {
            Entry { quarantined: true, ..Entry::decode(at, &fields, Instant::now()) }
        } else {
            let detail =
                format!("delivered {deliveries} times, and whoever tried it alone did not survive it");
            let letter = DeadLetter::of_entry(Reason::MaxDeliveries, detail, &fields);
            Entry::given_up(at, letter, Instant::now())
        };
        self.in_flight.admit(at, entry.likes.len());
        if self.entries.send(entry).is_err() {
            return Ok(Err(Closed));
        }
        self.shutdown.run_until_cancelled(self.in_flight.empty()).await;
        Ok(Ok(()))
    }

    /// Sends entries on, except those that are in flight already, and returns how many rows they have.
    async fn take(&self, entries: Vec<RawEntry>) -> Result<Result<usize, Closed>, Error> {
        let read_at = Instant::now();
        let (mut decoded, mut deleted) = (Vec::with_capacity(entries.len()), Vec::new());
        for RawEntry { at, fields } in entries {
            if let Some(fields) = fields {
                let producer = trace::producer(&self.tracing, &fields);
                decoded.push(Entry { producer, ..Entry::decode(at, &fields, read_at) });
            } else {
                deleted.push(at.id);
            }
        }
        if !deleted.is_empty() {
            self.lost(&deleted);
            self.streams.forget_deleted(self.partition, &deleted).await?;
        }
        self.in_flight.admit_new(&mut decoded);
        let rows = decoded.iter().map(|entry| entry.likes.len()).sum();
        let sent = decoded.into_iter().try_for_each(|entry| self.entries.send(entry).map_err(|_| Closed));
        Ok(sent.map(|()| rows))
    }

    fn lost(&self, ids: &[EntryId]) {
        if let (Some(first), Some(last)) = (ids.first(), ids.last()) {
            self.metrics.lost(ids.len());
            // Not left out, however often: nothing else will ever name them.
            tracing::error!(
                partition = %self.partition, entries = ids.len(), %first, %last,
                "LOST: entries were deleted from the stream before they were stored"
            );
        }
    }

    async fn after_error(&self, error: &Error, backoff: &mut Backoff) {
        self.health.failed(self.partition, error);
        if redis::error_code(error) == Some("NOGROUP") {
            match self.streams.ensure_group(self.partition).await {
                Ok(()) => return,
                Err(error) => tracing::warn!(error = one_line(&error), "a group is missing"),
            }
        }
        self.shutdown.run_until_cancelled(sleep(backoff.next_delay())).await;
    }
}

/// The end of a wait that ends for all readers at once: their reads then leave together.
fn next_tick(started: Instant, now: Instant, period: Duration) -> Instant {
    let (elapsed_us, period_us) = ((now - started).as_micros(), period.as_micros().max(1));
    let next_us = (elapsed_us / period_us + 1) * period_us;
    started + Duration::from_micros(u64::try_from(next_us).unwrap_or(u64::MAX))
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// How many rows an entry brings, learnt from the last reads: quick to rise, so that permit is not overshot for long,
/// and slow to fall.
struct RowsPerEntry(usize);

impl Default for RowsPerEntry {
    fn default() -> Self {
        Self(64)
    }
}

impl RowsPerEntry {
    fn entries_for(&self, rows: usize) -> usize {
        rows.div_ceil(self.0)
    }

    fn observed(&mut self, entries: usize, rows: usize) {
        if let Some(per_entry) = rows.checked_div(entries) {
            self.0 = per_entry.max(self.0 * 3 / 4).max(1);
        }
    }
}

/// When to look at what others left pending, and how far the look has got.
struct ClaimRound {
    cursor: EntryId,
    interval: Duration,
    next: Instant,
}

impl ClaimRound {
    fn new(min_idle: Duration) -> Self {
        let interval = (min_idle / CLAIM_ROUNDS_PER_MIN_IDLE).min(CLAIM_INTERVAL_MAX);
        Self { cursor: EntryId::default(), interval, next: Instant::now() }
    }

    fn due(&self) -> bool {
        Instant::now() >= self.next
    }

    /// There is reason not to wait.
    fn begin(&mut self) {
        self.next = Instant::now();
    }

    /// The next page starts at the cursor; a zero cursor says that this was the last one of the round.
    fn advance(&mut self, cursor: EntryId) {
        self.cursor = cursor;
        if cursor == EntryId::default() {
            self.next = Instant::now() + self.interval;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_wait_for_the_same_moment() {
        let started = Instant::now();
        for elapsed_us in [0, 3_999, 4_000, 4_001, 400 * 24 * 3_600_000_001] {
            let now = started + Duration::from_micros(elapsed_us);
            let next = next_tick(started, now, POLL_MIN);
            assert!((Duration::from_micros(1)..=POLL_MIN).contains(&(next - now)));
            assert_eq!((next - started).as_micros() % POLL_MIN.as_micros(), 0);
        }
    }

    #[test]
    fn reads_are_sized_by_the_rows_that_entries_bring() {
        let mut expected = RowsPerEntry::default();
        assert_eq!(expected.entries_for(6_400), 100);
        expected.observed(10, 5_000);
        assert_eq!(expected.entries_for(5_000), 10);
        for _ in 0..40 {
            expected.observed(10, 10);
        }
        assert_eq!(expected.entries_for(5_000), 5_000);
        expected.observed(0, 0);
        assert_eq!(expected.entries_for(1), 1);
    }
}
