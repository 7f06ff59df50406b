//! Logs on stderr, metrics as Prometheus text, and both traces and metrics by OTLP where a collector is named.

pub mod counting;
pub mod log_rate;
mod logs;
pub mod names;
mod otel_args;
mod otel_settings;
mod otlp;
mod span_queue;
pub mod spans;
mod watched;

use std::{
    mem,
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
    trace::{IdGenerator, RandomIdGenerator, SdkTracerProvider, SpanLimits},
};
use prometheus::{Encoder, Registry, TextEncoder};
use thiserror::Error;

pub use self::logs::{InvalidDirectives, LogLevel};
use self::{
    logs::LogFormat,
    otel_args::{OtelArgs, Signal},
    otel_settings::OtelSettings,
    otlp::{Exporting, LAST_EXPORT},
    span_queue::SpanQueue,
    spans::{LinkedSampler, SCOPE, Tracing},
    watched::Failures,
};
use crate::settings::SettingError;

/// How to log, and what to export.
#[derive(Args, Debug, Clone)]
pub struct TelemetryArgs {
    /// What log lines look like
    #[arg(long, env = "LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
    log_format: LogFormat,

    /// What is logged: a level, or `tracing` directives like info,consumer=debug
    #[arg(long, env = "RUST_LOG", default_value = "info", value_name = "DIRECTIVES")]
    rust_log: String,

    #[command(flatten)]
    otel: OtelArgs,
}

/// The running telemetry of a program.
#[derive(Clone)]
pub struct Telemetry {
    registry: Registry,
    meters: SdkMeterProvider,
    tracers: Option<SdkTracerProvider>,
    tracing: Tracing,
    log_level: LogLevel,
    exporting: Arc<Mutex<Option<Exporting>>>,
}

/// The metrics can't be exported.
#[derive(Debug, Error)]
#[error("metrics can't be exported")]
pub struct ExportError(#[source] Box<dyn std::error::Error + Send + Sync>);

impl Telemetry {
    /// Starts logs (for the whole process, so once), metrics and traces of a program.
    pub fn start(program: &'static str, args: &TelemetryArgs) -> Result<Self, SettingError> {
        let settings = OtelSettings::read(&args.otel)?;
        let log_level = logs::start(args.log_format, &args.rust_log)
            .map_err(|error| SettingError::new("RUST_LOG", error))?;
        Self::export(program, settings, log_level)
    }

    /// Metrics without logs and without a collector, for tests inside of one process.
    pub fn metrics_only() -> Result<Self, SettingError> {
        Self::export("test", OtelSettings::default(), LogLevel::fixed())
    }

    fn export(
        program: &'static str,
        settings: OtelSettings,
        log_level: LogLevel,
    ) -> Result<Self, SettingError> {
        let OtelSettings { service_name, attributes, takes_contexts, traces, metrics, ignored } = settings;
        for what in ignored {
            tracing::warn!("ignored: {what}");
        }
        let instance: TraceId = RandomIdGenerator::default().new_trace_id();
        let resource = Resource::builder_empty()
            .with_detector(Box::new(TelemetryResourceDetector))
            .with_attributes([
                KeyValue::new(names::SERVICE_INSTANCE_ID, instance.to_string()),
                KeyValue::new(names::SERVICE_NAMESPACE, "likestream"),
                KeyValue::new(names::SERVICE_VERSION, env!("CARGO_PKG_VERSION")),
            ])
            .with_service_name(program)
            .with_attributes(attributes)
            .with_attributes(service_name.map(|name| KeyValue::new(names::SERVICE_NAME, name)))
            .build();
        let registry = Registry::new();
        let prometheus = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false)
            .build()
            .map_err(|error| SettingError::new("metrics", error))?;
        let mut meters = SdkMeterProvider::builder().with_resource(resource.clone()).with_reader(prometheus);
        let exporting = if traces.is_some() || metrics.is_some() { Some(Exporting::new()?) } else { None };
        let (mut tracers, mut tracing) = (None, Tracing::default());
        let (spans_lost, metrics_lost) = (Failures::default(), Failures::default());
        let queue = SpanQueue::new(traces.as_ref().map_or(0, |settings| settings.max_queue_spans));
        if let Some(exporting) = &exporting {
            if let Some(settings) = metrics {
                meters = meters.with_reader(exporting.metrics(&settings, metrics_lost.clone())?);
            }
            if let Some(settings) = traces {
                let limits = SpanLimits { max_links_per_span: settings.max_links, ..SpanLimits::default() };
                let provider = SdkTracerProvider::builder()
                    .with_resource(resource)
                    .with_span_limits(limits)
                    .with_span_processor(exporting.spans(&settings, spans_lost.clone(), queue.clone())?)
                    .with_sampler(LinkedSampler { sampler: settings.sampler, queue: queue.clone() })
                    .build();
                tracing = Tracing::new(&provider, takes_contexts);
                tracers = Some(provider);
            }
        }
        let exporting = Arc::new(Mutex::new(exporting));
        let telemetry = Self { registry, meters: meters.build(), tracers, tracing, log_level, exporting };
        let failures = vec![(Signal::Traces, spans_lost), (Signal::Metrics, metrics_lost)];
        Failures::observe(&telemetry.meter(), failures);
        queue.observe(&telemetry.meter());
        Ok(telemetry)
    }

    /// What instruments are made of.
    pub fn meter(&self) -> Meter {
        let scope = InstrumentationScope::builder(SCOPE)
            .with_version(env!("CARGO_PKG_VERSION"))
            .with_schema_url(names::SCHEMA_URL);
        self.meters.meter_with_scope(scope.build())
    }

    /// What spans are made of.
    pub fn tracing(&self) -> Tracing {
        self.tracing.clone()
    }

    /// What is logged.
    pub fn log_level(&self) -> &LogLevel {
        &self.log_level
    }

    /// All metrics in the Prometheus text format.
    pub fn prometheus_text(&self) -> Result<String, ExportError> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text).map_err(|e| ExportError(e.into()))?;
        String::from_utf8(text).map_err(|e| ExportError(e.into()))
    }

    /// Exports what is still to be exported, if the collector takes it soon. For the end of a program.
    pub fn flush(self) {
        let Self { meters, tracers, exporting, .. } = self;
        let Some(exporting) = exporting.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        // The SDK waits in calls that block, in some of them for longer than it was told.
        let (done, ended) = mpsc::channel();
        let spans_done = done.clone();
        thread::spawn(move || done.send(("metrics", meters.shutdown_with_timeout(LAST_EXPORT))));
        thread::spawn(move || {
            let ended = tracers.map_or(Ok(()), |tracers| tracers.shutdown_with_timeout(LAST_EXPORT));
            spans_done.send(("traces", ended))
        });
        let give_up_at = Instant::now() + LAST_EXPORT;
        for _ in 0..2 {
            let left = give_up_at.saturating_duration_since(Instant::now());
            match ended.recv_timeout(left) {
                Ok((_, Ok(()))) => {}
                Ok((what, Err(error))) => tracing::warn!(%error, "the last {what} were not exported"),
                Err(_) => {
                    tracing::warn!(
                        "not all of the last traces and metrics were exported: the collector does not answer"
                    );
                    // Ended by us it would complain of that. It ends with the process.
                    mem::forget(exporting);
                    return;
                }
            }
        }
        exporting.end();
    }
}
