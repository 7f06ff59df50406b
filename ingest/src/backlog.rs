//! How much waits in Redis, and whether that is too much to take more.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use fred::prelude::{Client, Error, StreamsInterface, Value};
use shared::{admin::Check, config::StreamArgs, redis};
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

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
        match total(&client, &streams).await {
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

/// Over all partitions, in entries.
async fn total(client: &Client, streams: &StreamArgs) -> Result<u64, Error> {
    let mut partitions = JoinSet::new();
    for partition in streams.likes_partitions.partitions() {
        let (client, stream) = (client.clone(), streams.likes_stream.stream(partition));
        partitions.spawn(async move { of_stream(&client, &stream).await });
    }
    partitions.join_all().await.into_iter().sum()
}

/// What the slowest group of a stream has still to do: undelivered and pending entries. Without a group that is
/// all of the stream. A group's lag may be unknown to Redis (null); the length of the stream is then its bound.
async fn of_stream(client: &Client, stream: &str) -> Result<u64, Error> {
    let groups: Vec<HashMap<String, Value>> = match client.xinfo_groups(stream).await {
        Ok(groups) => groups,
        Err(error) if redis::error_code(&error) == Some("ERR") => Vec::new(), // no such key
        Err(error) => return Err(error),
    };
    let number = |group: &HashMap<String, Value>, name| group.get(name).and_then(Value::as_u64);
    if !groups.is_empty()
        && let Some(most) = groups
            .iter()
            .map(|group| Some(number(group, "lag")? + number(group, "pending")?))
            .try_fold(0, |most, group| Some(group?.max(most)))
    {
        return Ok(most);
    }
    client.xlen(stream).await
}
