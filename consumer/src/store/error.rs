//! Errors of a batch that could not be stored.

use deadpool_postgres::{HookError, PoolError};
use shared::postgres::{self, FailureClass};
use thiserror::Error;
use tokio_postgres::error::SqlState;

use crate::store::session;

/// A batch is not known to be stored. It may be stored all the same, when the reply to COMMIT was lost.
#[derive(Debug, Error)]
pub enum WriteError {
    #[error("no connection to Postgres")]
    Connect(#[source] PoolError),
    #[error("Postgres did not store the batch")]
    Postgres(#[source] tokio_postgres::Error),
    #[error(
        "a pooler shares the sessions of Postgres: set POSTGRES_POOLING=transaction, for all consumers behind it"
    )]
    SharedSession(#[source] Option<tokio_postgres::Error>),
    #[error("Postgres did not answer within WRITE_TIMEOUT")]
    Timeout,
    #[error("Postgres staged {staged} of {rows} rows")]
    Staged { staged: u64, rows: usize },
    #[error("Postgres did not say how many rows it inserted")]
    Answer,
}

impl From<PoolError> for WriteError {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::PostCreateHook(HookError::Backend(error)) if session::is_of_shared_session(&error) => {
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
    /// Returns what follows from it. A failure before rows are sent is never the rows' fault.
    pub fn class(&self) -> FailureClass {
        match self {
            Self::Postgres(error) => postgres::classify(error),
            Self::SharedSession(_) => FailureClass::Halt,
            Self::Connect(
                PoolError::Backend(error) | PoolError::PostCreateHook(HookError::Backend(error)),
            ) => match postgres::classify(error) {
                FailureClass::Halt => FailureClass::Halt,
                FailureClass::Retry | FailureClass::Reject => FailureClass::Retry,
            },
            Self::Connect(_) | Self::Timeout | Self::Staged { .. } | Self::Answer => FailureClass::Retry,
        }
    }
}

impl WriteError {
    /// Returns its type for metrics and spans: the SQLSTATE, or one of few words of ours.
    pub fn error_type(&self) -> &str {
        self.sqlstate().unwrap_or(match self {
            Self::Connect(_) => "connection",
            Self::Postgres(error) if error.is_closed() => "connection",
            Self::Timeout => "timeout",
            Self::SharedSession(_) => "shared_session",
            Self::Postgres(_) | Self::Staged { .. } | Self::Answer => "_OTHER",
        })
    }

    /// Returns the SQLSTATE, of which there are some two hundred.
    pub(super) fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Postgres(error)
            | Self::SharedSession(Some(error))
            | Self::Connect(
                PoolError::Backend(error) | PoolError::PostCreateHook(HookError::Backend(error)),
            ) => error.code().map(SqlState::code),
            _ => None,
        }
    }
}
