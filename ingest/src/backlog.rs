//! How much waits in Redis, and whether that is too much to take more.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use shared::{
    backlog,
    redis::Connections,
    runtime::admin::Check,
    wire::partition::{KeyPrefix, PartitionCount},
};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

const SAMPLE_INTERVAL: Duration = Duration::from_millis(500);

/// In place of a number of entries that nobody knows.
const UNKNOWN: u64 = u64::MAX;

/// Whether more likes may be taken.
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

    /// How many entries wait, if Redis has said so lately.
    pub(crate) fn entries(&self) -> Option<u64> {
        Some(self.entries.load(Ordering::Relaxed)).filter(|entries| *entries != UNKNOWN)
    }

    /// By the latest sample.
    pub(crate) fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// Redis doesn't say. Whether likes are taken stays as it was.
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

/// Samples for ever. As it asks Redis all the time, it also knows whether Redis answers: ready is who reaches any
/// part of it. Where a part doesn't answer, what was known of its partitions counts.
pub(crate) async fn sample(
    redis: Connections,
    keys: KeyPrefix,
    partitions: watch::Receiver<PartitionCount>,
    limit: Arc<Backlog>,
    redis_check: Check,
) {
    let mut ticks = interval(SAMPLE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known = Vec::new();
    loop {
        ticks.tick().await;
        let streams = partitions.borrow().partitions().map(|partition| keys.stream(partition));
        let sampled = join_all(streams.map(async |stream| backlog::of_stream(&redis, &stream).await)).await;
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
                limit.unknown();
                if redis_check.fail(error.to_string()) {
                    tracing::warn!(%error, "Redis does not answer: not ready");
                }
            }
            _ => {
                let entries = known.iter().sum();
                limit.sampled(entries);
                if redis_check.pass() {
                    tracing::info!(backlog_entries = entries, "Redis answers: ready");
                }
            }
        }
    }
}
