//! Private Redis, Postgres and PgBouncer servers and the likestream programs as ordinary processes on free ports.
//!
//! Purpose: start real servers for the demo, `make up`, chaos runs, benchmarks and integration tests, and make sure
//! that they end with the process that started them. May depend on `shared` and on the programs' executables. Must not
//! depend on the ingest, consumer or likesctl crates: the programs are known by their settings, HTTP and metrics only.
//!
//! Calls that start, stop or wait for a process block, with a time limit.
#![allow(missing_docs, reason = "the crate is not published")]

pub mod admin;
pub mod backlog;
mod free_port;
pub mod http_client;
pub mod latency;
pub mod pgbouncer_server;
pub mod postgres_server;
pub mod process;
pub mod program;
pub mod redis_cluster;
pub mod redis_sentinels;
pub mod redis_server;
pub mod signals;
pub mod slow_clients;
pub mod terminal;

use std::{io, path::PathBuf};

use thiserror::Error;

pub use crate::free_port::free_port;

/// A process could not be started or did not behave as expected.
#[derive(Debug, Error)]
pub enum StackError {
    #[error("{0} is not installed: run make, which installs what is missing")]
    Missing(&'static str),
    #[error("{program} can't be run")]
    Spawn { program: String, source: io::Error },
    #[error("{program} ended: {last_output}")]
    Ended {
        program: String,
        /// Last line of its log, or its standard error.
        last_output: String,
    },
    #[error("{program} did not {action} within {seconds} s, see {log}")]
    Timeout { program: String, action: &'static str, seconds: u64, log: PathBuf },
    #[error("{failure}")]
    Io { failure: String, source: io::Error },
}

impl StackError {
    /// Describes what failed with an input or output error.
    pub fn io(failure: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let failure = failure.into();
        move |source| Self::Io { failure, source }
    }
}
