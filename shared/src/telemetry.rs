//! Logs on stderr, metrics by the OpenTelemetry API as Prometheus text.

use std::io::{self, IsTerminal};

use clap::{Args, ValueEnum};
use opentelemetry::metrics::{Meter, MeterProvider};
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::{Encoder, Registry, TextEncoder};
use thiserror::Error;
use tracing_subscriber::{EnvFilter, filter::LevelFilter, fmt::time::SystemTime};

use crate::cli::SettingError;

/// How to log.
#[derive(Args, Debug, Clone)]
pub struct TelemetryArgs {
    /// What log lines look like
    #[arg(long, env = "LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
    log_format: LogFormat,

    /// What is logged: a level, or `tracing` directives like info,consumer=debug
    #[arg(long, env = "RUST_LOG", default_value = "info", value_name = "DIRECTIVES")]
    rust_log: String,
}

#[derive(ValueEnum, Debug, Clone, Copy)]
enum LogFormat {
    Text,
    Json,
}

/// A word alone must be a level: it could be a target, too, but hardly anybody means one.
fn filter(directives: &str) -> Option<EnvFilter> {
    let is_level = |word: &str| word.trim().parse::<LevelFilter>().is_ok();
    let clear = |directive: &str| directive.contains(['=', '[']) || is_level(directive);
    if directives.split(',').all(clear) { EnvFilter::try_new(directives).ok() } else { None }
}

/// The running telemetry of a program.
#[derive(Clone)]
pub struct Telemetry {
    registry: Registry,
    meters: SdkMeterProvider,
}

/// The metrics can't be exported.
#[derive(Debug, Error)]
#[error("metrics can't be exported")]
pub struct ExportError(#[source] Box<dyn std::error::Error + Send + Sync>);

impl Telemetry {
    /// Starts logs (for the whole process, so once) and metrics.
    pub fn start(args: &TelemetryArgs) -> Result<Self, SettingError> {
        let filter = filter(&args.rust_log).ok_or_else(|| {
            let problem = format!(
                "'{}' is not valid: allowed is a level or something like info,consumer=debug",
                args.rust_log
            );
            SettingError::new("RUST_LOG", problem)
        })?;
        let logs = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_timer(SystemTime)
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal())
            // It would say so on stderr, and panic where that is the trouble.
            .log_internal_errors(false);
        match args.log_format {
            LogFormat::Text => logs.init(),
            LogFormat::Json => logs.json().flatten_event(true).init(),
        }
        Self::metrics_only().map_err(|e| SettingError::new("metrics", e))
    }

    /// Metrics without logs, for tests inside of one process.
    pub fn metrics_only() -> Result<Self, ExportError> {
        let registry = Registry::new();
        let exporter = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false)
            .without_target_info()
            .build()
            .map_err(|e| ExportError(e.into()))?;
        let meters = SdkMeterProvider::builder().with_reader(exporter).build();
        Ok(Self { registry, meters })
    }

    /// What instruments are made of.
    pub fn meter(&self) -> Meter {
        self.meters.meter("likestream")
    }

    /// All metrics in the Prometheus text format.
    pub fn prometheus_text(&self) -> Result<String, ExportError> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text).map_err(|e| ExportError(e.into()))?;
        String::from_utf8(text).map_err(|e| ExportError(e.into()))
    }

    /// Lets go of what is still to be exported. For the end of a program.
    pub fn flush(self) {
        if let Err(error) = self.meters.shutdown() {
            tracing::warn!(%error, "the last metrics were not exported");
        }
    }
}
