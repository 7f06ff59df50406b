//! Errors of transactions. Each tells where in the transaction it arose: an error before rows are sent says nothing about
//! rows.

use shared::postgres::{self, ConnectError, FailureClass, RowsFailure};
use thiserror::Error;
use tokio_postgres::error::SqlState;

use crate::store::{
    session,
    table::{TableError, TableFault},
};

/// Part of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Connection, session, BEGIN and verification of the table, before any row is sent.
    Setup,
    /// Statements with rows.
    Rows,
    Commit,
}

/// Error of a transaction. The rows may be stored despite the error, if only the reply to COMMIT was lost.
#[derive(Debug, Error)]
pub enum WriteError {
    #[error("cannot connect to Postgres")]
    Connect(#[source] ConnectError),
    #[error("a connection pooler shares the sessions of Postgres")]
    SharedSession(#[source] Option<tokio_postgres::Error>),
    #[error("the table must not be written to")]
    Table(#[source] TableFault),
    #[error("the table was changed before rows were sent")]
    TableChanged,
    #[error("cannot begin a transaction in Postgres")]
    Setup(#[source] tokio_postgres::Error),
    #[error("Postgres transaction failed")]
    Rows(#[source] tokio_postgres::Error),
    #[error("Postgres did not commit")]
    Commit(#[source] tokio_postgres::Error),
    #[error("Postgres did not respond within WRITE_TIMEOUT")]
    Timeout(Phase),
    #[error("COMMIT did not return within WRITE_TIMEOUT: commits wait for a synchronous standby")]
    StandbyTimeout,
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

impl From<TableError> for WriteError {
    fn from(error: TableError) -> Self {
        match error {
            TableError::Fault(fault) => Self::Table(fault),
            TableError::Postgres(error) => Self::in_phase(Phase::Setup, error),
        }
    }
}

impl WriteError {
    pub(super) fn in_phase(phase: Phase, error: tokio_postgres::Error) -> Self {
        if session::is_of_shared_session(&error) {
            return Self::SharedSession(Some(error));
        }
        match phase {
            Phase::Setup => Self::Setup(error),
            Phase::Rows => Self::Rows(error),
            Phase::Commit => Self::Commit(error),
        }
    }

    /// Returns the error class. Only a statement with rows can be [`FailureClass::Reject`].
    pub fn class(&self) -> FailureClass {
        match self {
            Self::SharedSession(_) | Self::Table(_) => FailureClass::Halt,
            Self::Rows(error) => postgres::classify(error),
            // An event trigger, or a function that a setting names: an operator must act.
            Self::Setup(error) => match postgres::classify(error) {
                FailureClass::Reject => FailureClass::Halt,
                class => class,
            },
            Self::Connect(error) => error.class(),
            Self::Commit(error) => match postgres::classify(error) {
                FailureClass::Halt => FailureClass::Halt,
                FailureClass::Retry | FailureClass::Reject => FailureClass::Retry,
            },
            Self::TableChanged
            | Self::Timeout(_)
            | Self::StandbyTimeout
            | Self::Staged { .. }
            | Self::Answer => FailureClass::Retry,
        }
    }

    /// Returns the conclusion about the rows that were sent.
    pub(super) fn about_rows(&self) -> RowsFailure {
        match self {
            Self::Rows(error) => postgres::classify_rows(error),
            // Deferred constraints are checked by COMMIT, which names no row.
            Self::Commit(error) => match postgres::classify_rows(error) {
                RowsFailure::Rejected => RowsFailure::Unknown,
                failure => failure,
            },
            _ => RowsFailure::Server,
        }
    }

    /// Returns whether the connection was lost, or Postgres became silent, while it processed rows: perhaps because of them.
    pub(super) fn is_loss_during_rows(&self) -> bool {
        match self {
            Self::Timeout(Phase::Rows) => true,
            Self::Rows(error) => {
                let ended = [SqlState::ADMIN_SHUTDOWN, SqlState::CRASH_SHUTDOWN];
                error.is_closed() || error.code().is_none_or(|code| ended.contains(code))
            }
            _ => false,
        }
    }

    /// Returns whether the time limit of Postgres ended a statement.
    pub(super) fn is_statement_timeout(&self) -> bool {
        matches!(self, Self::Rows(error) if error.code() == Some(&SqlState::QUERY_CANCELED))
    }

    /// Returns the action that resolves a halting error.
    pub(crate) fn remedy(&self) -> &'static str {
        match self {
            Self::SharedSession(_) => "set POSTGRES_POOLING=transaction on all consumers behind it",
            Self::Table(_) => "fix the table; consumers continue by themselves",
            _ => "fix the schema, the privileges or the connection settings",
        }
    }

    /// Returns the error type for metrics and spans: the SQLSTATE, or one of a few fixed words.
    pub fn error_type(&self) -> &str {
        self.sqlstate().unwrap_or(match self {
            Self::Connect(_) => "connection",
            Self::Setup(error) | Self::Rows(error) | Self::Commit(error) if error.is_closed() => "connection",
            Self::Timeout(_) | Self::StandbyTimeout => "timeout",
            Self::SharedSession(_) => "shared_session",
            Self::Table(_) | Self::TableChanged => "table",
            Self::Setup(_) | Self::Rows(_) | Self::Commit(_) | Self::Staged { .. } | Self::Answer => "_OTHER",
        })
    }

    /// Returns the SQLSTATE. Postgres has about two hundred of them.
    pub(super) fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Setup(error)
            | Self::Rows(error)
            | Self::Commit(error)
            | Self::SharedSession(Some(error)) => error.code().map(SqlState::code),
            Self::Connect(error) => error.sqlstate(),
            _ => None,
        }
    }
}
