//! Health of the partition readers, for `/readyz` and the log. All readers share one check and one log line.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

use fred::prelude::Error;
use shared::{error_chain::one_line, runtime::admin::Check, wire::partition::Partition};

/// Readiness check shared by all partition readers.
pub(crate) struct ReadHealth {
    check: Check,
    failing: Mutex<HashSet<Partition>>,
}

impl ReadHealth {
    pub(crate) fn new(check: Check) -> Self {
        check.pass();
        Self { check, failing: Mutex::default() }
    }

    /// Records a successful read of a partition.
    pub(crate) fn passed(&self, partition: Partition) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        if failing.remove(&partition) && failing.is_empty() && self.check.pass() {
            tracing::info!("reading from Redis recovered");
        }
    }

    /// Records a failed read of a partition.
    pub(crate) fn failed(&self, partition: Partition, error: &Error) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        failing.insert(partition);
        let error = one_line(error);
        let detail = format!("cannot read from Redis (partitions affected: {}): {error}", failing.len());
        if self.check.fail(detail) {
            tracing::warn!(%partition, error, "reading from Redis failed");
        } else {
            tracing::debug!(%partition, error, "reading from Redis failed");
        }
    }
}
