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
use tokio::{
    pin,
    sync::{mpsc, watch},
    task::JoinError,
    time::sleep,
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    entry::Entry,
    group::ownership::Ownership,
    in_flight::InFlightLimits,
    metrics::CommittedBatch,
    store::{
        batch::{Batch, Remainder, Rest, Written},
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
    pub(crate) in_flight_limits: InFlightLimits,
    pub(crate) acknowledger: Acknowledger<S>,
    pub(crate) check: Check,
    pub(crate) ownership: watch::Receiver<Ownership>,
}

/// Work that waits for the writer.
struct Queue {
    entries: mpsc::UnboundedReceiver<Entry>,
    gathering: Gathering,
    /// Full batch that was gathered during a write.
    gathered: Option<Batch>,
    held: Option<Held>,
    acking: Option<AbortOnDropHandle<()>>,
}

/// Pass over a batch: one or more writes, until every row was tried.
struct Pass {
    /// Number of rows.
    rows: usize,
    /// Reason why the batch was closed; `None` for held rows.
    flush: Option<Flush>,
    held: Option<HeldPass>,
    span: Option<Span>,
    /// Number of rows that were stored so far.
    inserted: u64,
    /// Whether the table took a row.
    took_rows: bool,
    retry: Backoff,
    halt: Backoff,
    /// Time to wait before the next write.
    delay: Duration,
}

impl Pass {
    fn new(batch: &Batch, flush: Option<Flush>, span: Option<Span>) -> Self {
        Self {
            rows: batch.rows(),
            flush,
            held: None,
            span,
            inserted: 0,
            took_rows: false,
            retry: Backoff::retry(),
            halt: Backoff::halt(),
            delay: Duration::ZERO,
        }
    }

    fn over_held(held: Held) -> (Batch, Self) {
        let (batch, held) = held.begin();
        let pass = Self { held: Some(held), ..Self::new(&batch, None, None) };
        (batch, pass)
    }
}

impl<B: BatchStore, S: GroupStream> Writer<B, S> {
    /// Runs until the channel is closed and all entries are stored and acknowledged. Held rows are tried once more at the end, and
    /// then stay pending for the next member. Cancel safe: entries that are not acknowledged are redelivered.
    pub(crate) async fn run(mut self, entries: mpsc::UnboundedReceiver<Entry>) {
        let gathering = Gathering::new(self.limits);
        let mut queue = Queue { entries, gathering, gathered: None, held: None, acking: None };
        while let Some((batch, pass)) = self.next_pass(&mut queue).await {
            self.make(pass, batch, &mut queue).await;
        }
        if let Some(held) = queue.held.take() {
            let (batch, pass) = Pass::over_held(held);
            self.make(pass, batch, &mut queue).await;
        }
        join(queue.acking).await;
    }

    /// Waits for the next batch, or until held rows are due. Returns `None` once the channel is closed and empty.
    async fn next_pass(&self, queue: &mut Queue) -> Option<(Batch, Pass)> {
        loop {
            if queue.held.as_ref().is_some_and(Held::is_due) {
                self.leave_lost(queue);
                if let Some(held) = queue.held.take() {
                    return Some(Pass::over_held(held));
                }
            }
            if let Some(batch) = queue.gathered.take() {
                return Some(self.pass_over(batch, Flush::Full));
            }
            tokio::select! {
                // A panic must propagate immediately, not with the next batch: entries that were not released
                // block the readers.
                acked = end_of(&mut queue.acking) => {
                    propagate_panic(acked);
                    queue.acking = None;
                }
                batch = queue.gathering.batch(&mut queue.entries) => {
                    return batch.map(|(batch, flush)| self.pass_over(batch, flush));
                }
                () = Held::due(queue.held.as_ref()) => {}
            }
        }
    }

    fn pass_over(&self, mut batch: Batch, flush: Flush) -> (Batch, Pass) {
        let span = self.acknowledger.tracing.start(&mut batch, flush);
        let pass = Pass::new(&batch, Some(flush), span);
        (batch, pass)
    }

    /// Makes a pass. The entries that a write settles are acknowledged during the next write. Errors that say nothing about rows
    /// are retried, and reading is paused from the first such error to the next success, so that the backlog stays in Redis.
    ///
    /// A pass over held rows that ends, or fails, after the channel is closed is the last one: its rows stay pending.
    async fn make(&mut self, mut pass: Pass, batch: Batch, queue: &mut Queue) {
        let mut unwritten = Some(batch);
        while let Some(batch) = unwritten.take() {
            let Written { committed, rest } = self.write(batch, &pass, queue).await;
            let is_last = pass.held.is_some() && queue.entries.is_closed();
            pass.took_rows |= committed.took_rows();
            let is_over = !matches!(rest, Rest::Unwritten(..));
            let is_obstructed = matches!(rest, Rest::Obstructed(_));
            if pass.rows > 0 {
                self.record(&committed, &mut pass, is_over);
            }
            let has_failed = if let Rest::Unwritten(batch, Some(error)) = &rest {
                self.failed(batch, error, &mut pass);
                true
            } else {
                self.succeeded(&mut pass);
                false
            };
            match rest {
                Rest::Nothing => {}
                Rest::Unwritten(batch, Some(_)) if is_last => self.leave_pending(&batch),
                Rest::Unwritten(batch, _) => unwritten = Some(batch),
                Rest::Obstructed(remainder) => {
                    self.log_remainder(&remainder, pass.span.as_ref());
                    if is_last {
                        self.leave_pending(&remainder.batch);
                    } else {
                        self.hold(queue, &mut pass, remainder);
                    }
                }
            }
            if let Some(held) = queue.held.as_mut().filter(|_| committed.tally().inserted > 0) {
                held.table_took_rows();
            }
            // Between the writes of a pass over held rows, the rest of its entries are held still.
            if unwritten.is_none() {
                self.note_held(queue.held.as_ref());
            }
            if !is_last && !has_failed {
                let is_batch_obstructed = is_obstructed && pass.flush.is_some() && !pass.took_rows;
                self.report(is_batch_obstructed, &committed, queue.held.as_ref());
            }
            if !committed.is_empty() {
                let span = pass.span.take_if(|_| is_over);
                let ack = self.acknowledger.clone().ack(committed, span);
                join(queue.acking.replace(task::spawn(Box::pin(ack)))).await;
            }
        }
    }

    fn failed(&self, batch: &Batch, error: &WriteError, pass: &mut Pass) {
        self.acknowledger.in_flight.pause();
        pass.delay = match error.class() {
            FailureClass::Halt => pass.halt.next_delay(),
            FailureClass::Retry | FailureClass::Reject => pass.retry.next_delay(),
        };
        self.log_failure(batch, error, pass.delay, pass.span.as_ref());
    }

    fn succeeded(&self, pass: &mut Pass) {
        pass.delay = Duration::ZERO;
        if pass.rows > 0 {
            self.acknowledger.in_flight.resume();
        }
    }

    /// Writes a batch, or a part of it, while the next batch is gathered.
    async fn write(&mut self, batch: Batch, pass: &Pass, queue: &mut Queue) -> Written {
        let metrics = Arc::clone(&self.acknowledger.metrics);
        let tracing = self.acknowledger.tracing.clone();
        let ended = |attempt: &Attempt<'_>| {
            metrics.transaction(attempt);
            tracing.transaction(pass.span.as_ref(), attempt);
        };
        let write = async {
            sleep(pass.delay).await;
            self.store.write(batch, &ended).await
        };
        pin!(write);
        tokio::select! {
            biased;
            written = &mut write => written,
            batch = queue.gathering.full_batch(&mut queue.entries), if queue.gathered.is_none() => {
                queue.gathered = Some(batch);
                write.await
            }
        }
    }

    /// Holds the rows that a pass did not store. Rejected rows never fill the in-flight limit, because only a row that is read
    /// later can show whether the table takes rows: instead, the entries of the latest batch stay pending until they are claimed.
    fn hold(&self, queue: &mut Queue, pass: &mut Pass, remainder: Remainder) {
        let in_flight = &self.acknowledger.in_flight;
        queue.held = Some(match (queue.held.take(), pass.held.take()) {
            (Some(held), _) if held.is_rejected() || remainder.is_rejected() => {
                let merged = held.positions().chain(remainder.batch.positions());
                if in_flight.is_filled_by(merged, self.in_flight_limits) {
                    in_flight.release(remainder.batch.positions());
                    let (entries, rows) = (remainder.batch.entries(), remainder.batch.rows());
                    tracing::warn!(entries, rows, "too many rejected rows are held, entries stay pending");
                    held
                } else {
                    held.merge(remainder)
                }
            }
            (Some(held), _) => held.merge(remainder),
            (None, Some(held_pass)) => held_pass.end(remainder, pass.took_rows),
            (None, None) => Held::new(remainder),
        });
    }

    fn note_held(&self, held: Option<&Held>) {
        self.acknowledger.in_flight.set_held(held.into_iter().flat_map(Held::positions));
        self.acknowledger.metrics.held(held.map_or(0, Held::rows));
    }

    /// Leaves held entries of lost partitions to the owners of these, which decide about them. Once none is left, nothing shows
    /// that this consumer cannot write, so it may own partitions again.
    fn leave_lost(&self, queue: &mut Queue) {
        let own = self.ownership.borrow().own().to_vec();
        let Some(lost) = queue.held.as_mut().and_then(|held| held.split_off_others(&own)) else { return };
        self.leave_pending(&lost);
        queue.held.take_if(|held| held.rows() == 0);
        self.note_held(queue.held.as_ref());
        if queue.held.is_none() {
            self.acknowledger.in_flight.set_stalled(false);
            self.check.pass();
        }
    }

    /// Leaves entries to other members, which claim them.
    fn leave_pending(&self, batch: &Batch) {
        self.acknowledger.in_flight.release(batch.positions());
        tracing::warn!(
            entries = batch.entries(),
            rows = batch.rows(),
            "held entries stay pending for other consumers"
        );
    }

    /// Reports readiness after a write. Held rows alone do not fail the check while Postgres stores other rows. A stall begins
    /// with a batch of which nothing is stored, and ends with a row that the table takes: entries without rows and dead letters
    /// show nothing.
    fn report(&self, is_batch_obstructed: bool, committed: &Committed, held: Option<&Held>) {
        self.check.note(self.store.warnings().join("; "));
        let in_flight = &self.acknowledger.in_flight;
        let is_full =
            in_flight.is_filled_by(held.into_iter().flat_map(Held::positions), self.in_flight_limits);
        let goes_on = !committed.took_rows() && (is_batch_obstructed || in_flight.is_stalled());
        let why = held.filter(|_| is_full || goes_on).map(Held::reason);
        in_flight.set_stalled(why.is_some());
        if let Some(why) = why {
            let why = if is_full { format!("held rows fill the in-flight limit: {why}") } else { why };
            self.check.fail(why);
        } else if self.check.pass() {
            tracing::info!("writes to Postgres recovered");
        }
    }

    /// Records the result of a write. The batch counts when its pass is over.
    fn record(&self, committed: &Committed, pass: &mut Pass, is_over: bool) {
        let tally = committed.tally();
        pass.inserted += tally.inserted;
        let batch = CommittedBatch {
            flush: pass.flush.filter(|_| is_over),
            rows: pass.rows,
            tally,
            fell_back: committed.fell_back(),
            end_to_end_latencies: committed.end_to_end_latencies(),
        };
        self.acknowledger.metrics.committed(&batch);
        BatchTracing::committed(pass.span.as_ref(), pass.inserted, batch.fell_back);
        let discarded = usize::try_from(tally.discarded).unwrap_or(usize::MAX);
        if let Some(likes) = self.acknowledger.log_rates.discarded.record(discarded) {
            tracing::warn!(likes, "likes discarded by a trigger of the table");
        }
    }

    /// Logs that a pass did not store some rows.
    fn log_remainder(&self, remainder: &Remainder, span: Option<&Span>) {
        let Remainder { batch, obstacle } = remainder;
        let metrics = &self.acknowledger.metrics;
        let trace_id = spans::trace_id(span);
        let span_id = spans::span_id(span);
        let age_ms = batch.first_read_at().elapsed().as_millis();
        let (error, rows) = (&obstacle.why, batch.rows());
        if obstacle.class == FailureClass::Retry {
            metrics.failed(FailureClass::Retry);
            tracing::warn!(error, rows, age_ms, trace_id, span_id, "rows not stored, retrying");
        } else {
            metrics.failed(FailureClass::Halt);
            tracing::error!(
                error,
                rows,
                age_ms,
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
        let age_ms = batch.first_read_at().elapsed().as_millis();
        let retry_in_ms = retry_in.as_millis();
        if error.class() == FailureClass::Halt {
            tracing::error!(
                error = cause,
                rows,
                age_ms,
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
                age_ms,
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
