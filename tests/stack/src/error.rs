//! Why a server or program could not be started or did not do what it should.

use std::{io, path::PathBuf};

use thiserror::Error;

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
