//! Logs on stderr, whose level can be changed while a program runs.

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

/// What log lines look like.
#[derive(ValueEnum, Debug, Clone, Copy)]
pub(super) enum LogFormat {
    Text,
    Json,
}

/// Not what to log.
#[derive(Debug, Error)]
#[error("'{0}' is not valid: allowed is a level or something like info,consumer=debug")]
pub struct InvalidDirectives(String);

/// What is logged, to be read and changed.
#[derive(Clone)]
pub struct LogLevel {
    /// Of `RUST_LOG`.
    configured: String,
    current: Arc<Mutex<String>>,
    /// Nothing where there are no logs.
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

    /// The directives that hold now.
    pub fn current(&self) -> String {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on these hold.
    pub fn set(&self, directives: &str) -> Result<(), InvalidDirectives> {
        let new = filter(directives)?;
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        directives.clone_into(&mut current);
        if let Some(filter) = &self.filter {
            // It fails when there is no subscriber any more, and then nobody reads what is logged.
            let _ = filter.reload(new);
        }
        Ok(())
    }

    /// From now on those hold that the program was started with.
    pub fn reset(&self) {
        // They were good then.
        let _ = self.set(&self.configured);
    }
}

/// Starts logs, for the whole process.
pub(super) fn start(format: LogFormat, directives: &str) -> Result<LogLevel, InvalidDirectives> {
    let (filter, handle) = reload::Layer::new(filter(directives)?);
    let lines = fmt::layer()
        .with_timer(SystemTime)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        // It would say so on stderr, and panic where that is the trouble.
        .log_internal_errors(false);
    let logs = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Text => logs.with(lines).init(),
        LogFormat::Json => logs.with(lines.json().flatten_event(true)).init(),
    }
    Ok(LogLevel::new(directives, Some(handle)))
}

/// The SDK tells at `info` how its parts come and go, and its exporter of each failure, which we do ourselves: that is of
/// interest only to whoever asks for it.
const QUIET: (&str, &str) = ("opentelemetry", "opentelemetry=warn,opentelemetry-otlp=off");

/// A word alone must be a level: it could be a target, too, but hardly anybody means one.
fn filter(directives: &str) -> Result<EnvFilter, InvalidDirectives> {
    // Nothing at all would be a level to it, too.
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
    // Whoever reaches the admin port could have a regular expression compiled for ever.
    EnvFilter::builder().with_regex(false).parse(directives).map_err(|_| invalid())
}
