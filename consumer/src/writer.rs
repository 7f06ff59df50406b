//! From the process into Postgres: collect, write until it is stored, acknowledge. One batch is written after the other;
//! meanwhile the next one is gathered and the one before is acknowledged.

use std::{panic, sync::Arc, time::Duration};

use deadpool_postgres::Pool;
use shared::{
    error_chain::one_line,
    postgres::FailureClass,
    runtime::admin::Check,
    telemetry::{
        log_rate::LogRate,
        spans::{self, Span},
    },
};
use tokio::{
    pin,
    sync::mpsc,
    task::JoinError,
    time::{Instant, sleep},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    backoff::Backoff,
    batch::{Batch, Flush, Gathering, Limits},
    batch_span::BatchTracing,
    copy::{self, Attempt, Committed, WriteError},
    dead_letter::Reason,
    entry::{Entry, Position},
    foresight::Foresight,
    in_flight::InFlight,
    last_commits::LastCommits,
    metrics::{CommittedBatch, Metrics, StreamOperation},
    pooling::Transactions,
    stream::Streams,
};

/// Writes batches.
pub(crate) struct Writer {
    pub(crate) pool: Pool,
    pub(crate) limits: Limits,
    pub(crate) transactions: Transactions,
    pub(crate) foresight: Foresight,
    pub(crate) acknowledger: Acknowledger,
    pub(crate) check: Check,
}

impl Writer {
    /// Writes until no more entries come and all are stored and acknowledged. Dropped before that, it loses nothing:
    /// what is not acknowledged is delivered again.
    pub(crate) async fn run(mut self, mut entries: mpsc::UnboundedReceiver<Entry>) {
        let mut gathering = Gathering::new(self.limits);
        let mut gathered = None;
        let mut acking: Option<AbortOnDropHandle<()>> = None;
        loop {
            let next = match (gathered.take(), &mut acking) {
                (Some(batch), _) => Some((batch, Flush::Full)),
                (None, None) => gathering.batch(&mut entries).await,
                (None, Some(ack)) => tokio::select! {
                    next = gathering.batch(&mut entries) => next,
                    // What it has not released nobody can read on over: its panic is not to wait for the next batch.
                    acked = ack => {
                        heed(acked);
                        acking = None;
                        continue;
                    }
                },
            };
            let Some((mut batch, flush)) = next else { break };
            let span = self.acknowledger.tracing.start(&mut batch, flush);
            let committed;
            (committed, gathered) = {
                let write = self.write(batch, flush, span.as_ref());
                pin!(write);
                tokio::select! {
                    biased;
                    committed = &mut write => (committed, None),
                    batch = gathering.full_batch(&mut entries) => (write.await, Some(batch)),
                }
            };
            let ack = tokio::spawn(self.acknowledger.clone().ack(committed, span));
            end(acking.replace(AbortOnDropHandle::new(ack))).await;
        }
        end(acking).await;
    }

    /// Tries for as long as it takes. The batch is held meanwhile and nothing more is read: likes wait in Redis.
    async fn write(&mut self, mut batch: Batch, flush: Flush, span: Option<&Span>) -> Committed {
        let (likes, rows) = (batch.likes(), batch.rows());
        let (mut retry, mut halt) = (Backoff::retry(), Backoff::halt());
        let (metrics, tracing) = (Arc::clone(&self.acknowledger.metrics), self.acknowledger.tracing.clone());
        let ended = |attempt: &Attempt<'_>| {
            metrics.transaction(attempt);
            tracing.transaction(span, attempt);
        };
        loop {
            let foresight = Some(&mut self.foresight);
            let written = copy::write(&self.pool, self.transactions, foresight, batch, &ended).await;
            let (unwritten, error) = match written {
                Ok(committed) => {
                    if rows > 0 {
                        let batch = CommittedBatch {
                            flush,
                            likes,
                            rows,
                            inserted: committed.inserted(),
                            rejected: committed.rejected(),
                            restaged: committed.restaged(),
                            waited: committed.waited(),
                        };
                        metrics.committed(&batch);
                        BatchTracing::committed(span, &batch);
                        if self.check.pass() {
                            tracing::info!("Postgres stores likes again");
                        }
                    }
                    self.acknowledger.in_flight.go_on();
                    return committed;
                }
                Err(failed) => failed,
            };
            self.acknowledger.in_flight.hold();
            let delay = match error.class() {
                FailureClass::Halt => halt.next_delay(),
                FailureClass::Retry | FailureClass::Reject => retry.next_delay(),
            };
            self.tell_of_failure(&unwritten, &error, delay, span);
            self.wait_alone_or_not(&unwritten, delay).await;
            batch = unwritten;
        }
    }

    fn tell_of_failure(&self, batch: &Batch, error: &WriteError, retry_in: Duration, span: Option<&Span>) {
        self.acknowledger.metrics.failed(error.class());
        let (why, trace_id, span_id) = (one_line(error), spans::trace_id(span), spans::span_id(span));
        let (rows, held_ms) = (batch.rows(), batch.first_read_at().elapsed().as_millis());
        if error.class() == FailureClass::Halt {
            tracing::error!(
                error = why,
                rows,
                held_ms,
                ?retry_in,
                trace_id,
                span_id,
                "halted: nothing is stored until this is mended"
            );
            self.check.fail(format!("halted until this is mended: {why}"));
        } else {
            tracing::warn!(error = why, rows, held_ms, ?retry_in, trace_id, span_id, "not stored yet");
            self.check.fail(why);
        }
    }

    /// An entry that is tried alone has survived this try: that it failed was not its fault.
    async fn wait_alone_or_not(&self, batch: &Batch, delay: Duration) {
        let Some(at) = batch.alone() else {
            return sleep(delay).await;
        };
        if let Err(error) = self.acknowledger.streams.end_try_alone(at).await {
            tracing::debug!(%error, "an entry's lonely try stays on record");
        }
        sleep(delay).await;
        if let Err(error) = self.acknowledger.streams.begin_try_alone(at).await {
            tracing::debug!(%error, "an entry's lonely try is not on record");
        }
    }
}

/// Waits for the end of a task.
async fn end(task: Option<AbortOnDropHandle<()>>) {
    if let Some(task) = task {
        heed(task.await);
    }
}

/// A task's panic is ours.
fn heed(ended: Result<(), JoinError>) {
    if let Err(panicked) = ended
        && panicked.is_panic()
    {
        panic::resume_unwind(panicked.into_panic());
    }
}

/// Acknowledges batches.
#[derive(Clone)]
pub(crate) struct Acknowledger {
    pub(crate) streams: Streams,
    pub(crate) in_flight: Arc<InFlight>,
    pub(crate) last_commits: Arc<LastCommits>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) tracing: BatchTracing,
    pub(crate) log_rates: Arc<LogRates>,
}

/// Of lines that every batch could bring.
#[derive(Default)]
pub(crate) struct LogRates {
    dead_letters: LogRate,
    unacknowledged: LogRate,
}

impl Acknowledger {
    /// Acknowledges what is stored. What Redis does not take now stays pending and comes again: after a while it is
    /// claimed, found stored already, and acknowledged then.
    async fn ack(self, committed: Committed, span: Option<Span>) {
        let started = Instant::now();
        let acked = self.streams.ack(committed).await;
        let (took, error) = (started.elapsed(), acked.failed.as_ref().map(|(_, error)| error));
        self.metrics.redis_took(StreamOperation::Ack, took, error);
        self.tracing.acknowledged(span.as_ref(), took, error);
        self.last_commits.note(acked.entries.iter().map(|entry| entry.at.partition));
        self.metrics.acknowledged(acked.acknowledged);
        self.tell_of_dead_letters(&acked.dead_letters, span.as_ref());
        if let Some((entries, error)) = acked.failed
            && let Some(entries) = self.log_rates.unacknowledged.note(entries)
        {
            let trace_id = spans::trace_id(span.as_ref());
            tracing::warn!(%error, entries, trace_id, "stored, but not acknowledged: they will be delivered again");
        }
        self.in_flight.release(acked.entries.iter().map(|entry| (entry.at, entry.likes)));
    }

    /// There may be very many.
    fn tell_of_dead_letters(&self, letters: &[(Position, Reason)], span: Option<&Span>) {
        for (_, reason) in letters {
            self.metrics.dead_letter(*reason);
        }
        if let Some((last, reason)) = letters.last()
            && let Some(letters) = self.log_rates.dead_letters.note(letters.len())
        {
            let trace_id = spans::trace_id(span);
            tracing::warn!(
                letters, last_partition = %last.partition, last_id = %last.id, last_reason = reason.code(), trace_id,
                "dead letters"
            );
        }
    }
}
