//! From the process into Postgres: collect, write until it is stored, acknowledge. One batch is written after the other;
//! meanwhile the next one is gathered and the one before is acknowledged.

use std::{panic, sync::Arc, time::Duration};

use deadpool_postgres::Pool;
use shared::{
    backoff::Backoff,
    error_chain::one_line,
    postgres::FailureClass,
    runtime::admin::Check,
    telemetry::spans::{self, Span},
};
use tokio::{pin, sync::mpsc, task::JoinError, time::sleep};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    entry::Entry,
    metrics::CommittedBatch,
    store::{
        batch::Batch,
        error::WriteError,
        gathering::{BatchLimits, Flush, Gathering},
        predictor::InsertPredictor,
        proof::Committed,
        session::Transactions,
        write::{self, Attempt},
    },
    trace::BatchTracing,
    write::acknowledger::Acknowledger,
};

/// Writes batches.
pub(crate) struct Writer {
    pub(crate) pool: Pool,
    pub(crate) limits: BatchLimits,
    pub(crate) transactions: Transactions,
    pub(crate) predictor: InsertPredictor,
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
                        propagate_panic(acked);
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
            let predictor = Some(&mut self.predictor);
            let written = write::write(&self.pool, self.transactions, predictor, batch, &ended).await;
            let (unwritten, error) = match written {
                Ok(committed) => {
                    if rows > 0 {
                        let batch = CommittedBatch {
                            flush,
                            likes,
                            rows,
                            inserted: committed.inserted(),
                            rejected: committed.rejected(),
                            fell_back: committed.fell_back(),
                            end_to_end_latencies: committed.end_to_end_latencies(),
                        };
                        metrics.committed(&batch);
                        BatchTracing::committed(span, &batch);
                        if self.check.pass() {
                            tracing::info!("Postgres stores likes again");
                        }
                    }
                    self.acknowledger.in_flight.resume();
                    return committed;
                }
                Err(failed) => failed,
            };
            self.acknowledger.in_flight.pause();
            let delay = match error.class() {
                FailureClass::Halt => halt.next_delay(),
                FailureClass::Retry | FailureClass::Reject => retry.next_delay(),
            };
            self.log_failure(&unwritten, &error, delay, span);
            self.wait_before_retry(&unwritten, delay).await;
            batch = unwritten;
        }
    }

    fn log_failure(&self, batch: &Batch, error: &WriteError, retry_in: Duration, span: Option<&Span>) {
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
    async fn wait_before_retry(&self, batch: &Batch, delay: Duration) {
        let Some(at) = batch.quarantined() else {
            return sleep(delay).await;
        };
        if let Err(error) = self.acknowledger.streams.end_quarantine(at).await {
            tracing::debug!(%error, "an entry's lonely try stays on record");
        }
        sleep(delay).await;
        if let Err(error) = self.acknowledger.streams.begin_quarantine(at).await {
            tracing::debug!(%error, "an entry's lonely try is not on record");
        }
    }
}

/// Waits for the end of a task.
async fn end(task: Option<AbortOnDropHandle<()>>) {
    if let Some(task) = task {
        propagate_panic(task.await);
    }
}

/// A task's panic is ours.
fn propagate_panic(ended: Result<(), JoinError>) {
    if let Err(panicked) = ended
        && panicked.is_panic()
    {
        panic::resume_unwind(panicked.into_panic());
    }
}
