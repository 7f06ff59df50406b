//! Errors of batch writes.

use shared::postgres::{self, ConnectError, FailureClass};
use thiserror::Error;
use tokio_postgres::error::SqlState;

use crate::store::session;

/// Error of a batch write. The batch may be stored despite the error, if only the reply to COMMIT was lost.
#[derive(Debug, Error)]
pub enum WriteError {
    #[error("cannot connect to Postgres")]
    Connect(#[source] ConnectError),
    #[error("Postgres transaction failed")]
    Postgres(#[source] tokio_postgres::Error),
    #[error("a connection pooler shares the sessions of Postgres")]
    SharedSession(#[source] Option<tokio_postgres::Error>),
    #[error("Postgres did not respond within WRITE_TIMEOUT")]
    Timeout,
    #[error("Postgres staged only {staged} of {rows} rows")]
    Staged { staged: u64, rows: usize },
    #[error("Postgres did not report the number of inserted rows")]
    Answer,
}

impl From<ConnectError> for WriteError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Session(error) if session::is_of_shared_session(&error) => {
                Self::SharedSession(Some(error))
            }
            error => Self::Connect(error),
        }
    }
}

impl From<tokio_postgres::Error> for WriteError {
    fn from(error: tokio_postgres::Error) -> Self {
        if session::is_of_shared_session(&error) {
            Self::SharedSession(Some(error))
        } else {
            Self::Postgres(error)
        }
    }
}

impl WriteError {
    /// Returns the error class. An error before rows are sent is never [`FailureClass::Reject`].
    pub fn class(&self) -> FailureClass {
        match self {
            Self::Postgres(error) => postgres::classify(error),
            Self::SharedSession(_) => FailureClass::Halt,
            Self::Connect(error) => error.class(),
            Self::Timeout | Self::Staged { .. } | Self::Answer => FailureClass::Retry,
        }
    }
}

impl WriteError {
    /// Returns the action that resolves a halting error.
    pub(crate) fn remedy(&self) -> &'static str {
        match self {
            Self::SharedSession(_) => "set POSTGRES_POOLING=transaction on all consumers behind it",
            _ => "fix the schema, the privileges or the connection settings",
        }
    }

    /// Returns the error type for metrics and spans: the SQLSTATE, or one of a few fixed words.
    pub fn error_type(&self) -> &str {
        self.sqlstate().unwrap_or(match self {
            Self::Connect(_) => "connection",
            Self::Postgres(error) if error.is_closed() => "connection",
            Self::Timeout => "timeout",
            Self::SharedSession(_) => "shared_session",
            Self::Postgres(_) | Self::Staged { .. } | Self::Answer => "_OTHER",
        })
    }

    /// Returns the SQLSTATE. Postgres has about two hundred of them.
    pub(super) fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Postgres(error) | Self::SharedSession(Some(error)) => error.code().map(SqlState::code),
            Self::Connect(error) => error.sqlstate(),
            _ => None,
        }
    }
}
