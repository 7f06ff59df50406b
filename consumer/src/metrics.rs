//! What the consumer counts. The names are explained in docs/metrics.md.

use std::{future::Future, time::Duration};

use deadpool_postgres::Pool;
use fred::prelude::Error;
use opentelemetry::{
    KeyValue,
    metrics::{AsyncInstrument, Counter, Gauge, Histogram, Meter},
};
use shared::{
    postgres::FailureClass,
    redis,
    telemetry::{
        counting,
        names::{self, metric},
    },
    wire::{dead_letter::Reason, partition::KeyPrefix},
};
use tokio::time::Instant;

use crate::store::{gathering::Flush, write::Attempt};

/// Seconds.
const REDIS_BOUNDARIES: [f64; 12] =
    [0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];
const TRANSACTION_BOUNDARIES: [f64; 12] =
    [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];
const ACCEPT_TO_COMMIT_BOUNDARIES: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
const ROWS_BOUNDARIES: [f64; 10] = [1.0, 10.0, 100.0, 500.0, 1e3, 2e3, 5e3, 1e4, 5e4, 1e5];

/// What is to be done about a failed transaction.
const RETRY: &str = "retry";
const HALT: &str = "halt";

/// The instruments of the consumer.
pub(crate) struct Metrics {
    redis_duration: Histogram<f64>,
    /// Of all that is done with the streams.
    streams: [KeyValue; 2],
    entries_consumed: Counter<u64>,
    /// Of what is read.
    consumed: [KeyValue; 3],
    entries_reclaimed: Counter<u64>,
    entries_acknowledged: Counter<u64>,
    entries_lost: Counter<u64>,
    entries_trimmed: Counter<u64>,
    trim_failures: Counter<u64>,
    dead_letters: Counter<u64>,
    batches_committed: Counter<u64>,
    batches_restaged: Counter<u64>,
    batches_failed: Counter<u64>,
    rows_inserted: Counter<u64>,
    likes_deduplicated: Counter<u64>,
    batch_rows: Histogram<u64>,
    accept_to_commit: Histogram<f64>,
    transaction_duration: Histogram<f64>,
    partitions_owned: Gauge<u64>,
    partitions_orphaned: Gauge<u64>,
    partitions_paused: Gauge<u64>,
}

/// A batch that was committed.
pub(crate) struct CommittedBatch {
    pub(crate) flush: Flush,
    pub(crate) likes: usize,
    pub(crate) rows: usize,
    pub(crate) inserted: u64,
    /// Rows that the table does not take.
    pub(crate) rejected: usize,
    /// Whether it was tried straight into the table in vain.
    pub(crate) fell_back: bool,
    /// For how long the oldest entry of each of its partitions had been in Redis.
    pub(crate) end_to_end_latencies: Vec<Duration>,
}

/// What is asked of Redis.
#[derive(Clone, Copy)]
pub(crate) enum StreamOperation {
    Read,
    Claim,
    Ack,
}

impl StreamOperation {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Read => "XREADGROUP",
            Self::Claim => "XAUTOCLAIM",
            Self::Ack => "XACK",
        }
    }

    /// By the conventions.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Self::Read | Self::Claim => "receive",
            Self::Ack => "settle",
        }
    }
}

impl Metrics {
    pub(crate) fn new(meter: &Meter, keys: &KeyPrefix) -> Self {
        let counter_by = |name, what, labels: &[KeyValue]| counting::counter(meter, name, what, labels);
        let counter = |name, what| counter_by(name, what, &[]);
        let gauge =
            |name: &'static str, what: &'static str| meter.u64_gauge(name).with_description(what).build();
        let seconds = |name: &'static str, what: &'static str, boundaries: &[f64]| {
            let histogram = meter.f64_histogram(name).with_unit("s").with_description(what);
            histogram.with_boundaries(boundaries.to_vec()).build()
        };
        let streams = [
            KeyValue::new(names::MESSAGING_SYSTEM, names::REDIS),
            KeyValue::new(names::MESSAGING_DESTINATION_TEMPLATE, keys.stream_template()),
        ];
        let [system, template] = streams.clone();
        let read = KeyValue::new(names::MESSAGING_OPERATION_NAME, StreamOperation::Read.name());
        let consumed = [system, template, read];
        let entries_consumed = counting::message_counter(
            meter,
            names::MESSAGING_CLIENT_CONSUMED_MESSAGES,
            "Entries delivered for the first time",
            &consumed,
        );
        Self {
            redis_duration: seconds(
                names::MESSAGING_CLIENT_OPERATION_DURATION,
                "How long Redis took",
                &REDIS_BOUNDARIES,
            ),
            streams,
            entries_consumed,
            consumed,
            entries_reclaimed: counter(
                metric::ENTRIES_RECLAIMED,
                "Entries delivered again: own pending, or claimed",
            ),
            entries_acknowledged: counter(metric::ENTRIES_ACKNOWLEDGED, "Entries settled and acknowledged"),
            entries_lost: counter(
                metric::ENTRIES_LOST,
                "Entries deleted from the stream before they were stored: this is loss of data",
            ),
            entries_trimmed: counter(
                metric::ENTRIES_TRIMMED,
                "Acknowledged entries trimmed from the streams",
            ),
            trim_failures: counter(metric::TRIM_FAILURES, "Times that a stream could not be trimmed"),
            dead_letters: counter_by(
                metric::DEAD_LETTERS,
                "Dead letters that were written, by reason",
                &Reason::ALL.map(|reason| KeyValue::new(names::REASON, reason.code())),
            ),
            batches_committed: counter_by(
                metric::BATCHES_COMMITTED,
                "Batches committed, by what closed them",
                &Flush::ALL.map(|flush| KeyValue::new(names::FLUSH_LABEL, flush.name())),
            ),
            batches_restaged: counter(
                metric::BATCHES_RESTAGED,
                "Batches that went straight to the table in vain, and then by way of the staging table",
            ),
            batches_failed: counter_by(
                metric::BATCHES_FAILED,
                "Transactions that failed and were tried again, by themselves (retry) or in vain until somebody mends something (halt)",
                &[RETRY, HALT].map(|class| KeyValue::new(names::CLASS, class)),
            ),
            rows_inserted: counter(metric::ROWS_INSERTED, "Rows that are new in the table"),
            likes_deduplicated: counter(
                metric::LIKES_DEDUPLICATED,
                "Likes that were in the batch or the table before",
            ),
            batch_rows: meter
                .u64_histogram(metric::BATCH_ROWS)
                .with_description("Rows of a committed batch")
                .with_boundaries(ROWS_BOUNDARIES.into())
                .build(),
            accept_to_commit: seconds(
                metric::ACCEPT_TO_COMMIT,
                "From Redis taking an entry to its commit, by their two clocks: of each batch and partition the oldest entry",
                &ACCEPT_TO_COMMIT_BOUNDARIES,
            ),
            transaction_duration: seconds(
                names::DB_CLIENT_OPERATION_DURATION,
                "How long a transaction took, committed or not, with the wait for its connection",
                &TRANSACTION_BOUNDARIES,
            ),
            partitions_owned: gauge(metric::PARTITIONS_OWNED, "Partitions that this consumer reads"),
            partitions_orphaned: gauge(
                metric::PARTITIONS_ORPHANED,
                "Partitions that no consumer of the group reads, by what this one knows",
            ),
            partitions_paused: gauge(
                metric::PARTITIONS_PAUSED,
                "Partitions that this consumer has and does not read, because somebody wants it so",
            ),
        }
    }

    /// Shows the connections of a pool.
    pub(crate) fn observe_connections(meter: &Meter, pool: Pool) {
        let state = |state: &'static str| {
            [
                KeyValue::new(names::DB_CLIENT_CONNECTION_POOL_NAME, names::POSTGRESQL),
                KeyValue::new(names::DB_CLIENT_CONNECTION_STATE, state),
            ]
        };
        let (idle, used) = (state("idle"), state("used"));
        let observe = move |observer: &dyn AsyncInstrument<i64>| {
            let status = pool.status();
            let count = |connections| i64::try_from(connections).unwrap_or(i64::MAX);
            observer.observe(count(status.available), &idle);
            observer.observe(count(status.size.saturating_sub(status.available)), &used);
        };
        meter
            .i64_observable_up_down_counter(names::DB_CLIENT_CONNECTION_COUNT)
            .with_unit("{connection}")
            .with_description("Connections to Postgres")
            .with_callback(observe)
            .build();
    }

    /// Counts how long Redis takes for it.
    pub(crate) async fn timed<T>(
        &self,
        operation: StreamOperation,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let started = Instant::now();
        let done = work.await;
        self.redis_took(operation, started.elapsed(), done.as_ref().err());
        done
    }

    pub(crate) fn redis_took(&self, operation: StreamOperation, took: Duration, error: Option<&Error>) {
        let [system, template] = self.streams.clone();
        let mut attributes = vec![
            system,
            template,
            KeyValue::new(names::MESSAGING_OPERATION_NAME, operation.name()),
            KeyValue::new(names::MESSAGING_OPERATION_TYPE, operation.kind()),
        ];
        attributes.extend(error.map(|error| KeyValue::new(names::ERROR_TYPE, redis::error_type(error))));
        self.redis_duration.record(took.as_secs_f64(), &attributes);
    }

    pub(crate) fn read(&self, entries: usize) {
        self.entries_consumed.add(entries as u64, &self.consumed);
    }

    pub(crate) fn reclaimed(&self, entries: usize) {
        self.entries_reclaimed.add(entries as u64, &[]);
    }

    pub(crate) fn acknowledged(&self, entries: u64) {
        self.entries_acknowledged.add(entries, &[]);
    }

    pub(crate) fn lost(&self, entries: usize) {
        self.entries_lost.add(entries as u64, &[]);
    }

    pub(crate) fn trimmed(&self, entries: u64) {
        self.entries_trimmed.add(entries, &[]);
    }

    pub(crate) fn trim_failed(&self) {
        self.trim_failures.add(1, &[]);
    }

    pub(crate) fn dead_letter(&self, reason: Reason) {
        self.dead_letters.add(1, &[KeyValue::new(names::REASON, reason.code())]);
    }

    /// A transaction ended, one way or the other.
    pub(crate) fn transaction(&self, attempt: &Attempt<'_>) {
        self.transaction_duration.record(attempt.took.as_secs_f64(), &attempt.attributes());
    }

    pub(crate) fn committed(&self, batch: &CommittedBatch) {
        self.batches_committed.add(1, &[KeyValue::new(names::FLUSH_LABEL, batch.flush.name())]);
        self.batches_restaged.add(batch.fell_back.into(), &[]);
        self.rows_inserted.add(batch.inserted, &[]);
        let others = batch.inserted.saturating_add(batch.rejected as u64);
        self.likes_deduplicated.add((batch.likes as u64).saturating_sub(others), &[]);
        self.batch_rows.record(batch.rows as u64, &[]);
        for latency in &batch.end_to_end_latencies {
            self.accept_to_commit.record(latency.as_secs_f64(), &[]);
        }
    }

    pub(crate) fn owned(&self, own: usize, orphans: usize, paused: usize) {
        self.partitions_owned.record(own as u64, &[]);
        self.partitions_paused.record(paused as u64, &[]);
        self.partitions_orphaned.record(orphans as u64, &[]);
    }

    pub(crate) fn failed(&self, class: FailureClass) {
        let class = match class {
            FailureClass::Halt => HALT,
            FailureClass::Retry | FailureClass::Reject => RETRY,
        };
        self.batches_failed.add(1, &[KeyValue::new(names::CLASS, class)]);
    }
}
