//! How many spans wait for the collector. When that are as many as may, no more are made: they would only be dropped.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use opentelemetry::metrics::{AsyncInstrument, Meter};

use super::names::metric;

/// Places for spans, from their beginning to their export.
#[derive(Clone, Debug)]
pub(super) struct SpanQueue(Arc<Places>);

#[derive(Debug)]
struct Places {
    taken: AtomicUsize,
    max: usize,
    refused: AtomicU64,
}

impl SpanQueue {
    /// Of the size of the SDK's own queue, which so is never full.
    pub(super) fn new(max: usize) -> Self {
        Self(Arc::new(Places { taken: AtomicUsize::new(0), max, refused: AtomicU64::new(0) }))
    }

    /// Whether there is a place for one more, which then has it.
    pub(super) fn enter(&self) -> bool {
        let one_more = |taken| (taken < self.0.max).then_some(taken + 1);
        let entered = self.0.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok();
        if !entered {
            self.0.refused.fetch_add(1, Ordering::Relaxed);
        }
        entered
    }

    /// So many were exported, or are lost.
    pub(super) fn leave(&self, spans: usize) {
        self.0.taken.fetch_sub(spans, Ordering::Relaxed);
    }

    /// Shows how many found no place.
    pub(super) fn observe(&self, meter: &Meter) {
        let queue = self.clone();
        meter
            .u64_observable_counter(metric::SPANS_DROPPED)
            .with_description("Spans that were not made, because as many as may wait for the collector")
            .with_callback(move |observer: &dyn AsyncInstrument<u64>| {
                observer.observe(queue.0.refused.load(Ordering::Relaxed), &[]);
            })
            .build();
    }
}
