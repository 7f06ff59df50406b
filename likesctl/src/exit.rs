//! Exit codes and errors of `likesctl`.

use std::{error::Error, io};

use shared::{error_chain::one_line, redis, runtime::service::Unreachable, settings::EXIT_USAGE};
use thiserror::Error;

/// Outcome of a completed command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Success.
    Done,
    /// Some entries were skipped.
    Partial,
    /// Likes are missing from the table.
    Differs,
    /// Interrupted by SIGINT or SIGTERM.
    Interrupted,
    /// Status of a monitoring check: 0 ok, 1 warning, 2 critical, 3 unknown.
    Check(u8),
    /// The command completed and reported a failure.
    Failure,
}

impl Exit {
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failure => 1,
            Self::Partial => 4,
            Self::Differs => 5,
            Self::Interrupted => 130,
            Self::Check(code) => code,
        }
    }
}

/// Error that ends a command early.
#[derive(Debug, Error)]
pub(crate) enum CliError {
    #[error(transparent)]
    Failed(Box<dyn Error>),
    /// The command line or a setting is invalid.
    #[error("{0}")]
    Usage(String),
    /// Nothing was changed: the change was not confirmed, or is unsafe.
    #[error("{0}")]
    Refused(String),
    /// Interrupted before the first change.
    #[error("interrupted: nothing was changed")]
    Interrupted,
    /// The reader of standard output has closed it.
    #[error("standard output is closed")]
    Closed,
}

impl CliError {
    pub(crate) fn failed(line: impl Into<String>) -> Self {
        Self::Failed(line.into().into())
    }

    /// Returns the line to print, and the exit code.
    pub(crate) fn line_and_code(&self) -> (Option<String>, u8) {
        match self {
            Self::Failed(error) => (Some(one_line(&**error)), 1),
            Self::Usage(line) => (Some(line.clone()), EXIT_USAGE),
            Self::Refused(line) => (Some(format!("refused: {line}")), 6),
            Self::Interrupted => (Some(self.to_string()), Exit::Interrupted.code()),
            Self::Closed => (None, 0),
        }
    }
}

macro_rules! impl_from {
    ($($error:ty),*) => {
        $(impl From<$error> for CliError {
            fn from(error: $error) -> Self {
                Self::Failed(error.into())
            }
        })*
    };
}

impl_from!(
    Box<dyn Error>,
    shared::runtime::service::Unreachable<shared::postgres::ConnectError>,
    serde_json::Error
);

impl From<Unreachable<fred::error::Error>> for CliError {
    fn from(error: Unreachable<fred::error::Error>) -> Self {
        match error {
            Unreachable::Away { source, .. } if redis::error_code(&source).is_some() => source.into(),
            error => Self::Failed(error.into()),
        }
    }
}

impl From<tokio_postgres::Error> for CliError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::failed(format!("Postgres query failed: {}", one_line(&error)))
    }
}

impl From<fred::error::Error> for CliError {
    fn from(error: fred::error::Error) -> Self {
        // A reply is no sign that Redis is unavailable, whatever it refuses.
        let failed = match redis::error_code(&error) {
            None if redis::is_away(&error) => "Redis is unavailable",
            _ => "Redis command failed",
        };
        let remedy = redis::remedy(&error).map(|remedy| format!("; {remedy}")).unwrap_or_default();
        Self::failed(format!("{failed}: {}{remedy}", error.details()))
    }
}

impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe { Self::Closed } else { Self::Failed(error.into()) }
    }
}
