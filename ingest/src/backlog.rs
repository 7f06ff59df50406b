//! How much waits in Redis, and whether that is too much to take more.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use fred::prelude::Client;
use shared::{admin::Check, config::StreamArgs};
use tokio::time::{MissedTickBehavior, interval};

use crate::metrics::Metrics;

const SAMPLE_INTERVAL: Duration = Duration::from_millis(500);

/// Whether more likes may be taken.
pub(crate) struct Backlog {
    limit: u64,
    full: AtomicBool,
}

impl Backlog {
    pub(crate) fn new(limit: u64) -> Self {
        Self { limit, full: AtomicBool::new(false) }
    }

    /// By the latest sample.
    pub(crate) fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    fn sampled(&self, entries: u64) {
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

/// Samples for ever. As it asks Redis all the time, it also knows whether Redis answers.
pub(crate) async fn sample(
    client: Client,
    streams: StreamArgs,
    backlog: Arc<Backlog>,
    redis_check: Check,
    metrics: Arc<Metrics>,
) {
    let mut ticks = interval(SAMPLE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match shared::backlog::of_all(&client, &streams).await {
            Ok(entries) => {
                backlog.sampled(entries);
                metrics.backlog(entries);
                if redis_check.pass() {
                    tracing::info!(backlog_entries = entries, "Redis answers: ready");
                }
            }
            Err(error) => {
                if redis_check.fail(error.to_string()) {
                    tracing::warn!(%error, "Redis does not answer: not ready");
                }
            }
        }
    }
}
