//! Logs on stderr, with a level that can be changed at run time.

use std::{
    io::{self, IsTerminal},
    sync::{Arc, Mutex, PoisonError},
};

use clap::ValueEnum;
use thiserror::Error;
use tracing_subscriber::{
    EnvFilter, Registry,
    filter::LevelFilter,
    fmt::{self, time::SystemTime},
    layer::SubscriberExt,
    reload,
    util::SubscriberInitExt,
};

#[derive(ValueEnum, Debug, Clone, Copy)]
pub(super) enum LogFormat {
    Text,
    Json,
}

/// Invalid directives.
#[derive(Debug, Error)]
#[error("'{0}' is not valid; expected a level or directives such as info,consumer=debug")]
pub struct InvalidDirectives(String);

/// The active directives, which can be changed.
#[derive(Clone)]
pub struct LogLevel {
    /// The value of `RUST_LOG`.
    configured: String,
    current: Arc<Mutex<String>>,
    /// `None` for a program without logs.
    filter: Option<reload::Handle<EnvFilter, Registry>>,
}

impl LogLevel {
    fn new(directives: &str, filter: Option<reload::Handle<EnvFilter, Registry>>) -> Self {
        let current = Arc::new(Mutex::new(directives.to_owned()));
        Self { configured: directives.to_owned(), current, filter }
    }

    /// For a program without logs.
    pub(super) fn fixed() -> Self {
        Self::new("off", None)
    }

    /// Returns the active directives.
    pub fn current(&self) -> String {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the active directives.
    pub fn set(&self, directives: &str) -> Result<(), InvalidDirectives> {
        let new = filter(directives)?;
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        directives.clone_into(&mut current);
        if let Some(filter) = &self.filter {
            // Fails only after the subscriber was dropped, when nothing is logged at all.
            let _ = filter.reload(new);
        }
        Ok(())
    }

    /// Restores the directives of the start.
    pub fn reset(&self) {
        // The directives were valid at the start.
        let _ = self.set(&self.configured);
    }
}

/// Starts the logs of the process.
pub(super) fn start(format: LogFormat, directives: &str) -> Result<LogLevel, InvalidDirectives> {
    let (filter, handle) = reload::Layer::new(filter(directives)?);
    let lines = fmt::layer()
        .with_timer(SystemTime)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        // The layer would report them on stderr, and panic if stderr itself fails.
        .log_internal_errors(false);
    let logs = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Text => logs.with(lines).init(),
        LogFormat::Json => logs.with(lines.json().flatten_event(true)).init(),
    }
    Ok(LogLevel::new(directives, Some(handle)))
}

/// Default level of the SDK. At `info` it logs the start and stop of its parts, and its exporter logs each failure, which
/// `exporter_health` reports instead. Both are logged only where a directive names them.
const QUIET: (&str, &str) = ("opentelemetry", "opentelemetry=warn,opentelemetry-otlp=off");

/// A single word must be a level: the parser would accept a typo as a target.
fn filter(directives: &str) -> Result<EnvFilter, InvalidDirectives> {
    // The parser accepts an empty word as a level, too.
    let is_level = |word: &str| !word.trim().is_empty() && word.trim().parse::<LevelFilter>().is_ok();
    let clear = |directive: &str| {
        (directive.contains(['=', '[']) || is_level(directive)) && !directive.contains(char::is_control)
    };
    let invalid = || InvalidDirectives(directives.to_owned());
    if !directives.split(',').all(clear) {
        return Err(invalid());
    }
    let (target, quiet) = QUIET;
    let asked = directives.contains(target) || ["off", "error"].contains(&directives.trim());
    let directives = if asked { directives.to_owned() } else { format!("{directives},{quiet}") };
    // A client of the admin port could send a regular expression with an excessive compile time.
    EnvFilter::builder().with_regex(false).parse(directives).map_err(|_| invalid())
}
