//! One partition's way from Redis into the process: this consumer's own pending entries, those that others left, and new
//! ones.
//!
//! One read at a time, and never a read dropped half way: an entry that Redis has delivered and this process has not
//! received stays pending until a reader recovers it.

use std::{sync::Arc, time::Duration};

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
    group::ownership::Ownership,
    in_flight::InFlight,
    metrics::{Metrics, StreamOperation},
    read::{
        health::ReadHealth,
        pacing::{ClaimRound, PollInterval, RowsPerEntry},
    },
    stream::{Claimed, ClaimedDeparted, GroupStream, LIVENESS_TIMEOUT},
    trace,
};

/// Most pending entries of one claim.
const CLAIM_COUNT: u64 = 100;

/// An entry that was delivered too often is processed in quarantine this often before it becomes a dead letter: a kill
/// that came by chance in the middle of the first quarantine is not its fault.
const MAX_QUARANTINES: u64 = 2;

/// Limits of all partition readers.
#[derive(Clone, Copy)]
pub(crate) struct ReadLimits {
    /// Rows in flight, beyond which nothing is read.
    pub(crate) rows_in_flight: usize,
    /// The first wait between two reads, see [`crate::read::pacing::poll_min`].
    pub(crate) poll_min: Duration,
    /// How long an entry must be pending with a member before it is claimed.
    pub(crate) claim_min_idle: Duration,
    /// How often an entry may be delivered before it is quarantined.
    pub(crate) max_deliveries: u64,
    /// The start of the ticks that all readers share.
    pub(crate) started: Instant,
}

/// The parts that all partition readers work with.
pub(crate) struct ReadContext<S> {
    pub(crate) streams: S,
    pub(crate) limits: ReadLimits,
    pub(crate) in_flight: Arc<InFlight>,
    /// Not bounded itself: the rows in flight are.
    pub(crate) entries: mpsc::UnboundedSender<Entry>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) tracing: Tracing,
    pub(crate) health: ReadHealth,
    /// From its cancellation on nothing more is read.
    pub(crate) shutdown: CancellationToken,
}

/// Reads one partition and sends its entries on, decoded.
pub(crate) struct PartitionReader<S> {
    partition: Partition,
    context: Arc<ReadContext<S>>,
    ownership: watch::Receiver<Ownership>,
    wanted: watch::Receiver<bool>,
    /// Whether Redis may have delivered entries to this consumer that no process has received.
    must_recover_pending: bool,
    expected_rows: RowsPerEntry,
    poll: PollInterval,
    claims: ClaimRound,
    log_rates: LogRates,
}

/// Rates of log lines that every read of a partition could cause.
#[derive(Default)]
struct LogRates {
    recovered: LogRate,
    claimed: LogRate,
}

/// Why a step of a reader failed.
enum ReadError {
    /// The writer has ended: entries can't be sent on any more.
    WriterGone,
    Redis(Error),
}

impl From<Error> for ReadError {
    fn from(error: Error) -> Self {
        Self::Redis(error)
    }
}

impl<S: GroupStream> PartitionReader<S> {
    pub(crate) fn new(
        partition: Partition,
        context: Arc<ReadContext<S>>,
        ownership: watch::Receiver<Ownership>,
        wanted: watch::Receiver<bool>,
        must_recover_pending: bool,
    ) -> Self {
        let poll = PollInterval::new(context.limits.poll_min);
        let claims = ClaimRound::new(context.limits.claim_min_idle);
        Self {
            partition,
            context,
            ownership,
            wanted,
            must_recover_pending,
            expected_rows: RowsPerEntry::default(),
            poll,
            claims,
            log_rates: LogRates::default(),
        }
    }

    /// Reads for as long as the partition is wanted, until shutdown, or until the writer ends. Entries that Redis may have
    /// delivered and that were not received are recovered before it ends, unless it is by shutdown.
    pub(crate) async fn run(mut self) {
        let mut backoff = Backoff::server();
        while !self.context.shutdown.is_cancelled() && (self.must_recover_pending || *self.wanted.borrow()) {
            match self.step().await {
                Ok(()) => {
                    backoff = Backoff::server();
                    self.context.health.passed(self.partition);
                }
                Err(ReadError::WriterGone) => return,
                Err(ReadError::Redis(error)) => {
                    // Redis may have delivered entries in a reply that never came.
                    self.must_recover_pending = true;
                    self.after_error(&error, &mut backoff).await;
                }
            }
        }
        self.context.health.passed(self.partition);
    }

    async fn step(&mut self) -> Result<(), ReadError> {
        if self.ownership.has_changed().unwrap_or(false) {
            self.ownership.mark_unchanged();
            self.claims.begin();
        }
        if self.must_recover_pending {
            self.recover_own_pending().await
        } else if self.claims.is_due() {
            self.claim().await
        } else {
            self.read_new().await
        }
    }

    async fn read_new(&mut self) -> Result<(), ReadError> {
        let context = Arc::clone(&self.context);
        let permit = context.in_flight.read_permit(context.limits.rows_in_flight);
        let Some(permit) = self.while_wanted(permit).await else { return Ok(()) };
        let readers = self.ownership.borrow().to_read().count();
        let count = self.expected_rows.read_count(permit.rows, readers);
        let read = context.streams.read_new(self.partition, count as u64);
        let entries = context.metrics.timed(StreamOperation::Read, read).await?;
        let read = entries.len();
        context.metrics.read(read);
        let rows = self.send(entries).await?;
        drop(permit);
        self.expected_rows.observed(read, rows);
        let next_read = self.poll.next_read(context.limits.started, read);
        if read < count {
            self.while_wanted(sleep_until(next_read)).await;
        }
        Ok(())
    }

    /// Reads all entries that were delivered to this consumer and never acknowledged. Entries in flight are among them, so
    /// it waits until none of this partition is.
    async fn recover_own_pending(&mut self) -> Result<(), ReadError> {
        let ReadContext { streams, in_flight, metrics, shutdown, .. } = &*self.context;
        let mut after = EntryId::default();
        loop {
            if shutdown.run_until_cancelled(in_flight.drained(self.partition)).await.is_none() {
                return Ok(());
            }
            let entries = streams.read_own_pending(self.partition, after, CLAIM_COUNT).await?;
            let Some(last) = entries.last() else {
                self.must_recover_pending = false;
                return Ok(());
            };
            after = last.at.id;
            if let Some(entries) = self.log_rates.recovered.record(entries.len()) {
                tracing::info!(partition = %self.partition, entries, "recovering own pending entries");
            }
            metrics.reclaimed(entries.len());
            self.send_redelivered(entries).await?;
        }
    }

    /// Claims entries that dead members left, or else a page of those that living members have had for too long.
    async fn claim(&mut self) -> Result<(), ReadError> {
        let ReadContext { streams, limits, in_flight, metrics, .. } = &*self.context;
        let permit = in_flight.read_permit(limits.rows_in_flight);
        let Some(permit) = self.while_wanted(permit).await else { return Ok(()) };
        drop(permit);
        let members = Arc::clone(&self.ownership.borrow().members);
        let liveness_timeout_ms = milliseconds(LIVENESS_TIMEOUT);
        let departed = streams.claim_departed(self.partition, &members, liveness_timeout_ms, CLAIM_COUNT);
        if let Some(ClaimedDeparted { from, entries, deleted }) = departed.await? {
            self.record_claimed(entries.len(), &deleted, &from);
            return self.send_redelivered(entries).await;
        }
        let min_idle_ms = milliseconds(limits.claim_min_idle);
        let claimed = streams.claim(self.partition, min_idle_ms, self.claims.cursor, CLAIM_COUNT);
        let Claimed { entries, deleted, cursor } = metrics.timed(StreamOperation::Claim, claimed).await?;
        self.record_claimed(entries.len(), &deleted, "members that had them for too long");
        self.claims.advance(cursor);
        self.send_redelivered(entries).await
    }

    /// Returns `None` when the wait is over because the partition is no longer wanted, or by shutdown.
    async fn while_wanted<T>(&self, wait: impl Future<Output = T>) -> Option<T> {
        let mut wanted = self.wanted.clone();
        tokio::select! {
            done = wait => Some(done),
            _ = wanted.wait_for(|wanted| !wanted) => None,
            () = self.context.shutdown.cancelled() => None,
        }
    }

    fn record_claimed(&self, entries: usize, deleted: &[EntryId], from: &str) {
        self.context.metrics.reclaimed(entries);
        if let Some(entries) = self.log_rates.claimed.record(entries) {
            tracing::info!(partition = %self.partition, entries, from, "claimed entries that were left pending");
        }
        // The claim has removed them from the pending list.
        self.record_lost(deleted);
    }

    /// Sends entries on that were delivered before, except those that are already in flight. A suspect, which was delivered
    /// too often and may have killed consumers, comes after all others, in quarantine.
    async fn send_redelivered(&self, entries: Vec<RawEntry>) -> Result<(), ReadError> {
        let ReadContext { streams, limits, in_flight, shutdown, .. } = &*self.context;
        let deliveries = join_all(entries.iter().map(|entry| streams.deliveries(entry.at))).await;
        let mut harmless = Vec::new();
        let mut suspects = Vec::new();
        for (entry, deliveries) in entries.into_iter().zip(deliveries) {
            let deliveries = deliveries?;
            if deliveries > limits.max_deliveries && !in_flight.contains(entry.at) {
                suspects.push((entry, deliveries));
            } else {
                harmless.push(entry);
            }
        }
        let permit = in_flight.read_permit(limits.rows_in_flight);
        let Some(permit) = shutdown.run_until_cancelled(permit).await else { return Ok(()) };
        self.send(harmless).await?;
        drop(permit);
        for (entry, deliveries) in suspects {
            if shutdown.is_cancelled() {
                break;
            }
            self.process_quarantined(entry, deliveries).await?;
        }
        Ok(())
    }

    /// Sends an entry on when no other is in flight, and waits until it is settled. If the process does not survive that,
    /// the begun quarantine stays recorded; after [`MAX_QUARANTINES`] of them the entry becomes a dead letter unread.
    async fn process_quarantined(&self, entry: RawEntry, deliveries: u64) -> Result<(), ReadError> {
        let ReadContext { streams, in_flight, entries, shutdown, .. } = &*self.context;
        let RawEntry { at, fields: Some(fields) } = entry else {
            return self.send(vec![entry]).await.map(drop);
        };
        let Some(_permit) = shutdown.run_until_cancelled(in_flight.exclusive_permit()).await else {
            return Ok(());
        };
        let quarantines = streams.begin_quarantine(at).await?.saturating_sub(1);
        tracing::warn!(partition = %at.partition, id = %at.id, deliveries, quarantines, "delivered too often: quarantined");
        let entry = if quarantines < MAX_QUARANTINES {
            Entry { quarantined: true, ..Entry::decode(at, &fields, Instant::now()) }
        } else {
            let detail = format!(
                "delivered {deliveries} times, and consumers did not survive {quarantines} quarantines of it"
            );
            let dead_letter = DeadLetter::of_entry(Reason::MaxDeliveries, detail, &fields);
            Entry::discarded(at, dead_letter, Instant::now())
        };
        in_flight.admit(at, entry.likes.len());
        entries.send(entry).map_err(|_| ReadError::WriterGone)?;
        shutdown.run_until_cancelled(in_flight.empty()).await;
        Ok(())
    }

    /// Sends entries on, except those that are already in flight. Returns their number of rows.
    async fn send(&self, entries: Vec<RawEntry>) -> Result<usize, ReadError> {
        let context = &self.context;
        let read_at = Instant::now();
        let mut decoded = Vec::with_capacity(entries.len());
        let mut deleted = Vec::new();
        for RawEntry { at, fields } in entries {
            if let Some(fields) = fields {
                let producer = trace::producer(&context.tracing, &fields);
                decoded.push(Entry { producer, ..Entry::decode(at, &fields, read_at) });
            } else {
                deleted.push(at.id);
            }
        }
        if !deleted.is_empty() {
            self.record_lost(&deleted);
            context.streams.forget_deleted(self.partition, &deleted).await?;
        }
        context.in_flight.admit_new(&mut decoded);
        let rows = decoded.iter().map(|entry| entry.likes.len()).sum();
        for entry in decoded {
            context.entries.send(entry).map_err(|_| ReadError::WriterGone)?;
        }
        Ok(rows)
    }

    fn record_lost(&self, ids: &[EntryId]) {
        if let (Some(first), Some(last)) = (ids.first(), ids.last()) {
            self.context.metrics.lost(ids.len());
            // Never left out, however often it happens: these ids appear nowhere else.
            tracing::error!(
                partition = %self.partition, entries = ids.len(), %first, %last,
                "LOST: entries were deleted from the stream before they were stored"
            );
        }
    }

    async fn after_error(&self, error: &Error, backoff: &mut Backoff) {
        let ReadContext { streams, health, shutdown, .. } = &*self.context;
        health.failed(self.partition, error);
        if redis::error_code(error) == Some("NOGROUP") {
            match streams.ensure_group(self.partition).await {
                Ok(()) => return,
                Err(error) => tracing::warn!(error = one_line(&error), "a group is missing"),
            }
        }
        shutdown.run_until_cancelled(sleep(backoff.next_delay())).await;
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
