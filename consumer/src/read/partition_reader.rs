//! Partition reader: the task that reads one partition. It recovers this consumer's own pending entries, claims pending
//! entries of other consumers, tries suspect entries in quarantine, and reads new entries.
//!
//! A reader has one command in flight and never drops it midway. If Redis delivers an entry and the reply is lost, the
//! entry stays pending until the reader recovers it.

use std::{collections::HashSet, sync::Arc, time::Duration};

use fred::prelude::Error;
use futures_util::future::try_join_all;
use shared::{
    backoff::Backoff,
    error_chain::one_line,
    redis,
    telemetry::{log_rate::LogRate, spans::Tracing},
    wire::partition::Partition,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    entry::{Entry, EntryId, Position, RawEntry},
    group::ownership::Ownership,
    in_flight::{InFlight, InFlightLimits},
    metrics::{Metrics, StreamOperation},
    read::{
        health::ReadHealth,
        pacing::{ClaimRound, PageSize, PollInterval},
        quarantine::{Quarantine, Suspect},
    },
    stream::{Claimed, ClaimedDeparted, GroupStream, LIVENESS_TIMEOUT, Page},
    trace,
};

/// Maximum number of pending entries per claim.
const CLAIM_COUNT: u64 = 100;

/// Limits shared by all partition readers.
#[derive(Clone, Copy)]
pub(crate) struct ReadLimits {
    pub(crate) in_flight: InFlightLimits,
    /// Time limit of a command.
    pub(crate) redis_timeout: Duration,
    /// Minimum poll interval, see [`crate::read::pacing::poll_min`].
    pub(crate) poll_min: Duration,
    /// Minimum idle time before an entry that is pending with a live member is claimed.
    pub(crate) claim_min_idle: Duration,
    /// Number of deliveries beyond which an entry is quarantined.
    pub(crate) max_deliveries: u64,
    /// Start of the ticks shared by all readers.
    pub(crate) started: Instant,
}

/// Components shared by all partition readers.
pub(crate) struct ReadContext<S> {
    pub(crate) streams: S,
    pub(crate) limits: ReadLimits,
    pub(crate) in_flight: Arc<InFlight>,
    /// Unbounded channel to the writer. The in-flight limit bounds it.
    pub(crate) entries: mpsc::UnboundedSender<Entry>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) tracing: Tracing,
    pub(crate) health: ReadHealth,
    /// Cancelled when reading must stop.
    pub(crate) shutdown: CancellationToken,
}

/// Reads one partition, decodes its entries and sends them to the writer.
pub(crate) struct PartitionReader<S> {
    partition: Partition,
    context: Arc<ReadContext<S>>,
    ownership: watch::Receiver<Ownership>,
    wanted: watch::Receiver<bool>,
    /// Whether Redis may have delivered entries in a reply that was lost: then the id after which own pending entries are read.
    recovering: Option<EntryId>,
    quarantine: Quarantine,
    /// Lost entries that are reported, and may still be in the pending entries list.
    reported_lost: HashSet<EntryId>,
    page_size: PageSize,
    poll: PollInterval,
    claims: ClaimRound,
    log_rates: LogRates,
}

/// Rate limits of log lines that every read could cause.
#[derive(Default)]
struct LogRates {
    recovered: LogRate,
    claimed: LogRate,
}

/// Error of one step of a reader.
enum ReadError {
    /// The writer has ended and receives no more entries.
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
        let page_size = PageSize::new(context.limits.redis_timeout);
        Self {
            partition,
            context,
            ownership,
            wanted,
            recovering: must_recover_pending.then(EntryId::default),
            quarantine: Quarantine::default(),
            reported_lost: HashSet::new(),
            page_size,
            poll,
            claims,
            log_rates: LogRates::default(),
        }
    }

    /// Reads until the partition is unwanted, until shutdown, or until the writer ends. If replies may have been lost, their
    /// entries are recovered before the reader ends, and suspects are settled, except at shutdown.
    pub(crate) async fn run(mut self) {
        let mut backoff = Backoff::server();
        while !self.context.shutdown.is_cancelled() && (self.is_busy() || *self.wanted.borrow()) {
            match self.step().await {
                Ok(()) => {
                    backoff = Backoff::server();
                    self.context.health.passed(self.partition);
                }
                Err(ReadError::WriterGone) => return,
                Err(ReadError::Redis(error)) => {
                    // Redis may have delivered entries in the lost reply.
                    self.recovering = Some(EntryId::default());
                    self.after_error(&error, &mut backoff).await;
                }
            }
        }
        self.end_quarantine_at_shutdown().await;
        self.context.health.passed(self.partition);
    }

    fn is_busy(&self) -> bool {
        self.recovering.is_some() || self.quarantine.is_busy()
    }

    async fn step(&mut self) -> Result<(), ReadError> {
        if self.ownership.has_changed().unwrap_or(false) {
            self.ownership.mark_unchanged();
            self.claims.begin();
        }
        if self.context.in_flight.take_redelivery(self.partition) {
            self.recovering = Some(EntryId::default());
        }
        self.advance_quarantine().await?;
        // Suspects are settled before more entries are redelivered. Meanwhile new entries are read.
        match self.recovering {
            Some(after) if !self.quarantine.is_busy() => self.recover_own_pending(after).await,
            None if !self.quarantine.is_busy() && self.claims.is_due() => self.claim().await,
            _ if *self.wanted.borrow() => self.read_new().await,
            _ => {
                self.wait_for_quarantine().await;
                Ok(())
            }
        }
    }

    async fn read_new(&mut self) -> Result<(), ReadError> {
        let context = Arc::clone(&self.context);
        let permit = context.in_flight.read_permit(context.limits.in_flight);
        let Some(mut permit) = self.while_wanted(permit).await else { return Ok(()) };
        let readers = self.ownership.borrow().to_read().count();
        let page = self.page_size.page_of_new(permit.left, readers);
        permit.reserve(self.page_size.expected_bytes(page));
        let started = Instant::now();
        let read = context.streams.read_new(self.partition, page);
        let entries = context.metrics.timed(StreamOperation::Read, read).await?;
        permit.reserve(entries.iter().map(RawEntry::bytes).sum());
        self.page_size.arrived(page, &entries, started.elapsed());
        let read = entries.len();
        context.metrics.read(read);
        let rows = self.send(entries, context.limits.in_flight).await?;
        drop(permit);
        self.page_size.decoded(read, rows);
        let next_read = self.poll.next_read(context.limits.started, read);
        if (read as u64) < page.count {
            self.while_wanted(sleep_until(next_read)).await;
        }
        Ok(())
    }

    /// Reads a page of the entries that were delivered to this consumer and never acknowledged. Waits until no entry of the
    /// partition is in flight, because in-flight entries are pending, too.
    async fn recover_own_pending(&mut self, after: EntryId) -> Result<(), ReadError> {
        let context = Arc::clone(&self.context);
        let ReadContext { streams, in_flight, metrics, shutdown, .. } = &*context;
        if shutdown.run_until_cancelled(in_flight.drained(self.partition)).await.is_none() {
            return Ok(());
        }
        let page = self.page_of_redelivered();
        let started = Instant::now();
        let entries = streams.read_own_pending(self.partition, after, page).await?;
        self.page_size.arrived(page, &entries, started.elapsed());
        let Some(last) = entries.last().map(|last| last.at.id) else {
            self.recovering = None;
            return Ok(());
        };
        let entries = self.not_in_flight(entries);
        if let Some(entries) = self.log_rates.recovered.record(entries.len()) {
            tracing::info!(partition = %self.partition, entries, "recovering own pending entries");
        }
        metrics.reclaimed(entries.len());
        self.send_redelivered(entries).await?;
        self.recovering = Some(last);
        Ok(())
    }

    /// Claims pending entries of departed consumers. If no consumer has departed, claims a page of entries that were idle for
    /// `CLAIM_MIN_IDLE`. Entries in flight in this process stay with it: a claim ends their idle time and counts no delivery.
    async fn claim(&mut self) -> Result<(), ReadError> {
        let context = Arc::clone(&self.context);
        let ReadContext { streams, limits, in_flight, metrics, .. } = &*context;
        let permit = in_flight.read_permit(limits.in_flight);
        let Some(permit) = self.while_wanted(permit).await else { return Ok(()) };
        drop(permit);
        let page = self.page_of_redelivered();
        let started = Instant::now();
        let members = Arc::clone(&self.ownership.borrow().members);
        streams.restamp(self.partition, &members, self.claims.cursor).await?;
        let liveness_timeout_ms = milliseconds(LIVENESS_TIMEOUT);
        let departed = streams.claim_departed(self.partition, &members, liveness_timeout_ms, page);
        if let Some(ClaimedDeparted { from, entries, deleted }) = departed.await? {
            self.page_size.arrived(page, &entries, started.elapsed());
            let is_claimed = !entries.is_empty();
            let entries = self.not_in_flight(entries);
            self.record_claimed(entries.len(), &from);
            let removed = self.report_lost(deleted).await?;
            // Nothing is left of this consumer but deleted entries that are in flight here: they must not stop all other claims.
            if removed > 0 || is_claimed {
                return self.send_redelivered(entries).await;
            }
        }
        let min_idle_ms = milliseconds(limits.claim_min_idle);
        let started = Instant::now();
        let claimed = streams.claim(self.partition, min_idle_ms, self.claims.cursor, page);
        let Claimed { entries, deleted, cursor } = metrics.timed(StreamOperation::Claim, claimed).await?;
        self.page_size.arrived(page, &entries, started.elapsed());
        let entries = self.not_in_flight(entries);
        self.record_claimed(entries.len(), "any member, idle for CLAIM_MIN_IDLE");
        self.report_lost(deleted).await?;
        self.claims.advance(cursor);
        self.send_redelivered(entries).await
    }

    /// Returns the page for redelivered entries: pending entries of this consumer, or claimed ones.
    fn page_of_redelivered(&self) -> Page {
        let limits = InFlightLimits { rows: usize::MAX, ..self.context.limits.in_flight };
        let readers = self.ownership.borrow().to_read().count();
        self.page_size.page(limits, readers).at_most(CLAIM_COUNT)
    }

    /// Waits for `wait`. Returns `None` if the partition becomes unwanted, the quarantine can advance, or the shutdown begins
    /// first.
    async fn while_wanted<T>(&self, wait: impl Future<Output = T>) -> Option<T> {
        let mut wanted = self.wanted.clone();
        tokio::select! {
            done = wait => Some(done),
            _ = wanted.wait_for(|wanted| !wanted) => None,
            () = self.quarantine.attention(&self.context.in_flight) => None,
            () = self.context.shutdown.cancelled() => None,
        }
    }

    fn record_claimed(&self, entries: usize, from: &str) {
        self.context.metrics.reclaimed(entries);
        if let Some(entries) = self.log_rates.claimed.record(entries) {
            tracing::info!(partition = %self.partition, entries, from, "reclaimed pending entries");
        }
    }

    /// Returns the entries that are not in flight in this process.
    fn not_in_flight(&self, mut entries: Vec<RawEntry>) -> Vec<RawEntry> {
        entries.retain(|entry| !self.context.in_flight.contains(entry.at));
        entries
    }

    /// Sends redelivered entries to the writer. Those that were delivered more than `max_deliveries` times are suspects: they
    /// may have crashed consumers.
    async fn send_redelivered(&mut self, entries: Vec<RawEntry>) -> Result<(), ReadError> {
        if entries.is_empty() {
            return Ok(());
        }
        let context = Arc::clone(&self.context);
        let ReadContext { streams, limits, in_flight, shutdown, .. } = &*context;
        let (entries, deleted): (Vec<_>, Vec<_>) =
            entries.into_iter().partition(|entry| entry.fields.is_some());
        self.report_lost(deleted.iter().map(|entry| entry.at).collect()).await?;
        // Counted at once: this process holds the entries already, and may die of it.
        let positions: Vec<Position> = entries.iter().map(|entry| entry.at).collect();
        let deliveries = streams.deliver(&positions).await?;
        let mut harmless = Vec::new();
        let mut suspects = Vec::new();
        for (entry, deliveries) in entries.into_iter().zip(deliveries) {
            if deliveries > limits.max_deliveries {
                suspects.push(Suspect { entry, deliveries });
            } else if deliveries > 0 {
                harmless.push(entry);
            }
        }
        self.quarantine.add(suspects);
        let permit = in_flight.read_permit(limits.in_flight);
        let Some(mut permit) = shutdown.run_until_cancelled(permit).await else { return Ok(()) };
        permit.reserve(harmless.iter().map(RawEntry::bytes).sum());
        self.send(harmless, limits.in_flight).await.map(drop)
    }

    /// Decodes entries and sends them to the writer, except those already in flight, each as soon as the limits allow.
    /// At shutdown, the others stay pending. Returns the number of rows sent.
    async fn send(&mut self, entries: Vec<RawEntry>, limits: InFlightLimits) -> Result<usize, ReadError> {
        let context = Arc::clone(&self.context);
        let ReadContext { in_flight, entries: writer, tracing, shutdown, .. } = &*context;
        let read_at = Instant::now();
        let mut rows = 0;
        for entry in entries {
            let bytes = entry.bytes();
            let RawEntry { at, fields: Some(fields) } = entry else { continue };
            let is_new = tokio::select! {
                biased;
                is_new = in_flight.admit_within(limits, at, bytes) => is_new,
                () = shutdown.cancelled() => break,
            };
            if is_new {
                let producer = trace::producer(tracing, &fields);
                let entry = Entry { producer, ..Entry::decode(at, &fields, read_at) };
                in_flight.decoded(at, entry.likes.len());
                rows += entry.likes.len();
                writer.send(entry).map_err(|_| ReadError::WriterGone)?;
            }
        }
        Ok(rows)
    }

    /// Reports deleted entries that no consumer stores, then removes them from the pending entries list. In this order, so that
    /// the loss is reported even if this process dies in between. An entry in flight is stored and acknowledged. One that is
    /// stored, but whose acknowledgement failed, is only removed. Returns the number of removed entries.
    async fn report_lost(&mut self, mut deleted: Vec<Position>) -> Result<usize, ReadError> {
        let context = Arc::clone(&self.context);
        let partition = self.partition;
        deleted.retain(|at| !context.in_flight.contains(*at));
        // It may have been in flight until now, and acknowledged.
        let deliveries = deleted.iter().map(|at| context.streams.deliveries(*at));
        let deliveries = try_join_all(deliveries).await?;
        let removed = deleted.into_iter().zip(deliveries).filter(|(_, deliveries)| *deliveries > 0);
        let removed: Vec<Position> = removed.map(|(at, _)| at).collect();
        let stored = context.in_flight.stored_of(&removed);
        let lost = removed.iter().filter(|at| !stored.contains(at)).map(|at| at.id);
        let unreported: Vec<EntryId> = lost.filter(|id| !self.reported_lost.contains(id)).collect();
        if let (Some(first), Some(last)) = (unreported.first(), unreported.last()) {
            context.metrics.lost(unreported.len());
            // Not rate-limited: these ids are reported nowhere else.
            tracing::error!(
                %partition, entries = unreported.len(), %first, %last,
                "data loss: entries were deleted from the stream before they were stored"
            );
        }
        self.reported_lost.extend(unreported);
        if !removed.is_empty() {
            context.streams.forget_deleted(&removed).await?;
            self.reported_lost.clear();
        }
        Ok(removed.len())
    }

    fn after_lost_reply(&mut self, is_unanswered: bool) {
        let before = self.page_size.patience();
        self.page_size.lost(is_unanswered);
        // The first extension may be for a server that is away.
        if let (Some(before), Some(time_limit)) = (before, self.page_size.patience()) {
            let time_limit = humantime::format_duration(time_limit);
            tracing::warn!(
                partition = %self.partition, waited = %humantime::format_duration(before), %time_limit,
                "no reply to a read of one entry, reading it again with more time"
            );
        }
    }

    async fn after_error(&mut self, error: &Error, backoff: &mut Backoff) {
        let context = Arc::clone(&self.context);
        let ReadContext { streams, health, shutdown, .. } = &*context;
        health.failed(self.partition, error);
        if redis::is_away(error) {
            self.after_lost_reply(redis::is_unanswered(error));
        }
        if redis::error_code(error) == Some("NOGROUP") {
            match streams.ensure_group(self.partition).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(error = one_line(&error), "cannot create the missing consumer group");
                }
            }
        }
        shutdown.run_until_cancelled(sleep(backoff.next_delay())).await;
    }
}

mod quarantine;

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
