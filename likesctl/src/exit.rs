//! How `likesctl` ends.

use std::{error::Error, io};

use shared::{error_chain::one_line, redis, settings::EXIT_USAGE};
use thiserror::Error;

/// How a command ended that could do its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// All is as it should be.
    Done,
    /// Some of it was not done: skipped, or no longer there.
    Partial,
    /// The table and the streams differ.
    Differs,
    /// By Ctrl-C or SIGTERM.
    Interrupted,
    /// What a monitoring system wants to hear: 0 ok, 1 warning, 2 critical, 3 unknown.
    Check(u8),
    /// Something is wrong, and was said.
    Unwell,
}

impl Exit {
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Unwell => 1,
            Self::Partial => 4,
            Self::Differs => 5,
            Self::Interrupted => 130,
            Self::Check(code) => code,
        }
    }
}

/// Why a command could not do its work.
#[derive(Debug, Error)]
pub(crate) enum CliError {
    /// Something failed.
    #[error(transparent)]
    Failed(Box<dyn Error>),
    /// What was asked for makes no sense.
    #[error("{0}")]
    Usage(String),
    /// Nothing was changed, since nobody said yes, or since it would do harm.
    #[error("{0}")]
    Refused(String),
    /// By Ctrl-C, at a question.
    #[error("interrupted: nothing was changed")]
    Interrupted,
    /// Nobody reads the output any more.
    #[error("nobody reads the output")]
    Closed,
}

impl CliError {
    /// For people.
    pub(crate) fn failed(line: impl Into<String>) -> Self {
        Self::Failed(line.into().into())
    }

    /// What to say, and the exit code.
    pub(crate) fn end(&self) -> (Option<String>, u8) {
        match self {
            Self::Failed(error) => (Some(one_line(&**error)), 1),
            Self::Usage(line) => (Some(line.clone()), EXIT_USAGE),
            Self::Refused(line) => (Some(format!("refused: {line}")), 6),
            Self::Interrupted => (Some(self.to_string()), Exit::Interrupted.code()),
            Self::Closed => (None, 0),
        }
    }
}

macro_rules! fails {
    ($($error:ty),*) => {
        $(impl From<$error> for CliError {
            fn from(error: $error) -> Self {
                Self::Failed(error.into())
            }
        })*
    };
}

fails!(
    Box<dyn Error>,
    tokio_postgres::Error,
    shared::runtime::service::Unreachable<fred::error::Error>,
    shared::runtime::service::Unreachable<tokio_postgres::Error>,
    serde_json::Error
);

impl From<fred::error::Error> for CliError {
    fn from(error: fred::error::Error) -> Self {
        if redis::error_code(&error) == Some("OOM") {
            return Self::failed("Redis is out of memory and takes nothing new: runbook, Redis memory");
        }
        if redis::is_away(&error) {
            return Self::failed(format!("Redis does not answer as it should: {}", error.details()));
        }
        Self::Failed(error.into())
    }
}

impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe { Self::Closed } else { Self::Failed(error.into()) }
    }
}
