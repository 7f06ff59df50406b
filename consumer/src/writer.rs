//! From the process into Postgres: collect, write until it is stored, acknowledge. One batch is written after the other;
//! meanwhile the next one is gathered and the one before is acknowledged.

use std::{panic, sync::Arc, time::Duration};

use deadpool_postgres::Pool;
use shared::{admin::Check, pg::FailureClass, service::one_line};
use tokio::{
    pin,
    sync::mpsc,
    time::{Instant, sleep},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    backoff::Backoff,
    batch::{Batch, Flush, Gathering, Limits},
    copy::{self, Committed, WriteError},
    dead_letter::Reason,
    entry::{Entry, Position},
    foresight::Foresight,
    in_flight::InFlight,
    last_commits::LastCommits,
    metrics::{CommittedBatch, Metrics},
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
            let next = match gathered.take() {
                Some(batch) => Some((batch, Flush::Full)),
                None => gathering.batch(&mut entries).await,
            };
            let Some((batch, flush)) = next else { break };
            let committed;
            (committed, gathered) = {
                let write = self.write(batch, flush);
                pin!(write);
                tokio::select! {
                    biased;
                    committed = &mut write => (committed, None),
                    batch = gathering.full_batch(&mut entries) => (write.await, Some(batch)),
                }
            };
            let ack = tokio::spawn(self.acknowledger.clone().ack(committed));
            end(acking.replace(AbortOnDropHandle::new(ack))).await;
        }
        end(acking).await;
    }

    /// Tries for as long as it takes. The batch is held meanwhile and nothing more is read: likes wait in Redis.
    async fn write(&mut self, mut batch: Batch, flush: Flush) -> Committed {
        let (likes, has_rows) = (batch.likes(), batch.rows() > 0);
        let (mut retry, mut halt) = (Backoff::retry(), Backoff::halt());
        loop {
            let started = Instant::now();
            let (unwritten, error) =
                match copy::write(&self.pool, self.transactions, Some(&mut self.foresight), batch).await {
                    Ok(committed) => {
                        if has_rows {
                            let (inserted, restaged) = (committed.inserted(), committed.restaged());
                            let duration = started.elapsed();
                            self.acknowledger.metrics.committed(&CommittedBatch {
                                flush,
                                likes,
                                inserted,
                                restaged,
                                duration,
                            });
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
            self.tell_of_failure(&unwritten, &error, delay);
            self.wait_alone_or_not(&unwritten, delay).await;
            batch = unwritten;
        }
    }

    fn tell_of_failure(&self, batch: &Batch, error: &WriteError, retry_in: Duration) {
        self.acknowledger.metrics.failed();
        let why = one_line(error);
        let (rows, held_ms) = (batch.rows(), batch.first_read_at().elapsed().as_millis());
        if error.class() == FailureClass::Halt {
            tracing::error!(
                error = why,
                rows,
                held_ms,
                ?retry_in,
                "halted: nothing is stored until this is mended"
            );
            self.check.fail(format!("halted until this is mended: {why}"));
        } else {
            tracing::warn!(error = why, rows, held_ms, ?retry_in, "not stored yet");
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

/// Waits for the end of a task. Its panic is ours.
async fn end(task: Option<AbortOnDropHandle<()>>) {
    let Some(task) = task else { return };
    if let Err(panicked) = task.await
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
}

impl Acknowledger {
    /// Acknowledges what is stored. What Redis does not take now stays pending and comes again: after a while it is
    /// claimed, found stored already, and acknowledged then.
    async fn ack(self, committed: Committed) {
        let acked = self.streams.ack(committed).await;
        self.last_commits.note(acked.entries.iter().map(|entry| entry.at.partition));
        self.metrics.acknowledged(acked.acknowledged);
        self.tell_of_dead_letters(&acked.dead_letters);
        if let Some((entries, error)) = acked.failed {
            tracing::warn!(%error, entries, "stored, but not acknowledged: they will be delivered again");
        }
        self.in_flight.release(acked.entries.iter().map(|entry| (entry.at, entry.likes)));
    }

    /// One line a batch: there may be very many.
    fn tell_of_dead_letters(&self, letters: &[(Position, Reason)]) {
        for (_, reason) in letters {
            self.metrics.dead_letter(*reason);
        }
        if let Some((first, reason)) = letters.first() {
            tracing::warn!(
                letters = letters.len(), first_partition = %first.partition, first_id = %first.id,
                first_reason = reason.code(), "dead letters"
            );
        }
    }
}
