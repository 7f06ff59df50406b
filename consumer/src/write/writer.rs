//! Writer: gathers entries into batches, writes each batch until it is stored, and acknowledges it. One batch is written at
//! a time. Meanwhile the next batch is gathered and the previous batch is acknowledged.

use std::{panic, sync::Arc, time::Duration};

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
        batch_store::BatchStore,
        error::WriteError,
        gathering::{BatchLimits, Flush, Gathering},
        proof::Committed,
        write::Attempt,
    },
    stream::GroupStream,
    task,
    trace::BatchTracing,
    write::acknowledger::Acknowledger,
};

/// Writes batches to Postgres, one at a time.
pub(crate) struct Writer<B, S> {
    pub(crate) store: B,
    pub(crate) limits: BatchLimits,
    pub(crate) acknowledger: Acknowledger<S>,
    pub(crate) check: Check,
}

impl<B: BatchStore, S: GroupStream> Writer<B, S> {
    /// Runs until the channel is closed and all entries are stored and acknowledged. Cancel safe: entries that are not
    /// acknowledged are redelivered.
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
                    // A panic must propagate immediately, not with the next batch: entries that were not released
                    // block the readers.
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
            let ack = task::spawn(Box::pin(self.acknowledger.clone().ack(committed, span)));
            join(acking.replace(ack)).await;
        }
        join(acking).await;
    }

    /// Writes a batch and retries until it is stored. Reading is paused from the first failure to the next success, so the
    /// backlog stays in Redis.
    async fn write(&mut self, mut batch: Batch, flush: Flush, span: Option<&Span>) -> Committed {
        let likes = batch.likes();
        let rows = batch.rows();
        let mut retry = Backoff::retry();
        let mut halt = Backoff::halt();
        let metrics = Arc::clone(&self.acknowledger.metrics);
        let tracing = self.acknowledger.tracing.clone();
        let ended = |attempt: &Attempt<'_>| {
            metrics.transaction(attempt);
            tracing.transaction(span, attempt);
        };
        loop {
            let (unwritten, error) = match self.store.write(batch, &ended).await {
                Ok(committed) => {
                    if rows > 0 {
                        self.record(&committed, flush, likes, rows, span);
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
            sleep(delay).await;
            batch = unwritten;
        }
    }

    fn record(&self, committed: &Committed, flush: Flush, likes: usize, rows: usize, span: Option<&Span>) {
        let batch = CommittedBatch {
            flush,
            likes,
            rows,
            inserted: committed.inserted(),
            rejected: committed.rejected(),
            fell_back: committed.fell_back(),
            end_to_end_latencies: committed.end_to_end_latencies(),
        };
        self.acknowledger.metrics.committed(&batch);
        BatchTracing::committed(span, &batch);
        if self.check.pass() {
            tracing::info!("writes to Postgres recovered");
        }
    }

    fn log_failure(&self, batch: &Batch, error: &WriteError, retry_in: Duration, span: Option<&Span>) {
        self.acknowledger.metrics.failed(error.class());
        let cause = one_line(error);
        let trace_id = spans::trace_id(span);
        let span_id = spans::span_id(span);
        let rows = batch.rows();
        let held_ms = batch.first_read_at().elapsed().as_millis();
        let retry_in_ms = retry_in.as_millis();
        if error.class() == FailureClass::Halt {
            tracing::error!(
                error = cause,
                rows,
                held_ms,
                retry_in_ms,
                trace_id,
                span_id,
                remedy = error.remedy(),
                "batch failed, writes to Postgres are halted"
            );
            self.check.fail(format!("writes to Postgres are halted: {cause}; {}", error.remedy()));
        } else {
            tracing::warn!(
                error = cause,
                rows,
                held_ms,
                retry_in_ms,
                trace_id,
                span_id,
                "batch failed, retrying"
            );
            self.check.fail(cause);
        }
    }
}

/// Waits for a task to end and propagates its panic.
async fn join(task: Option<AbortOnDropHandle<()>>) {
    if let Some(task) = task {
        propagate_panic(task.await);
    }
}

fn propagate_panic(ended: Result<(), JoinError>) {
    if let Err(panicked) = ended
        && panicked.is_panic()
    {
        panic::resume_unwind(panicked.into_panic());
    }
}

#[cfg(test)]
mod tests;
