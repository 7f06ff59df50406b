//! From the process into Postgres: collect, write until it is stored, acknowledge. One batch after the other, while
//! the reader fills the next one.

use std::{sync::Arc, time::Duration};

use deadpool_postgres::Pool;
use shared::{admin::Check, service::one_line};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

use crate::{
    backoff::Backoff,
    batch::{Batch, Flush, Limits, SettledEntry},
    copy::{self, Committed},
    entry::Entry,
    in_flight::InFlight,
    metrics::{CommittedBatch, Metrics},
    stream::Streams,
};

/// Writes batches.
pub(crate) struct Writer {
    pub(crate) pool: Pool,
    pub(crate) streams: Streams,
    pub(crate) limits: Limits,
    pub(crate) write_timeout: Duration,
    pub(crate) in_flight: Arc<InFlight>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) check: Check,
}

impl Writer {
    /// Writes until no more entries come and all are stored and acknowledged. Dropped before that, it loses nothing:
    /// what is not acknowledged is delivered again.
    pub(crate) async fn run(self, mut entries: mpsc::Receiver<Entry>) {
        while let Some((batch, flush)) = Batch::collect(&mut entries, self.limits).await {
            let committed = self.write(batch, flush).await;
            self.ack(committed).await;
        }
    }

    /// Tries for as long as it takes. The batch is held meanwhile, and its rows in flight keep the reader from
    /// reading on: likes wait in Redis.
    async fn write(&self, mut batch: Batch, flush: Flush) -> Committed {
        let mut backoff = Backoff::default();
        loop {
            let (likes, has_rows, started) = (batch.likes(), batch.rows() > 0, Instant::now());
            match copy::write(&self.pool, batch, self.write_timeout).await {
                Ok(committed) => {
                    if has_rows {
                        let (inserted, duration) = (committed.inserted(), started.elapsed());
                        self.metrics.committed(&CommittedBatch { flush, likes, inserted, duration });
                        if self.check.pass() {
                            tracing::info!("Postgres stores likes again");
                        }
                    }
                    return committed;
                }
                Err((unwritten, error)) => {
                    self.metrics.failed();
                    let delay = backoff.next_delay();
                    let why = one_line(&error);
                    let held_ms = unwritten.first_read_at().elapsed().as_millis();
                    tracing::warn!(error = why, rows = unwritten.rows(), held_ms, retry_in = ?delay, "not stored yet");
                    self.check.fail(why);
                    sleep(delay).await;
                    batch = unwritten;
                }
            }
        }
    }

    /// Acknowledges what is stored. What Redis does not take now stays pending and comes again: after a while it is
    /// claimed, found stored already, and acknowledged then.
    async fn ack(&self, committed: Committed) {
        let mut failed = None;
        let mut acknowledged = 0;
        let mut unacknowledged = 0_usize;
        for (entry, acked) in self.streams.ack(committed).await {
            match acked {
                Ok(()) => {
                    acknowledged += 1;
                    self.tell_of_dead_letters(&entry);
                }
                Err(error) => {
                    unacknowledged += 1;
                    failed = Some(error);
                }
            }
            self.in_flight.release(entry.at, entry.likes);
        }
        self.metrics.acknowledged(acknowledged);
        if let Some(error) = failed {
            tracing::warn!(%error, entries = unacknowledged, "stored, but not acknowledged: they will be delivered again");
        }
    }

    fn tell_of_dead_letters(&self, entry: &SettledEntry) {
        for letter in &entry.dead_letters {
            self.metrics.dead_letter(letter.reason());
            tracing::warn!(
                partition = %entry.at.partition, id = %entry.at.id, reason = letter.reason().code(),
                "dead letter"
            );
        }
    }
}
