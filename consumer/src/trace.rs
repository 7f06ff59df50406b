//! Spans of batches. A batch span lasts from the read of its first entry to the acknowledgement. Its child spans are the
//! transactions and the acknowledgement.
//!
//! Entries of many traces share a batch, so the batch span has a separate trace and links to the producer spans.
//!
//! Follows OpenTelemetry's semantic conventions for messaging and database spans.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use fred::prelude::Error;
use opentelemetry::{
    KeyValue,
    propagation::Extractor,
    trace::{SpanContext, SpanKind},
};
use shared::{
    redis,
    telemetry::{
        names,
        spans::{Links, Span, SpanStart, Tracing},
    },
};

use crate::{
    metrics::StreamOperation,
    store::{batch::Batch, gathering::Flush, write::Attempt},
};

/// Creates the spans of one consumer's batches.
#[derive(Clone)]
pub(crate) struct BatchTracing {
    tracing: Tracing,
    stream_template: Arc<str>,
    group: Arc<str>,
    consumer: Arc<str>,
}

impl BatchTracing {
    pub(crate) fn new(tracing: Tracing, stream_template: &str, group: &str, consumer: &str) -> Self {
        Self {
            tracing,
            stream_template: stream_template.into(),
            group: group.into(),
            consumer: consumer.into(),
        }
    }

    /// Starts the span of a batch. The span begins when the first entry was read.
    pub(crate) fn start(&self, batch: &mut Batch, flush: Flush) -> Option<Span> {
        if !self.tracing.is_on() {
            return None;
        }
        let links = batch.take_links();
        let at = ago(batch.first_read_at().elapsed());
        let name = format!("process {}", self.stream_template).into();
        self.tracing.start(SpanStart { name, kind: SpanKind::Consumer, parent: None, links, at }, || {
            let mut attributes = self.attributes("process", "process");
            attributes.extend([
                KeyValue::new(names::MESSAGING_BATCH_MESSAGE_COUNT, count(batch.entries())),
                KeyValue::new(names::LIKES, count(batch.likes())),
                KeyValue::new(names::FLUSH, flush.name()),
            ]);
            attributes
        })
    }

    /// Adds the span of a transaction that has ended.
    pub(crate) fn transaction(&self, batch: Option<&Span>, attempt: &Attempt<'_>) {
        let Some(parent) = batch.map(Span::context) else { return };
        let name = format!("{} likes", attempt.operation).into();
        let at = ago(attempt.took);
        let start =
            SpanStart { name, kind: SpanKind::Client, parent: Some(&parent), links: Links::default(), at };
        let Some(span) = self.tracing.start(start, || attempt.attributes()) else { return };
        span.set(names::ROWS, count(attempt.rows));
        if let Some(error) = attempt.error {
            // Without Postgres's error message, which can contain row values.
            span.failed_with(error.error_type().to_owned());
        }
        span.end_at(SystemTime::now());
    }

    /// Records the result of a batch on its span.
    pub(crate) fn committed(batch: Option<&Span>, inserted: u64, fell_back: bool) {
        if let Some(span) = batch {
            span.set(names::ROWS_INSERTED, i64::try_from(inserted).unwrap_or(i64::MAX));
            span.set(names::FELL_BACK, fell_back);
        }
    }

    /// Adds the span of an acknowledgement, whether it succeeded or failed.
    pub(crate) fn acknowledged(&self, batch: Option<&Span>, took: Duration, error: Option<&Error>) {
        let Some(parent) = batch.map(Span::context) else { return };
        let operation = StreamOperation::Ack;
        let name = format!("{} {}", operation.name(), self.stream_template).into();
        let at = ago(took);
        let start =
            SpanStart { name, kind: SpanKind::Client, parent: Some(&parent), links: Links::default(), at };
        let span = self.tracing.start(start, || self.attributes(operation.name(), operation.kind()));
        let Some(span) = span else { return };
        if let Some(error) = error {
            span.failed(redis::error_type(error), error);
        }
        span.end_at(SystemTime::now());
    }

    fn attributes(&self, operation: &'static str, kind: &'static str) -> Vec<KeyValue> {
        vec![
            KeyValue::new(names::MESSAGING_SYSTEM, names::REDIS),
            KeyValue::new(names::MESSAGING_DESTINATION_TEMPLATE, Arc::clone(&self.stream_template)),
            KeyValue::new(names::MESSAGING_CONSUMER_GROUP_NAME, Arc::clone(&self.group)),
            KeyValue::new(names::MESSAGING_CLIENT_ID, Arc::clone(&self.consumer)),
            KeyValue::new(names::MESSAGING_OPERATION_NAME, operation),
            KeyValue::new(names::MESSAGING_OPERATION_TYPE, kind),
        ]
    }
}

/// Returns the context of the producer span of an entry, if the span is sampled.
pub(crate) fn producer(tracing: &Tracing, fields: &[(Bytes, Bytes)]) -> Option<Box<SpanContext>> {
    // An entry without a producer span has one field.
    if fields.len() < 2 || !tracing.is_on() {
        return None;
    }
    tracing.named_by(&Fields(fields)).filter(SpanContext::is_sampled).map(Box::new)
}

struct Fields<'a>(&'a [(Bytes, Bytes)]);

impl Extractor for Fields<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(name, _)| name == key)?;
        std::str::from_utf8(value).ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.iter().filter_map(|(name, _)| std::str::from_utf8(name).ok()).collect()
    }
}

fn ago(duration: Duration) -> SystemTime {
    SystemTime::now().checked_sub(duration).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
