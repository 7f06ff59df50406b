//! Logs on stderr, metrics as Prometheus text, and traces and metrics by OTLP where a collector is set.
//!
//! Purpose: start logs, metrics and traces with the settings of a program, provide meters and tracers, and flush at the end.
//! May depend on `settings`, `tls` and `error_chain`. Must not know Redis, Postgres, HTTP or the measurements of the
//! services; only `names` lists the names of their metrics.

pub mod counting;
mod exporter_health;
pub mod log_rate;
mod logs;
pub mod names;
mod otel_settings;
pub mod otel_variables;
mod otlp;
mod span_queue;
pub mod spans;

use std::{
    env, mem,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::Instant,
};

use clap::Args;
use opentelemetry::{
    InstrumentationScope, KeyValue,
    metrics::{Meter, MeterProvider},
    trace::TraceId,
};
use opentelemetry_sdk::{
    Resource,
    metrics::SdkMeterProvider,
    resource::TelemetryResourceDetector,
    trace::{IdGenerator, RandomIdGenerator, SdkTracerProvider},
};
use prometheus::{Encoder, Registry, TextEncoder};
use thiserror::Error;

pub use self::logs::{InvalidDirectives, LogLevel};
use self::{
    exporter_health::ExportFailures,
    logs::LogFormat,
    otel_settings::{OtelSettings, Signal, TraceSettings},
    otlp::{ExportRuntime, FINAL_EXPORT_TIMEOUT},
    span_queue::SpanQueue,
    spans::{LinkedSampler, SCOPE, Tracing},
};
use crate::settings::SettingError;

/// Settings of logs. Settings of traces and metrics are environment variables only: see [`otel_variables`].
#[derive(Args, Debug, Clone)]
#[command(after_help = "Export of traces and metrics: OTEL_* environment variables, see docs/telemetry.md\n\
        All settings: docs/configuration.md")]
pub struct TelemetryArgs {
    /// Format of log lines
    #[arg(long, env = "LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
    log_format: LogFormat,

    /// Log level (error, warn, info, debug or trace), or directives such as info,consumer=debug
    #[arg(long, env = "RUST_LOG", default_value = "info", value_name = "DIRECTIVES")]
    rust_log: String,
}

/// The running telemetry of a program.
#[derive(Clone)]
pub struct Telemetry {
    registry: Registry,
    meters: SdkMeterProvider,
    tracers: Option<SdkTracerProvider>,
    tracing: Tracing,
    log_level: LogLevel,
    exports: Arc<Mutex<Option<ExportRuntime>>>,
}

/// Error of the Prometheus text format.
#[derive(Debug, Error)]
#[error("cannot write metrics as Prometheus text")]
pub struct ExportError(#[source] Box<dyn std::error::Error + Send + Sync>);

impl Telemetry {
    /// Starts logs, metrics and traces of a program. Logs are global to the process, so this is called once.
    pub fn start(program: &'static str, args: &TelemetryArgs) -> Result<Self, SettingError> {
        let settings = OtelSettings::read(&|name| env::var_os(name))?;
        let log_level = logs::start(args.log_format, &args.rust_log)
            .map_err(|error| SettingError::new("RUST_LOG", error))?;
        Self::export(program, settings, log_level)
    }

    /// Starts metrics without logs and without a collector, for tests within a process.
    pub fn metrics_only() -> Result<Self, SettingError> {
        Self::export("test", OtelSettings::default(), LogLevel::fixed())
    }

    fn export(
        program: &'static str,
        settings: OtelSettings,
        log_level: LogLevel,
    ) -> Result<Self, SettingError> {
        let OtelSettings { resource_attributes, accepts_contexts, traces, metrics, ignored } = settings;
        for setting in ignored {
            tracing::warn!(setting, "setting is ignored");
        }
        let resource = resource(program, resource_attributes);
        let registry = Registry::new();
        let prometheus = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false)
            .build()
            .map_err(|error| SettingError::new("metrics", error))?;
        let mut meters = SdkMeterProvider::builder().with_resource(resource.clone()).with_reader(prometheus);
        let exports = if traces.is_some() || metrics.is_some() { Some(ExportRuntime::new()?) } else { None };
        let (trace_failures, metric_failures) = (ExportFailures::default(), ExportFailures::default());
        let queue = SpanQueue::new(traces.as_ref().map_or(0, |settings| settings.max_queue_spans));
        if let (Some(exports), Some(settings)) = (&exports, metrics) {
            meters = meters.with_reader(exports.metric_reader(&settings, metric_failures.clone())?);
        }
        let tracers = if let (Some(exports), Some(settings)) = (&exports, traces) {
            let TraceSettings { exporter, sampler, .. } = settings;
            let processor = exports.span_processor(&exporter, trace_failures.clone(), queue.clone())?;
            let sampler = LinkedSampler { sampler, queue: queue.clone() };
            let provider = SdkTracerProvider::builder().with_resource(resource).with_sampler(sampler);
            Some(provider.with_span_processor(processor).build())
        } else {
            None
        };
        let tracing = tracers.as_ref().map(|provider| Tracing::new(provider, accepts_contexts));
        let telemetry = Self {
            registry,
            meters: meters.build(),
            tracers,
            tracing: tracing.unwrap_or_default(),
            log_level,
            exports: Arc::new(Mutex::new(exports)),
        };
        let failures = vec![(Signal::Traces, trace_failures), (Signal::Metrics, metric_failures)];
        ExportFailures::observe(&telemetry.meter(), failures);
        queue.observe(&telemetry.meter());
        Ok(telemetry)
    }

    /// Returns the meter for all instruments.
    pub fn meter(&self) -> Meter {
        let scope = InstrumentationScope::builder(SCOPE)
            .with_version(env!("CARGO_PKG_VERSION"))
            .with_schema_url(names::SCHEMA_URL);
        self.meters.meter_with_scope(scope.build())
    }

    /// Returns the tracer of the program.
    pub fn tracing(&self) -> Tracing {
        self.tracing.clone()
    }

    /// Returns the log level, which can be changed.
    pub fn log_level(&self) -> &LogLevel {
        &self.log_level
    }

    /// Returns all metrics in the Prometheus text format.
    pub fn prometheus_text(&self) -> Result<String, ExportError> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text).map_err(|e| ExportError(e.into()))?;
        String::from_utf8(text).map_err(|e| ExportError(e.into()))
    }

    /// Exports the last spans and metrics at the end of a program, within [`FINAL_EXPORT_TIMEOUT`].
    pub fn flush(self) {
        let Self { meters, tracers, exports, .. } = self;
        let Some(exports) = exports.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        // The SDK waits in blocking calls, and in some of them exceeds its timeout.
        let (metrics_done, done) = mpsc::channel();
        let spans_done = metrics_done.clone();
        thread::spawn(move || {
            metrics_done.send(("metrics", meters.shutdown_with_timeout(FINAL_EXPORT_TIMEOUT)))
        });
        thread::spawn(move || {
            let done = tracers.map_or(Ok(()), |tracers| tracers.shutdown_with_timeout(FINAL_EXPORT_TIMEOUT));
            spans_done.send(("traces", done))
        });
        let deadline = Instant::now() + FINAL_EXPORT_TIMEOUT;
        for _ in 0..2 {
            match done.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok((_, Ok(()))) => {}
                Ok((signal, Err(error))) => tracing::warn!(signal, %error, "final export failed"),
                Err(_) => {
                    tracing::warn!("final export timed out: no reply from the collector");
                    // Dropped with the process: the SDK would log an error about a runtime that is shut down.
                    mem::forget(exports);
                    return;
                }
            }
        }
        exports.shut_down();
    }
}

/// Describes the program to the collector. Configured attributes override the defaults.
fn resource(program: &'static str, attributes: Vec<KeyValue>) -> Resource {
    let instance: TraceId = RandomIdGenerator::default().new_trace_id();
    Resource::builder_empty()
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_attributes([
            KeyValue::new(names::SERVICE_INSTANCE_ID, instance.to_string()),
            KeyValue::new(names::SERVICE_NAMESPACE, "likestream"),
            KeyValue::new(names::SERVICE_VERSION, env!("CARGO_PKG_VERSION")),
        ])
        .with_service_name(program)
        .with_attributes(attributes)
        .build()
}
