//! Limit on spans that wait for export. At the limit no span is started, because the SDK would drop it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use opentelemetry::metrics::{AsyncInstrument, Meter};

use super::names::metric;

/// Slots for spans, from their start to their export.
#[derive(Clone, Debug)]
pub(super) struct SpanQueue(Arc<Places>);

#[derive(Debug)]
struct Places {
    reserved: AtomicUsize,
    max: usize,
    dropped: AtomicU64,
}

impl SpanQueue {
    /// Creates a limit of the size of the SDK's queue, which therefore never overflows.
    pub(super) fn new(max: usize) -> Self {
        Self(Arc::new(Places { reserved: AtomicUsize::new(0), max, dropped: AtomicU64::new(0) }))
    }

    /// Reserves a slot for a span, or counts the span as dropped.
    pub(super) fn try_reserve(&self) -> bool {
        let one_more = |reserved| (reserved < self.0.max).then_some(reserved + 1);
        let is_reserved =
            self.0.reserved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok();
        if !is_reserved {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
        }
        is_reserved
    }

    /// Releases the slots of spans that were exported or dropped.
    pub(super) fn release(&self, spans: usize) {
        self.0.reserved.fetch_sub(spans, Ordering::Relaxed);
    }

    /// Registers the number of dropped spans as a metric.
    pub(super) fn observe(&self, meter: &Meter) {
        let queue = self.clone();
        meter
            .u64_observable_counter(metric::SPANS_DROPPED)
            .with_description("Spans dropped because the export queue was full")
            .with_callback(move |observer: &dyn AsyncInstrument<u64>| {
                observer.observe(queue.0.dropped.load(Ordering::Relaxed), &[]);
            })
            .build();
    }
}
