//! Private Redis and Postgres servers and the likestream programs, started as ordinary processes on free ports: for
//! the demo, for `make up`, and for the tests.
//!
//! Calls block: they start processes and wait, with a bound, until those answer.

pub mod admin;
mod free_port;
pub mod http_client;
pub mod pgbouncer_server;
pub mod postgres_server;
pub mod process;
pub mod program;
pub mod redis_cluster;
pub mod redis_sentinels;
pub mod redis_server;
pub mod slow_callers;

use std::{io, path::PathBuf};

use thiserror::Error;

pub use crate::free_port::free_port;

/// Something could not be started, or did not do what it should.
#[derive(Debug, Error)]
pub enum StackError {
    /// A program is not on this machine.
    #[error("{0} is not installed: run make, which installs what is missing")]
    Missing(&'static str),
    /// A program can't be run.
    #[error("{program} can't be run")]
    Spawn {
        /// Which.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// A program ended when it should not.
    #[error("{program} ended: {last_words}")]
    Ended {
        /// Which.
        program: String,
        /// The last line that it wrote.
        last_words: String,
    },
    /// A program does not answer.
    #[error("{program} did not {what} within {seconds} s, see {log}")]
    Timeout {
        /// Which.
        program: String,
        /// What it should have done.
        what: &'static str,
        /// How long it had.
        seconds: u64,
        /// What it wrote.
        log: PathBuf,
    },
    /// A file or a socket failed.
    #[error("{what}")]
    Io {
        /// What was to be done.
        what: String,
        /// Why it was not.
        source: io::Error,
    },
}

impl StackError {
    /// An input or output error with what was to be done.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
