//! Backpressure: samples the backlog of all streams, and refuses likes while it is over its limit. The samples also show
//! whether Redis has lost streams.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use fred::prelude::Error;
use futures_util::future::{join, join_all};
use shared::{
    backlog::{StreamState, state_of_stream},
    error_chain::one_line,
    redis::{Connections, Impaired},
    runtime::admin::Check,
    wire::partition::{KeyPrefix, PartitionCount},
};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

const SAMPLE_INTERVAL: Duration = Duration::from_millis(500);

/// Sentinel for an unknown number of entries.
const UNKNOWN: u64 = u64::MAX;

/// The latest sample of the backlog, and whether likes are refused.
pub(crate) struct Backlog {
    limit: u64,
    entries: AtomicU64,
    full: AtomicBool,
    /// Number of streams that Redis has lost since the start.
    lost_streams: AtomicU64,
}

impl Backlog {
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            limit,
            entries: AtomicU64::new(UNKNOWN),
            full: AtomicBool::new(false),
            lost_streams: AtomicU64::new(0),
        }
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// Returns the number of entries, or `None` if Redis did not reply to the latest sample.
    pub(crate) fn entries(&self) -> Option<u64> {
        Some(self.entries.load(Ordering::Relaxed)).filter(|entries| *entries != UNKNOWN)
    }

    /// Returns whether likes are refused.
    pub(crate) fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// Returns the number of streams that Redis has lost since the start.
    pub(crate) fn lost_streams(&self) -> u64 {
        self.lost_streams.load(Ordering::Relaxed)
    }

    /// Records streams that Redis has lost. `entries` is their backlog in the sample before.
    fn lost(&self, streams: u64, entries: u64) {
        self.lost_streams.fetch_add(streams, Ordering::Relaxed);
        tracing::error!(
            streams,
            backlog_entries = entries,
            "data loss: streams vanished from Redis or went back to an earlier state"
        );
    }

    /// Records that the backlog is unknown. Likes are still accepted or refused by the latest known sample.
    fn unknown(&self) {
        self.entries.store(UNKNOWN, Ordering::Relaxed);
    }

    fn sampled(&self, entries: u64) {
        self.entries.store(entries, Ordering::Relaxed);
        let full = entries >= self.limit;
        if self.full.swap(full, Ordering::Relaxed) != full {
            let limit = self.limit;
            if full {
                tracing::warn!(backlog_entries = entries, limit, "backlog reached its limit, refusing likes");
            } else {
                tracing::info!(
                    backlog_entries = entries,
                    limit,
                    "backlog is below its limit, accepting likes"
                );
            }
        }
    }
}

/// Samples the backlog until it is cancelled. The samples also set the check of Redis, which passes while any Redis server
/// replies and accepts writes. Partitions whose server does not reply count with their latest known sample.
pub(crate) async fn sample(
    redis: Connections,
    keys: KeyPrefix,
    partitions: watch::Receiver<PartitionCount>,
    backlog: Arc<Backlog>,
    redis_check: Check,
) {
    let mut ticks = interval(SAMPLE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known: Vec<StreamState> = Vec::new();
    loop {
        ticks.tick().await;
        let streams = partitions.borrow().partitions().map(|partition| keys.stream(partition));
        let sampled = join_all(streams.map(async |stream| state_of_stream(&redis, &stream).await));
        let (sampled, (servers, impaired)) = join(sampled, redis.check()).await;
        known.resize(sampled.len(), StreamState::default());
        let mut failed = Vec::new();
        let (mut lost_streams, mut lost_entries) = (0, 0);
        for (known, sampled) in known.iter_mut().zip(sampled) {
            match sampled {
                Ok(state) => {
                    if state.has_lost_entries_of(known) {
                        lost_streams += 1;
                        lost_entries += known.backlog;
                    }
                    *known = state;
                }
                Err(error) => failed.push(error),
            }
        }
        if lost_streams > 0 {
            backlog.lost(lost_streams, lost_entries);
        }
        if failed.len() == known.len() {
            backlog.unknown();
        } else {
            backlog.sampled(known.iter().map(|state| state.backlog).sum());
        }
        let failed = failed.first().filter(|_| failed.len() == known.len());
        report(&redis_check, unusable(failed, servers, &impaired));
    }
}

/// Returns why no Redis server replies and accepts writes, or `None` if any does. `failed` is an error of the samples, if all
/// of them failed.
fn unusable(failed: Option<&Error>, servers: usize, impaired: &[Impaired]) -> Option<String> {
    let first = impaired.first().filter(|_| impaired.len() == servers);
    first.map(Impaired::to_string).or_else(|| failed.map(|error| one_line(error)))
}

fn report(check: &Check, unusable: Option<String>) {
    match unusable {
        Some(error) => {
            if check.fail(error.clone()) {
                tracing::warn!(error, "Redis is unavailable");
            }
        }
        None => {
            if check.pass() {
                tracing::info!("Redis is available");
            }
        }
    }
}
