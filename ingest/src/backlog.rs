//! Backpressure: the backlog of all streams, and whether it is over its limit.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use shared::{
    backlog::of_stream,
    redis::Connections,
    runtime::admin::Check,
    wire::partition::{KeyPrefix, PartitionCount},
};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

const SAMPLE_INTERVAL: Duration = Duration::from_millis(500);

/// In place of a number of entries that is not known.
const UNKNOWN: u64 = u64::MAX;

/// The latest sample, and whether likes are refused because of it.
pub(crate) struct Backlog {
    limit: u64,
    entries: AtomicU64,
    full: AtomicBool,
}

impl Backlog {
    pub(crate) fn new(limit: u64) -> Self {
        Self { limit, entries: AtomicU64::new(UNKNOWN), full: AtomicBool::new(false) }
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// Returns the number of entries, unless Redis did not answer lately.
    pub(crate) fn entries(&self) -> Option<u64> {
        Some(self.entries.load(Ordering::Relaxed)).filter(|entries| *entries != UNKNOWN)
    }

    /// Whether likes are refused, by the latest sample.
    pub(crate) fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// Notes that Redis does not answer. Likes are accepted or refused as before.
    fn unknown(&self) {
        self.entries.store(UNKNOWN, Ordering::Relaxed);
    }

    fn sampled(&self, entries: u64) {
        self.entries.store(entries, Ordering::Relaxed);
        let full = entries >= self.limit;
        if self.full.swap(full, Ordering::Relaxed) != full {
            let limit = self.limit;
            if full {
                tracing::warn!(backlog_entries = entries, limit, "backlog over its limit: likes are refused");
            } else {
                tracing::info!(backlog_entries = entries, limit, "backlog below its limit: likes are taken");
            }
        }
    }
}

/// Samples without end. The samples also decide on readiness: ready means that any server of Redis answers. Partitions
/// whose server does not answer count with their last sample.
pub(crate) async fn sample(
    redis: Connections,
    keys: KeyPrefix,
    partitions: watch::Receiver<PartitionCount>,
    backlog: Arc<Backlog>,
    redis_check: Check,
) {
    let mut ticks = interval(SAMPLE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known = Vec::new();
    loop {
        ticks.tick().await;
        let streams = partitions.borrow().partitions().map(|partition| keys.stream(partition));
        let sampled = join_all(streams.map(async |stream| of_stream(&redis, &stream).await)).await;
        known.resize(sampled.len(), 0);
        let mut failed = Vec::new();
        for (known, sampled) in known.iter_mut().zip(sampled) {
            match sampled {
                Ok(entries) => *known = entries,
                Err(error) => failed.push(error),
            }
        }
        match failed.first() {
            Some(error) if failed.len() == known.len() => {
                backlog.unknown();
                if redis_check.fail(error.to_string()) {
                    tracing::warn!(%error, "Redis does not answer: not ready");
                }
            }
            _ => {
                let entries = known.iter().sum();
                backlog.sampled(entries);
                if redis_check.pass() {
                    tracing::info!(backlog_entries = entries, "Redis answers: ready");
                }
            }
        }
    }
}
