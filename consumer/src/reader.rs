//! From Redis into the process: what this consumer left pending, what others did, and what is new.
//!
//! One task, one read at a time, and never a read dropped half way: an entry that Redis has handed out and nobody has
//! received stays pending until somebody looks for it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use fred::prelude::{Client, ClientLike, Error, ErrorKind};
use futures_util::future::join_all;
use shared::{admin::Check, partition::Partition, redis, service::one_line};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    backoff::Backoff,
    dead_letter::{DeadLetter, Reason},
    entry::{Entry, EntryId, RawEntry},
    in_flight::InFlight,
    metrics::Metrics,
    stream::{Claimed, Streams},
};

/// How long a read waits for new entries, and so how long SIGTERM may go unnoticed.
pub(crate) const BLOCK: Duration = Duration::from_millis(500);

/// How many pending entries a claim takes over at once.
const CLAIM_COUNT: u64 = 100;

/// Between two rounds of claims, as a part of `CLAIM_MIN_IDLE`, and at most.
const CLAIM_ROUNDS_PER_MIN_IDLE: u32 = 4;
const CLAIM_INTERVAL_MAX: Duration = Duration::from_secs(2);

/// An entry that was delivered too often is tried alone this often before it is given up: a kill that came by chance
/// in the middle of the first try is not its fault.
const TRIES_ALONE: u64 = 2;

/// What the reader goes by.
pub(crate) struct Limits {
    /// Rows in flight, beyond which nothing is read.
    pub(crate) rows_in_flight: usize,
    /// How long an entry must be pending with someone before it is claimed.
    pub(crate) claim_min_idle: Duration,
    /// How often an entry may be delivered before it is tried alone.
    pub(crate) max_deliveries: u64,
}

/// Reads entries and sends them on, decoded.
pub(crate) struct Reader {
    pub(crate) client: Client,
    pub(crate) streams: Streams,
    pub(crate) limits: Limits,
    pub(crate) in_flight: Arc<InFlight>,
    /// Not bounded itself: what is in flight is.
    pub(crate) entries: mpsc::UnboundedSender<Entry>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) check: Check,
    pub(crate) shutdown: CancellationToken,
}

/// The writer is gone, nobody takes entries any more.
struct Closed;

impl Reader {
    /// Reads until shutdown, or until nobody takes entries any more.
    pub(crate) async fn run(self) {
        let mut expected_rows = RowsPerEntry::default();
        let mut claims = ClaimRound::new(&self.streams, self.limits.claim_min_idle);
        let mut own_pending_unknown = true;
        let mut backoff = Backoff::retry();
        while !self.shutdown.is_cancelled() {
            let Some(room) =
                self.shutdown.run_until_cancelled(self.in_flight.room(self.limits.rows_in_flight)).await
            else {
                return;
            };
            let read = if own_pending_unknown {
                self.recover_own_pending().await.map(|taken| taken.map(|()| own_pending_unknown = false))
            } else if let Some((partition, cursor)) = claims.due() {
                self.claim(partition, cursor)
                    .await
                    .map(|taken| taken.map(|next| claims.done(partition, next)))
            } else {
                self.read_new(&mut expected_rows, room).await
            };
            match read {
                Ok(Ok(())) => {
                    backoff = Backoff::retry();
                    if self.check.pass() {
                        tracing::info!("entries are read");
                    }
                }
                Ok(Err(Closed)) => return,
                Err(error) => {
                    // Redis may have handed out entries in a reply that never came.
                    own_pending_unknown = true;
                    self.after_error(&error, &mut backoff).await;
                }
            }
        }
    }

    async fn read_new(&self, expected: &mut RowsPerEntry, room: usize) -> Result<Result<(), Closed>, Error> {
        let count = expected.entries_for(room).div_ceil(self.streams.partitions().count());
        let block_ms = u64::try_from(BLOCK.as_millis()).unwrap_or(1);
        let entries = self.streams.read_new(&self.client, count as u64, block_ms).await?;
        self.metrics.read(entries.len());
        let (read, rows) = (entries.len(), self.take(entries).await?);
        Ok(rows.map(|rows| expected.observed(read, rows)))
    }

    /// Reads all that was delivered to this consumer and never acknowledged. What is in flight is among that, so it
    /// waits until nothing is.
    async fn recover_own_pending(&self) -> Result<Result<(), Closed>, Error> {
        if self.shutdown.run_until_cancelled(self.in_flight.drained()).await.is_none() {
            return Ok(Ok(()));
        }
        let mut after = HashMap::new();
        loop {
            let entries = self.streams.read_own_pending(&self.client, &after, CLAIM_COUNT).await?;
            if entries.is_empty() || self.shutdown.is_cancelled() {
                return Ok(Ok(()));
            }
            tracing::info!(entries = entries.len(), "taking up entries that were left pending");
            self.metrics.reclaimed(entries.len());
            after.extend(entries.iter().map(|entry| (entry.at.partition, entry.at.id)));
            if self.take_again(entries).await?.is_err() {
                return Ok(Err(Closed));
            }
            if self
                .shutdown
                .run_until_cancelled(self.in_flight.room(self.limits.rows_in_flight))
                .await
                .is_none()
            {
                return Ok(Ok(()));
            }
        }
    }

    /// Claims a page of what others left pending, and returns where the next page starts.
    async fn claim(&self, partition: Partition, cursor: EntryId) -> Result<Result<EntryId, Closed>, Error> {
        let min_idle_ms = u64::try_from(self.limits.claim_min_idle.as_millis()).unwrap_or(u64::MAX);
        let Claimed { entries, deleted, cursor } =
            self.streams.claim(&self.client, partition, min_idle_ms, cursor, CLAIM_COUNT).await?;
        if !entries.is_empty() {
            tracing::info!(%partition, entries = entries.len(), "claimed entries that were left pending");
            self.metrics.reclaimed(entries.len());
        }
        // Redis has taken them off the pending list itself.
        self.lost(partition, &deleted);
        Ok(self.take_again(entries).await?.map(|()| cursor))
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
        let mut taken = self.take(harmless).await?.map(drop);
        for (entry, deliveries) in suspect {
            if taken.is_err() || self.shutdown.is_cancelled() {
                break;
            }
            taken = self.take_alone(entry, deliveries).await?;
        }
        Ok(taken)
    }

    /// Sends an entry on when nothing else is in flight, and waits until it is settled. Should the process not survive
    /// that, the begun try stays on record; after [`TRIES_ALONE`] of them the entry is given up unread.
    async fn take_alone(&self, entry: RawEntry, deliveries: u64) -> Result<Result<(), Closed>, Error> {
        let RawEntry { at, fields: Some(fields) } = entry else {
            return self.take(vec![entry]).await.map(|taken| taken.map(drop));
        };
        if self.shutdown.run_until_cancelled(self.in_flight.drained()).await.is_none() {
            return Ok(Ok(()));
        }
        let tries_before = self.streams.begin_try_alone(at).await?.saturating_sub(1);
        tracing::warn!(partition = %at.partition, id = %at.id, deliveries, tries_before, "delivered too often: tried alone");
        let entry = if tries_before < TRIES_ALONE {
            Entry { alone: true, ..Entry::decode(at, &fields, Instant::now()) }
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
        self.shutdown.run_until_cancelled(self.in_flight.drained()).await;
        Ok(Ok(()))
    }

    /// Sends entries on, except those that are in flight already, and returns how many rows they have.
    async fn take(&self, entries: Vec<RawEntry>) -> Result<Result<usize, Closed>, Error> {
        let read_at = Instant::now();
        let mut rows = 0;
        for RawEntry { at, fields } in entries {
            let Some(fields) = fields else {
                self.lost(at.partition, &[at.id]);
                self.streams.forget_deleted(at).await?;
                continue;
            };
            let entry = Entry::decode(at, &fields, read_at);
            if !self.in_flight.admit(at, entry.likes.len()) {
                continue;
            }
            rows += entry.likes.len();
            if self.entries.send(entry).is_err() {
                return Ok(Err(Closed));
            }
        }
        Ok(Ok(rows))
    }

    fn lost(&self, partition: Partition, ids: &[EntryId]) {
        if let (Some(first), Some(last)) = (ids.first(), ids.last()) {
            self.metrics.lost(ids.len());
            tracing::error!(
                %partition, entries = ids.len(), %first, %last,
                "LOST: entries were deleted from the stream before they were stored"
            );
        }
    }

    async fn after_error(&self, error: &Error, backoff: &mut Backoff) {
        tracing::warn!(%error, "reading from Redis failed");
        self.check.fail(format!("reading from Redis failed: {error}"));
        if *error.kind() == ErrorKind::Timeout {
            // fred does not give up a connection on which a blocking command is unanswered, however long that takes.
            let client = self.client.clone();
            tokio::spawn(async move { client.force_reconnection().await });
        }
        if redis::error_code(error) == Some("NOGROUP") {
            match self.streams.ensure_groups().await {
                Ok(()) => return,
                Err(error) => tracing::warn!(error = one_line(&error), "a group is missing"),
            }
        }
        self.shutdown.run_until_cancelled(tokio::time::sleep(backoff.next_delay())).await;
    }
}

/// How many rows an entry brings, learnt from the last reads: quick to rise, so that room is not overshot for long,
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

/// Goes over the partitions, each to the end of its pending entries, then rests.
struct ClaimRound {
    cursors: Vec<(Partition, EntryId)>,
    partitions: Vec<Partition>,
    interval: Duration,
    next_round: Instant,
}

impl ClaimRound {
    fn new(streams: &Streams, min_idle: Duration) -> Self {
        let interval = (min_idle / CLAIM_ROUNDS_PER_MIN_IDLE).min(CLAIM_INTERVAL_MAX);
        Self {
            cursors: Vec::new(),
            partitions: streams.partitions().collect(),
            interval,
            next_round: Instant::now(),
        }
    }

    /// The partition to look at now, and from where on.
    fn due(&mut self) -> Option<(Partition, EntryId)> {
        if self.cursors.is_empty() && Instant::now() >= self.next_round {
            self.next_round = Instant::now() + self.interval;
            self.cursors = self.partitions.iter().map(|partition| (*partition, EntryId::default())).collect();
        }
        self.cursors.last().copied()
    }

    /// Its page is done; a zero cursor says that it was the last one.
    fn done(&mut self, partition: Partition, cursor: EntryId) {
        self.cursors.retain(|(other, _)| *other != partition);
        if cursor != EntryId::default() {
            self.cursors.push((partition, cursor));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
