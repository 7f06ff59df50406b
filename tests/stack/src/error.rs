//! Failures of servers and programs.

use std::{io, path::PathBuf};

use thiserror::Error;

/// A process could not be started or did not behave as expected.
#[derive(Debug, Error)]
pub enum StackError {
    #[error("{0} not found")]
    Missing(&'static str),
    #[error("cannot run {program}")]
    Spawn { program: String, source: io::Error },
    #[error("{program} exited: {last_output}")]
    Ended {
        program: String,
        /// Last line of its log, or its standard error.
        last_output: String,
    },
    #[error("{program} did not {action} within {seconds} s; see {log}")]
    Timeout { program: String, action: &'static str, seconds: u64, log: PathBuf },
    #[error("{failure}")]
    Io { failure: String, source: io::Error },
}

impl StackError {
    /// Adds a description of the failed operation to an I/O error.
    pub fn io(failure: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let failure = failure.into();
        move |source| Self::Io { failure, source }
    }
}
