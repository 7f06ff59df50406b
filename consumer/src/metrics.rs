//! Metrics of the consumer, documented in docs/metrics.md.

use std::{future::Future, time::Duration};

use fred::prelude::Error;
use opentelemetry::{
    KeyValue,
    metrics::{AsyncInstrument, Counter, Gauge, Histogram, Meter},
};
use shared::{
    postgres::{FailureClass, Pool},
    redis,
    telemetry::{
        counting,
        names::{self, metric},
    },
    wire::{dead_letter::Reason, partition::KeyPrefix},
};
use tokio::time::Instant;

use crate::store::{gathering::Flush, incidents::IncidentKind, proof::Tally, write::Attempt};

/// Bucket boundaries in seconds.
const REDIS_BOUNDARIES: [f64; 12] =
    [0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];
const TRANSACTION_BOUNDARIES: [f64; 12] =
    [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];
const END_TO_END_LATENCY_BOUNDARIES: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
const ROWS_BOUNDARIES: [f64; 10] = [1.0, 10.0, 100.0, 500.0, 1e3, 2e3, 5e3, 1e4, 5e4, 1e5];

/// Values of the `class` label of failed batches.
const RETRY: &str = "retry";
const HALT: &str = "halt";

/// Instruments of the consumer.
pub(crate) struct Metrics {
    streams: StreamMetrics,
    batches: BatchMetrics,
    partitions: PartitionMetrics,
    open_incidents: Gauge<u64>,
}

/// Instruments of stream operations and entries.
struct StreamMetrics {
    operation_duration: Histogram<f64>,
    /// Attributes of all operations.
    attributes: [KeyValue; 2],
    consumed: Counter<u64>,
    consumed_attributes: [KeyValue; 3],
    reclaimed: Counter<u64>,
    acknowledged: Counter<u64>,
    lost: Counter<u64>,
    trimmed: Counter<u64>,
    trim_failures: Counter<u64>,
    dead_letters: Counter<u64>,
}

/// Instruments of batches and transactions.
struct BatchMetrics {
    committed: Counter<u64>,
    direct_copy_fallbacks: Counter<u64>,
    failed: Counter<u64>,
    rows_inserted: Counter<u64>,
    rows_held: Gauge<u64>,
    likes_deduplicated: Counter<u64>,
    likes_discarded: Counter<u64>,
    rows: Histogram<u64>,
    end_to_end_latency: Histogram<f64>,
    transaction_duration: Histogram<f64>,
}

/// Instruments of partition ownership.
struct PartitionMetrics {
    owned: Gauge<u64>,
    orphaned: Gauge<u64>,
    paused: Gauge<u64>,
}

/// Result of a committed batch.
pub(crate) struct CommittedBatch {
    /// `None` for a further pass over held rows.
    pub(crate) flush: Option<Flush>,
    pub(crate) rows: usize,
    pub(crate) tally: Tally,
    /// Whether a direct copy failed and the batch was staged.
    pub(crate) fell_back: bool,
    /// End-to-end latency of the oldest entry of each partition.
    pub(crate) end_to_end_latencies: Vec<Duration>,
}

/// Timed operation on a stream.
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
            Self::Claim => "XCLAIM",
            Self::Ack => "XACK",
        }
    }

    /// Returns the operation type in OpenTelemetry's messaging conventions.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Self::Read | Self::Claim => "receive",
            Self::Ack => "settle",
        }
    }
}

impl StreamMetrics {
    fn new(meter: &Meter, keys: &KeyPrefix) -> Self {
        let counter = |name, what| counting::counter(meter, name, what, &[]);
        let attributes = [
            KeyValue::new(names::MESSAGING_SYSTEM, names::REDIS),
            KeyValue::new(names::MESSAGING_DESTINATION_TEMPLATE, keys.stream_template()),
        ];
        let [system, template] = attributes.clone();
        let read = KeyValue::new(names::MESSAGING_OPERATION_NAME, StreamOperation::Read.name());
        let consumed_attributes = [system, template, read];
        let consumed = counting::message_counter(
            meter,
            names::MESSAGING_CLIENT_CONSUMED_MESSAGES,
            "Entries delivered for the first time",
            &consumed_attributes,
        );
        let operation = names::MESSAGING_CLIENT_OPERATION_DURATION;
        let reasons = Reason::ALL.map(|reason| KeyValue::new(names::REASON, reason.code()));
        Self {
            operation_duration: seconds(meter, operation, "Duration of Redis commands", &REDIS_BOUNDARIES),
            attributes,
            consumed,
            consumed_attributes,
            reclaimed: counter(
                metric::ENTRIES_RECLAIMED,
                "Entries delivered again: own pending entries and claimed ones",
            ),
            acknowledged: counter(metric::ENTRIES_ACKNOWLEDGED, "Entries acknowledged"),
            lost: counter(
                metric::ENTRIES_LOST,
                "Entries deleted from a stream before they were stored: data loss",
            ),
            trimmed: counter(metric::ENTRIES_TRIMMED, "Acknowledged entries trimmed from the streams"),
            trim_failures: counter(metric::TRIM_FAILURES, "Failed trims of a stream"),
            dead_letters: counting::counter(
                meter,
                metric::DEAD_LETTERS,
                "Dead letters written, by reason",
                &reasons,
            ),
        }
    }
}

impl BatchMetrics {
    fn new(meter: &Meter) -> Self {
        let counter_by = |name, what, labels: &[KeyValue]| counting::counter(meter, name, what, labels);
        let counter = |name, what| counter_by(name, what, &[]);
        Self {
            committed: counter_by(
                metric::BATCHES_COMMITTED,
                "Batches committed, by flush reason",
                &Flush::ALL.map(|flush| KeyValue::new(names::FLUSH_LABEL, flush.name())),
            ),
            direct_copy_fallbacks: counter(
                metric::DIRECT_COPY_FALLBACKS,
                "Batches that were written through the staging table because the COPY straight into the likes table failed",
            ),
            failed: counter_by(
                metric::BATCHES_FAILED,
                "Failed transactions, by class: transient (retry) or in need of an operator (halt)",
                &[RETRY, HALT].map(|class| KeyValue::new(names::CLASS, class)),
            ),
            rows_inserted: counter(metric::ROWS_INSERTED, "Rows inserted into the table"),
            rows_held: meter
                .u64_gauge(metric::ROWS_HELD)
                .with_description("Rows that Postgres does not take yet; they are tried again")
                .build(),
            likes_deduplicated: counter(
                metric::LIKES_DEDUPLICATED,
                "Likes that were already in the batch or in the table",
            ),
            likes_discarded: counter(
                metric::LIKES_DISCARDED,
                "Likes that a trigger of the table discarded: they are neither stored nor dead letters",
            ),
            rows: meter
                .u64_histogram(metric::BATCH_ROWS)
                .with_description("Rows per committed batch")
                .with_boundaries(ROWS_BOUNDARIES.into())
                .build(),
            end_to_end_latency: seconds(
                meter,
                metric::END_TO_END_LATENCY,
                "Time from accept to commit of the oldest entry of each batch and partition, by the clocks of Redis and the consumer",
                &END_TO_END_LATENCY_BOUNDARIES,
            ),
            transaction_duration: seconds(
                meter,
                names::DB_CLIENT_OPERATION_DURATION,
                "Duration of transactions, committed or failed, including the wait for a connection",
                &TRANSACTION_BOUNDARIES,
            ),
        }
    }
}

impl PartitionMetrics {
    fn new(meter: &Meter) -> Self {
        let gauge =
            |name: &'static str, what: &'static str| meter.u64_gauge(name).with_description(what).build();
        Self {
            owned: gauge(
                metric::PARTITIONS_OWNED,
                "Partitions that this consumer owns, including paused ones",
            ),
            orphaned: gauge(
                metric::PARTITIONS_ORPHANED,
                "Partitions that no consumer of the group reads, as seen by this consumer",
            ),
            paused: gauge(
                metric::PARTITIONS_PAUSED,
                "Partitions that this consumer owns and does not read, because an operator paused them",
            ),
        }
    }
}

fn seconds(meter: &Meter, name: &'static str, what: &'static str, boundaries: &[f64]) -> Histogram<f64> {
    let histogram = meter.f64_histogram(name).with_unit("s").with_description(what);
    histogram.with_boundaries(boundaries.to_vec()).build()
}

impl Metrics {
    pub(crate) fn new(meter: &Meter, keys: &KeyPrefix) -> Self {
        Self {
            streams: StreamMetrics::new(meter, keys),
            batches: BatchMetrics::new(meter),
            partitions: PartitionMetrics::new(meter),
            open_incidents: meter
                .u64_gauge(metric::INCIDENTS_OPEN)
                .with_description("Incidents that no operator has acknowledged, by kind")
                .build(),
        }
    }

    /// Registers the gauge of the connections of a pool.
    pub(crate) fn observe_connections(meter: &Meter, pool: Pool) {
        let state = |state: &'static str| {
            [
                KeyValue::new(names::DB_CLIENT_CONNECTION_POOL_NAME, names::POSTGRESQL),
                KeyValue::new(names::DB_CLIENT_CONNECTION_STATE, state),
            ]
        };
        let idle = state("idle");
        let used = state("used");
        let observe = move |observer: &dyn AsyncInstrument<i64>| {
            let status = pool.status();
            let count = |connections| i64::try_from(connections).unwrap_or(i64::MAX);
            observer.observe(count(status.available), &idle);
            observer.observe(count(status.size.saturating_sub(status.available)), &used);
        };
        meter
            .i64_observable_up_down_counter(names::DB_CLIENT_CONNECTION_COUNT)
            .with_unit("{connection}")
            .with_description("Connections to Postgres, by state")
            .with_callback(observe)
            .build();
    }

    /// Runs an operation and records its duration and error.
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
        let [system, template] = self.streams.attributes.clone();
        let mut attributes = vec![
            system,
            template,
            KeyValue::new(names::MESSAGING_OPERATION_NAME, operation.name()),
            KeyValue::new(names::MESSAGING_OPERATION_TYPE, operation.kind()),
        ];
        attributes.extend(error.map(|error| KeyValue::new(names::ERROR_TYPE, redis::error_type(error))));
        self.streams.operation_duration.record(took.as_secs_f64(), &attributes);
    }

    pub(crate) fn read(&self, entries: usize) {
        self.streams.consumed.add(entries as u64, &self.streams.consumed_attributes);
    }

    pub(crate) fn reclaimed(&self, entries: usize) {
        self.streams.reclaimed.add(entries as u64, &[]);
    }

    pub(crate) fn acknowledged(&self, entries: u64) {
        self.streams.acknowledged.add(entries, &[]);
    }

    pub(crate) fn lost(&self, entries: usize) {
        self.streams.lost.add(entries as u64, &[]);
    }

    /// Records the number of open incidents of a kind.
    pub(crate) fn open_incidents(&self, kind: IncidentKind, number: u64) {
        self.open_incidents.record(number, &[KeyValue::new(names::KIND, kind.name())]);
    }

    pub(crate) fn trimmed(&self, entries: u64) {
        self.streams.trimmed.add(entries, &[]);
    }

    pub(crate) fn trim_failed(&self) {
        self.streams.trim_failures.add(1, &[]);
    }

    pub(crate) fn dead_letter(&self, reason: Reason) {
        self.streams.dead_letters.add(1, &[KeyValue::new(names::REASON, reason.code())]);
    }

    /// Records the end of a transaction, whether committed or failed.
    pub(crate) fn transaction(&self, attempt: &Attempt<'_>) {
        self.batches.transaction_duration.record(attempt.took.as_secs_f64(), &attempt.attributes());
    }

    pub(crate) fn committed(&self, batch: &CommittedBatch) {
        if let Some(flush) = batch.flush {
            self.batches.committed.add(1, &[KeyValue::new(names::FLUSH_LABEL, flush.name())]);
            self.batches.rows.record(batch.rows as u64, &[]);
        }
        self.batches.direct_copy_fallbacks.add(batch.fell_back.into(), &[]);
        self.batches.rows_inserted.add(batch.tally.inserted, &[]);
        self.batches.likes_deduplicated.add(batch.tally.deduplicated + batch.tally.known, &[]);
        self.batches.likes_discarded.add(batch.tally.discarded, &[]);
        for latency in &batch.end_to_end_latencies {
            self.batches.end_to_end_latency.record(latency.as_secs_f64(), &[]);
        }
    }

    pub(crate) fn held(&self, rows: usize) {
        self.batches.rows_held.record(rows as u64, &[]);
    }

    pub(crate) fn owned(&self, own: usize, orphans: usize, paused: usize) {
        self.partitions.owned.record(own as u64, &[]);
        self.partitions.paused.record(paused as u64, &[]);
        self.partitions.orphaned.record(orphans as u64, &[]);
    }

    pub(crate) fn failed(&self, class: FailureClass) {
        let class = match class {
            FailureClass::Halt => HALT,
            FailureClass::Retry | FailureClass::Reject => RETRY,
        };
        self.batches.failed.add(1, &[KeyValue::new(names::CLASS, class)]);
    }
}
