//! What the consumer counts.

use std::time::Duration;

use opentelemetry::{
    KeyValue,
    metrics::{Counter, Gauge, Histogram, Meter},
};

use crate::{batch::Flush, dead_letter::Reason};

/// The instruments of the consumer.
pub(crate) struct Metrics {
    entries_read: Counter<u64>,
    entries_reclaimed: Counter<u64>,
    entries_acknowledged: Counter<u64>,
    entries_lost: Counter<u64>,
    entries_trimmed: Counter<u64>,
    trim_failures: Counter<u64>,
    dead_letters: Counter<u64>,
    batches_committed: Counter<u64>,
    batches_restaged: Counter<u64>,
    batch_failures: Counter<u64>,
    rows_inserted: Counter<u64>,
    likes_deduplicated: Counter<u64>,
    batch_likes: Histogram<u64>,
    batch_duration: Histogram<f64>,
    partitions_owned: Gauge<u64>,
    partitions_orphaned: Gauge<u64>,
    partitions_paused: Gauge<u64>,
}

/// A batch that was committed.
pub(crate) struct CommittedBatch {
    pub(crate) flush: Flush,
    pub(crate) likes: usize,
    pub(crate) inserted: u64,
    /// Whether it was tried straight into the table in vain.
    pub(crate) restaged: bool,
    pub(crate) duration: Duration,
}

impl Metrics {
    pub(crate) fn new(meter: &Meter) -> Self {
        let counter =
            |name: &'static str, what: &'static str| meter.u64_counter(name).with_description(what).build();
        let gauge =
            |name: &'static str, what: &'static str| meter.u64_gauge(name).with_description(what).build();
        Self {
            partitions_owned: gauge("likestream.partitions.owned", "Partitions that this consumer reads"),
            partitions_orphaned: gauge(
                "likestream.partitions.orphaned",
                "Partitions that no consumer of the group reads, by what this one knows",
            ),
            partitions_paused: gauge(
                "likestream.partitions.paused",
                "Partitions that this consumer has and does not read, because somebody wants it so",
            ),
            entries_read: counter("likestream.entries.read", "Entries delivered for the first time"),
            entries_reclaimed: counter(
                "likestream.entries.reclaimed",
                "Entries delivered again: own pending, or claimed",
            ),
            entries_acknowledged: counter(
                "likestream.entries.acknowledged",
                "Entries settled and acknowledged",
            ),
            entries_lost: counter(
                "likestream.entries.lost",
                "Entries deleted from the stream before they were stored: this is loss of data",
            ),
            entries_trimmed: counter(
                "likestream.entries.trimmed",
                "Acknowledged entries trimmed from the streams",
            ),
            trim_failures: counter("likestream.trim.failures", "Times that a stream could not be trimmed"),
            dead_letters: counter("likestream.dead_letters", "Dead letters, by reason"),
            batches_committed: counter(
                "likestream.batches.committed",
                "Transactions committed, by what closed the batch",
            ),
            batches_restaged: counter(
                "likestream.batches.restaged",
                "Batches that went straight to the table in vain, and then by way of the staging table",
            ),
            batch_failures: counter(
                "likestream.batches.failed",
                "Transactions that failed and were tried again",
            ),
            rows_inserted: counter("likestream.rows.inserted", "Rows that are new in the table"),
            likes_deduplicated: counter(
                "likestream.likes.deduplicated",
                "Likes that were in the batch or the table before",
            ),
            batch_likes: meter
                .u64_histogram("likestream.batch.likes")
                .with_description("Likes a committed batch held")
                .with_boundaries(vec![1.0, 10.0, 100.0, 500.0, 1e3, 2e3, 5e3, 1e4, 5e4, 1e5])
                .build(),
            batch_duration: meter
                .f64_histogram("likestream.batch.duration")
                .with_unit("s")
                .with_description("How long a committed batch took to write")
                .with_boundaries(vec![0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0])
                .build(),
        }
    }

    pub(crate) fn read(&self, entries: usize) {
        self.entries_read.add(entries as u64, &[]);
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
        self.dead_letters.add(1, &[KeyValue::new("reason", reason.code())]);
    }

    pub(crate) fn committed(&self, batch: &CommittedBatch) {
        let likes = batch.likes as u64;
        self.batches_committed.add(1, &[KeyValue::new("flush", batch.flush.name())]);
        self.batches_restaged.add(batch.restaged.into(), &[]);
        self.rows_inserted.add(batch.inserted, &[]);
        self.likes_deduplicated.add(likes.saturating_sub(batch.inserted), &[]);
        self.batch_likes.record(likes, &[]);
        self.batch_duration.record(batch.duration.as_secs_f64(), &[]);
    }

    pub(crate) fn owned(&self, own: usize, orphans: usize, paused: usize) {
        self.partitions_owned.record(own as u64, &[]);
        self.partitions_paused.record(paused as u64, &[]);
        self.partitions_orphaned.record(orphans as u64, &[]);
    }

    pub(crate) fn failed(&self) {
        self.batch_failures.add(1, &[]);
    }
}
