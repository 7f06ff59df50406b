//! From the process into Postgres: collect, write until it is stored, acknowledge. One batch is written after the other;
//! meanwhile the next one is gathered and the one before is acknowledged.

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

/// Writes batches.
pub(crate) struct Writer<B, S> {
    pub(crate) store: B,
    pub(crate) limits: BatchLimits,
    pub(crate) acknowledger: Acknowledger<S>,
    pub(crate) check: Check,
}

impl<B: BatchStore, S: GroupStream> Writer<B, S> {
    /// Writes until no more entries come and all are stored and acknowledged. Dropped before that, it loses nothing:
    /// entries that are not acknowledged are delivered again.
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
                    // Entries that it has not released block the readers: its panic must not wait for the next batch.
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

    /// Tries for as long as it takes. The batch is kept meanwhile and nothing more is read: likes wait in Redis.
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
            self.wait_before_retry(&unwritten, delay).await;
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
            tracing::info!("Postgres stores likes again");
        }
    }

    fn log_failure(&self, batch: &Batch, error: &WriteError, retry_in: Duration, span: Option<&Span>) {
        self.acknowledger.metrics.failed(error.class());
        let why = one_line(error);
        let trace_id = spans::trace_id(span);
        let span_id = spans::span_id(span);
        let rows = batch.rows();
        let held_ms = batch.first_read_at().elapsed().as_millis();
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

    /// Waits. A quarantined entry has survived its try: the failure was not its fault, and a crash during the wait would
    /// not be, either.
    async fn wait_before_retry(&self, batch: &Batch, delay: Duration) {
        let Some(at) = batch.quarantined() else {
            return sleep(delay).await;
        };
        if let Err(error) = self.acknowledger.streams.end_quarantine(at).await {
            tracing::debug!(%error, "the end of an entry's quarantine is not recorded");
        }
        sleep(delay).await;
        if let Err(error) = self.acknowledger.streams.begin_quarantine(at).await {
            tracing::debug!(%error, "the start of an entry's quarantine is not recorded");
        }
    }
}

/// Waits for the end of a task, and propagates its panic.
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
