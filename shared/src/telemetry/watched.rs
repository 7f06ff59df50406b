//! Exporters that say when they fail and when they work again, once each, and count what they could not export. The
//! SDK would complain of every single batch.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use opentelemetry::{
    KeyValue,
    metrics::{AsyncInstrument, Meter},
};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    metrics::{Temporality, data::ResourceMetrics, exporter::PushMetricExporter},
    trace::{SpanData, SpanExporter},
};

use super::{
    names::{self, metric},
    otel_args::Signal,
    span_queue::SpanQueue,
};

/// How often the exports of a signal have failed.
#[derive(Clone, Debug, Default)]
pub(super) struct Failures(Arc<AtomicU64>);

impl Failures {
    /// Shows them.
    pub(super) fn observe(meter: &Meter, of: Vec<(Signal, Self)>) {
        let observe = move |observer: &dyn AsyncInstrument<u64>| {
            for (signal, failures) in &of {
                let signal = KeyValue::new(names::SIGNAL, signal.name().to_lowercase());
                observer.observe(failures.0.load(Ordering::Relaxed), &[signal]);
            }
        };
        meter
            .u64_observable_counter(metric::EXPORT_FAILURES)
            .with_description("Exports to a collector that failed: what they held is lost")
            .with_callback(observe)
            .build();
    }
}

/// An exporter that is watched.
#[derive(Debug)]
pub(super) struct Watched<E> {
    exporter: E,
    signal: Signal,
    failures: Failures,
    failing: AtomicBool,
    /// Where spans have waited.
    queue: Option<SpanQueue>,
}

impl<E> Watched<E> {
    pub(super) fn new(exporter: E, signal: Signal, failures: Failures) -> Self {
        Self { exporter, signal, failures, failing: AtomicBool::new(false), queue: None }
    }

    /// What is exported leaves this queue.
    pub(super) fn emptying(self, queue: SpanQueue) -> Self {
        Self { queue: Some(queue), ..self }
    }

    /// What came of an export is told here, and so to nobody else.
    fn ended(&self, exported: OTelSdkResult) {
        let signal = self.signal.name().to_lowercase();
        match exported {
            Ok(()) => {
                if self.failing.swap(false, Ordering::Relaxed) {
                    let failures = self.failures.0.load(Ordering::Relaxed);
                    tracing::info!(signal, failures, "exported again");
                }
            }
            Err(error) => {
                self.failures.0.fetch_add(1, Ordering::Relaxed);
                if !self.failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(signal, %error, "not exported, and lost, until the collector takes it");
                }
            }
        }
    }
}

impl<E: SpanExporter> SpanExporter for Watched<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        self.ended(self.exporter.export(batch).await);
        if let Some(queue) = &self.queue {
            queue.leave(spans);
        }
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

impl<E: PushMetricExporter> PushMetricExporter for Watched<E> {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        self.ended(self.exporter.export(metrics).await);
        Ok(())
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.exporter.temporality()
    }
}
