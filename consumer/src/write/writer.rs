//! Writer: gathers entries into batches, writes them, and acknowledges the entries that are settled. One batch is written at
//! a time. Meanwhile the next batch is gathered and the previous batch is acknowledged. Rows that Postgres does not take while
//! it takes others are held, and tried again between batches.

use std::{future, panic, sync::Arc, time::Duration};

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
        batch::{Batch, Remainder, Written},
        batch_store::BatchStore,
        error::WriteError,
        gathering::{BatchLimits, Flush, Gathering},
        proof::Committed,
        write::Attempt,
    },
    stream::GroupStream,
    task,
    trace::BatchTracing,
    write::{
        acknowledger::Acknowledger,
        held::{Held, HeldPass},
    },
};

/// Writes batches to Postgres, one at a time.
pub(crate) struct Writer<B, S> {
    pub(crate) store: B,
    pub(crate) limits: BatchLimits,
    pub(crate) acknowledger: Acknowledger<S>,
    pub(crate) check: Check,
    /// Whether nothing of the last batch was stored.
    pub(crate) stalled: bool,
}

/// Work for the writer.
enum Next {
    /// A gathered batch.
    Batch(Batch, Flush),
    /// Held rows that are due.
    Held(Held),
}

impl<B: BatchStore, S: GroupStream> Writer<B, S> {
    /// Runs until the channel is closed and all entries are stored and acknowledged. Cancel safe: entries that are not
    /// acknowledged are redelivered.
    pub(crate) async fn run(mut self, mut entries: mpsc::UnboundedReceiver<Entry>) {
        let mut gathering = Gathering::new(self.limits);
        let mut gathered = None;
        let mut held: Option<Held> = None;
        let mut acking: Option<AbortOnDropHandle<()>> = None;
        let mut is_open = true;
        while is_open || held.is_some() {
            let next = if let Some(due) = held.take_if(|held| held.is_due()) {
                Next::Held(due)
            } else if let Some(batch) = gathered.take() {
                Next::Batch(batch, Flush::Full)
            } else {
                tokio::select! {
                    // A panic must propagate immediately, not with the next batch: entries that were not released
                    // block the readers.
                    acked = end_of(&mut acking) => {
                        propagate_panic(acked);
                        acking = None;
                        continue;
                    }
                    batch = gathering.batch(&mut entries), if is_open => {
                        let Some((batch, flush)) = batch else {
                            is_open = false;
                            continue;
                        };
                        Next::Batch(batch, flush)
                    }
                    () = Held::due(held.as_ref()) => continue,
                }
            };
            let (mut batch, flush, held_pass) = match next {
                Next::Batch(batch, flush) => (batch, Some(flush), None),
                Next::Held(held) => {
                    let (batch, pass) = held.begin();
                    (batch, None, Some(pass))
                }
            };
            let span = flush.and_then(|flush| self.acknowledger.tracing.start(&mut batch, flush));
            let written;
            (written, gathered) = {
                let write = self.write(batch, flush, span.as_ref());
                pin!(write);
                tokio::select! {
                    biased;
                    written = &mut write => (written, gathered),
                    batch = gathering.full_batch(&mut entries), if gathered.is_none() => (write.await, Some(batch)),
                }
            };
            held = Self::hold(held, held_pass, &written.committed, written.remainder);
            self.acknowledger.in_flight.set_held(held.iter().flat_map(Held::positions));
            self.report(flush.is_some(), &written.committed, held.as_ref());
            if !written.committed.is_empty() {
                let ack = self.acknowledger.clone().ack(written.committed, span);
                join(acking.replace(task::spawn(Box::pin(ack)))).await;
            }
        }
        join(acking).await;
    }

    /// Makes a pass over a batch and reports its outcome.
    async fn write(&mut self, batch: Batch, flush: Option<Flush>, span: Option<&Span>) -> Written {
        let rows = batch.rows();
        let written = self.store(batch, span).await;
        if rows > 0 {
            self.record(&written.committed, flush, rows, span);
        }
        if let Some(remainder) = &written.remainder {
            self.log_remainder(remainder, span);
        }
        written
    }

    /// Makes a pass over a batch. Retries errors that say nothing about rows. Reading is paused from the first such error to
    /// the next success, so the backlog stays in Redis.
    async fn store(&mut self, mut batch: Batch, span: Option<&Span>) -> Written {
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
                Ok(written) => {
                    self.acknowledger.in_flight.resume();
                    return written;
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

    /// Returns the rows to hold after a pass.
    fn hold(
        held: Option<Held>,
        held_pass: Option<HeldPass>,
        committed: &Committed,
        remainder: Option<Remainder>,
    ) -> Option<Held> {
        let mut held = match (held, remainder, held_pass) {
            (held, None, _) => held,
            (Some(held), Some(remainder), _) => Some(held.merge(remainder)),
            (None, Some(remainder), Some(pass)) => Some(pass.end(remainder, committed.has_progress())),
            (None, Some(remainder), None) => Some(Held::new(remainder)),
        };
        if let Some(held) = held.as_mut().filter(|_| committed.tally().inserted > 0) {
            held.table_took_rows();
        }
        held
    }

    /// Reports readiness after a pass. Held rows alone do not fail the check while Postgres stores other rows.
    fn report(&mut self, is_of_batch: bool, committed: &Committed, held: Option<&Held>) {
        self.check.note(self.store.warnings().join("; "));
        if committed.has_progress() || held.is_none() {
            self.stalled = false;
        } else if is_of_batch {
            self.stalled = true;
        }
        match held.filter(|_| self.stalled) {
            Some(held) => drop(self.check.fail(held.reason())),
            None => {
                if self.check.pass() {
                    tracing::info!("writes to Postgres recovered");
                }
            }
        }
    }

    fn record(&self, committed: &Committed, flush: Option<Flush>, rows: usize, span: Option<&Span>) {
        let tally = committed.tally();
        let batch = CommittedBatch {
            flush,
            rows,
            tally,
            fell_back: committed.fell_back(),
            end_to_end_latencies: committed.end_to_end_latencies(),
        };
        self.acknowledger.metrics.committed(&batch);
        BatchTracing::committed(span, &batch);
        let discarded = usize::try_from(tally.discarded).unwrap_or(usize::MAX);
        if let Some(likes) = self.acknowledger.log_rates.discarded.record(discarded) {
            tracing::warn!(likes, "likes discarded by a trigger of the table");
        }
    }

    /// Logs that rows were not stored although they were sent alone.
    fn log_remainder(&self, remainder: &Remainder, span: Option<&Span>) {
        let Remainder { batch, obstacle } = remainder;
        let metrics = &self.acknowledger.metrics;
        let trace_id = spans::trace_id(span);
        let span_id = spans::span_id(span);
        let held_ms = batch.first_read_at().elapsed().as_millis();
        let (error, rows) = (&obstacle.why, batch.rows());
        if obstacle.class == FailureClass::Retry {
            metrics.failed(FailureClass::Retry);
            tracing::warn!(error, rows, held_ms, trace_id, span_id, "rows not stored, retrying");
        } else {
            metrics.failed(FailureClass::Halt);
            tracing::error!(
                error,
                rows,
                held_ms,
                trace_id,
                span_id,
                remedy = obstacle.remedy(),
                "rows not stored, an operator must act"
            );
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

/// Waits for a task to end; forever if there is none.
async fn end_of(task: &mut Option<AbortOnDropHandle<()>>) -> Result<(), JoinError> {
    match task {
        Some(task) => task.await,
        None => future::pending().await,
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
