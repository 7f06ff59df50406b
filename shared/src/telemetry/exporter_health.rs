//! Exporter health: counts failed exports, and logs the first failure and the recovery. The SDK would log every failed batch.

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
    otel_settings::Signal,
    span_queue::SpanQueue,
};

/// Number of failed exports of a signal.
#[derive(Clone, Debug, Default)]
pub(super) struct ExportFailures(Arc<AtomicU64>);

impl ExportFailures {
    /// Registers the numbers as a metric.
    pub(super) fn observe(meter: &Meter, by_signal: Vec<(Signal, Self)>) {
        let observe = move |observer: &dyn AsyncInstrument<u64>| {
            for (signal, failures) in &by_signal {
                let signal = KeyValue::new(names::SIGNAL, signal.name());
                observer.observe(failures.0.load(Ordering::Relaxed), &[signal]);
            }
        };
        meter
            .u64_observable_counter(metric::EXPORT_FAILURES)
            .with_description("Failed exports to a collector: their data is lost")
            .with_callback(observe)
            .build();
    }
}

/// Wraps an exporter. Counts and logs its failures, and hides them from the SDK.
#[derive(Debug)]
pub(super) struct MonitoredExporter<E> {
    exporter: E,
    signal: Signal,
    failures: ExportFailures,
    is_failing: AtomicBool,
    queue: Option<SpanQueue>,
}

impl<E> MonitoredExporter<E> {
    pub(super) fn new(exporter: E, signal: Signal, failures: ExportFailures) -> Self {
        Self { exporter, signal, failures, is_failing: AtomicBool::new(false), queue: None }
    }

    /// Releases the slots of exported spans in this queue.
    pub(super) fn draining(self, queue: SpanQueue) -> Self {
        Self { queue: Some(queue), ..self }
    }

    fn record(&self, exported: OTelSdkResult) {
        let signal = self.signal.name();
        match exported {
            Ok(()) => {
                if self.is_failing.swap(false, Ordering::Relaxed) {
                    let failures = self.failures.0.load(Ordering::Relaxed);
                    tracing::info!(signal, failures, "export to the collector works again");
                }
            }
            Err(error) => {
                self.failures.0.fetch_add(1, Ordering::Relaxed);
                if !self.is_failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(signal, %error, "export to the collector fails, data is dropped until it recovers");
                }
            }
        }
    }
}

impl<E: SpanExporter> SpanExporter for MonitoredExporter<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        self.record(self.exporter.export(batch).await);
        if let Some(queue) = &self.queue {
            queue.release(spans);
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

impl<E: PushMetricExporter> PushMetricExporter for MonitoredExporter<E> {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        self.record(self.exporter.export(metrics).await);
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
