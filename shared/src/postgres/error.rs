//! Errors of connections.

use std::{error::Error, fmt, io, time::Duration};

use deadpool::managed::{PoolError, TimeoutType};
use tokio_postgres::error::SqlState;

use super::classify::{FailureClass, classify, is_login_refusal};
use crate::{error_chain::one_line, settings::SettingError};

/// Error of a connection. Its text has the causes, and no secret.
#[derive(Debug)]
pub enum ConnectError {
    /// The URL, or a file that holds or belongs to it, cannot be used at present.
    Setting(SettingError),
    /// No host of the URL could be used. Has the failure of each host that was tried.
    Hosts(Vec<HostFailure>),
    /// The session could not be set up.
    Session(tokio_postgres::Error),
    /// The session was not set up within the time limit.
    SilentSession(Duration),
    /// No connection of the pool became free.
    Pool(&'static str),
}

/// Failure of one host.
#[derive(Debug)]
pub struct HostFailure {
    pub(super) host: String,
    pub(super) cause: HostError,
}

#[derive(Debug)]
pub(super) enum HostError {
    /// The name could not be resolved, or the server not be reached.
    Unreachable(io::Error),
    Silent(Duration),
    /// This many earlier connections have not ended.
    Unended(usize),
    Postgres(tokio_postgres::Error),
    /// The session is not of the kind that `target_session_attrs` asks for.
    Session {
        found: &'static str,
        expected: &'static str,
    },
}

impl HostError {
    /// Whether the other hosts are not tried. As for libpq, a refused login is an answer.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Postgres(error) if is_login_refusal(error))
    }
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(error) => f.write_str(&one_line(error)),
            Self::Silent(limit) => write!(f, "no reply within {}", humantime::format_duration(*limit)),
            Self::Unended(count) => {
                write!(f, "{count} earlier connections have not ended on the server")
            }
            Self::Postgres(error) => f.write_str(&one_line(error)),
            Self::Session { found, expected } => {
                write!(f, "the server is {found}, but target_session_attrs is {expected}")
            }
        }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setting(error) => error.fmt(f),
            Self::Hosts(failures) => match &failures[..] {
                [] => f.write_str("the URL has no host"),
                [only] => only.cause.fmt(f),
                several => {
                    let texts = several.iter().map(|failure| format!("{}: {}", failure.host, failure.cause));
                    f.write_str(&texts.collect::<Vec<_>>().join(", "))
                }
            },
            Self::Session(error) => f.write_str(&one_line(error)),
            Self::SilentSession(limit) => {
                write!(f, "no reply within {}", humantime::format_duration(*limit))
            }
            Self::Pool(problem) => f.write_str(problem),
        }
    }
}

/// Without a source: the text contains the causes.
impl Error for ConnectError {}

impl From<SettingError> for ConnectError {
    fn from(error: SettingError) -> Self {
        Self::Setting(error)
    }
}

impl From<PoolError<Self>> for ConnectError {
    fn from(error: PoolError<Self>) -> Self {
        Self::Pool(match error {
            PoolError::Backend(error) => return error,
            PoolError::Timeout(TimeoutType::Wait) => "timed out waiting for a free connection of the pool",
            PoolError::Timeout(_) => "no reply within the time limit",
            PoolError::Closed => "the connection pool is closed",
            PoolError::NoRuntimeSpecified => "the connection pool has no runtime for its timeouts",
            PoolError::PostCreateHook(_) => "the connection pool failed",
        })
    }
}

impl ConnectError {
    /// Returns the error class. Never [`FailureClass::Reject`]: no row was sent.
    pub fn class(&self) -> FailureClass {
        let halts = match self {
            Self::Setting(_) => true,
            Self::Hosts(_) | Self::Session(_) => {
                self.postgres().any(|error| classify(error) == FailureClass::Halt)
            }
            Self::SilentSession(_) | Self::Pool(_) => false,
        };
        if halts { FailureClass::Halt } else { FailureClass::Retry }
    }

    /// Whether an operator has to act before a connection can succeed: unknown user or database, wrong password, a certificate
    /// that one side rejects, a file that cannot be used.
    pub fn is_refusal(&self) -> bool {
        self.class() == FailureClass::Halt
    }

    /// Returns the SQLSTATE of the last server that sent one.
    pub fn sqlstate(&self) -> Option<&str> {
        self.postgres().filter_map(tokio_postgres::Error::code).map(SqlState::code).last()
    }

    /// Returns the errors of the protocol, in the order of the hosts.
    fn postgres(&self) -> impl Iterator<Item = &tokio_postgres::Error> {
        let (hosts, session) = match self {
            Self::Hosts(failures) => (&failures[..], None),
            Self::Session(error) => (&[][..], Some(error)),
            _ => (&[][..], None),
        };
        let of_hosts = hosts.iter().filter_map(|failure| match &failure.cause {
            HostError::Postgres(error) => Some(error),
            _ => None,
        });
        of_hosts.chain(session)
    }
}
