//! Whether the partition readers can read, for `/readyz` and for the log, which has one line for all of them together.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

use fred::prelude::Error;
use shared::{runtime::admin::Check, wire::partition::Partition};

/// The check of all partition readers.
pub(crate) struct ReadHealth {
    check: Check,
    failing: Mutex<HashSet<Partition>>,
}

impl ReadHealth {
    pub(crate) fn new(check: Check) -> Self {
        check.pass();
        Self { check, failing: Mutex::default() }
    }

    /// Records that a partition was read.
    pub(crate) fn passed(&self, partition: Partition) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        if failing.remove(&partition) && failing.is_empty() && self.check.pass() {
            tracing::info!("all partitions are read again");
        }
    }

    /// Records that a partition could not be read.
    pub(crate) fn failed(&self, partition: Partition, error: &Error) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        failing.insert(partition);
        let why = format!("reading {} partitions fails, one of them with: {error}", failing.len());
        if self.check.fail(why) {
            tracing::warn!(%partition, %error, "reading from Redis failed");
        } else {
            tracing::debug!(%partition, %error, "reading from Redis failed");
        }
    }
}
