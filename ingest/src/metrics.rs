//! What ingest counts.

use opentelemetry::{
    KeyValue,
    metrics::{Counter, Gauge, Histogram, Meter, UpDownCounter},
};

/// The instruments of ingest.
pub(crate) struct Metrics {
    accepted: Counter<u64>,
    refused: Counter<u64>,
    appended: Counter<u64>,
    append_failures: Counter<u64>,
    append_repeats: Counter<u64>,
    append_duration: Histogram<f64>,
    backlog: Gauge<u64>,
    connections: UpDownCounter<i64>,
}

impl Metrics {
    pub(crate) fn new(meter: &Meter) -> Self {
        let counter =
            |name: &'static str, what: &'static str| meter.u64_counter(name).with_description(what).build();
        Self {
            accepted: counter("likestream.likes.accepted", "Likes that Redis has taken"),
            refused: counter("likestream.requests.refused", "Requests that were refused, by problem code"),
            appended: counter("likestream.entries.appended", "Stream entries that Redis has taken"),
            append_failures: counter("likestream.append.failures", "Stream entries that Redis did not take"),
            append_repeats: counter(
                "likestream.append.repeats",
                "Times that an entry was sent again because nobody knew if Redis had it: it may be there twice",
            ),
            append_duration: meter
                .f64_histogram("likestream.append.duration")
                .with_unit("s")
                .with_description("How long Redis took to take an entry")
                .with_boundaries(vec![
                    0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
                ])
                .build(),
            backlog: meter
                .u64_gauge("likestream.backlog.entries")
                .with_description("Entries that wait in Redis: undelivered and pending, over all partitions")
                .build(),
            connections: meter
                .i64_up_down_counter("likestream.connections.open")
                .with_description("Connections of callers")
                .build(),
        }
    }

    pub(crate) fn entry_appended(&self, likes: u64, seconds: f64) {
        self.accepted.add(likes, &[]);
        self.appended.add(1, &[]);
        self.append_duration.record(seconds, &[]);
    }

    pub(crate) fn append_repeated(&self, times: u64) {
        self.append_repeats.add(times, &[]);
    }

    pub(crate) fn append_failed(&self) {
        self.append_failures.add(1, &[]);
    }

    pub(crate) fn refused(&self, code: &'static str) {
        self.refused.add(1, &[KeyValue::new("code", code)]);
    }

    pub(crate) fn connection_opened(&self) {
        self.connections.add(1, &[]);
    }

    pub(crate) fn connection_closed(&self) {
        self.connections.add(-1, &[]);
    }

    pub(crate) fn backlog(&self, entries: u64) {
        self.backlog.record(entries, &[]);
    }
}
