//! Cluster settings: the partition count, on which all programs must agree. The first program that starts records it in Redis.

use std::time::Duration;

use fred::prelude::Error;
use thiserror::Error as ThisError;
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

use crate::{
    error_chain::one_line,
    redis::{self, Connections, Retry, is_refusal},
    runtime::{
        admin::Check,
        service::{Unreachable, wait_for, wait_until_available},
    },
    settings::args::StreamArgs,
    wire::partition::{KeyPrefix, PartitionCount},
};

const PARTITIONS: &str = "partitions";

/// Earlier partition counts, separated by commas. A program that is configured with one of them uses the recorded count.
const GROWN_FROM: &str = "grown_from";

/// Interval between two reads of the cluster settings.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Compare-and-set of the partition count.
///
/// KEYS: cluster settings. ARGV: the expected count, the new one.
const INCREASE_PARTITIONS: &str = include_str!("cluster_settings/increase_partitions.lua");

/// Error of the cluster settings.
#[derive(Debug, ThisError)]
pub enum ClusterSettingsError {
    /// Redis failed.
    #[error("cannot read the cluster settings in Redis")]
    Redis(#[from] Error),
    /// The configured partition count differs from the recorded one.
    #[error(
        "LIKES_PARTITIONS: '{configured}' differs from the partition count in {key} in Redis; expected {recorded} or unset (likesctl partitions grow raises the count)"
    )]
    Partitions {
        /// The setting of this program.
        configured: PartitionCount,
        /// The count set by the first program that started, or since by `likesctl partitions grow`.
        recorded: PartitionCount,
        /// The key of the record.
        key: String,
    },
    /// The recorded partition count is invalid.
    #[error(
        "{key} in Redis: partition count '{recorded}' is not valid; restore the previous value, an integer from 1 to 1024"
    )]
    Garbage {
        /// The invalid value.
        recorded: String,
        /// The key of the record.
        key: String,
    },
    /// The key exists with another type, so another application owns it.
    #[error(
        "LIKES_STREAM: key {key} in Redis is a {kind}, not the hash of cluster settings; choose another prefix or delete the key"
    )]
    ForeignKey {
        /// The key of the record.
        key: String,
        /// Its Redis type.
        kind: String,
    },
}

impl ClusterSettingsError {
    /// Whether a setting has to be corrected.
    pub fn is_over_a_setting(&self) -> bool {
        !matches!(self, Self::Redis(_))
    }
}

/// The hash of cluster settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Record {
    partitions: Option<String>,
    grown_from: Option<String>,
}

impl Record {
    fn partitions(&self) -> Option<PartitionCount> {
        self.partitions.as_deref()?.parse().ok()
    }

    fn has_grown_from(&self, partitions: PartitionCount) -> bool {
        let earlier = self.grown_from.as_deref().unwrap_or_default().split(',');
        earlier
            .into_iter()
            .any(|earlier| earlier.parse().is_ok_and(|earlier: PartitionCount| earlier == partitions))
    }
}

async fn negotiate(
    redis: &Connections,
    streams: &StreamArgs,
) -> Result<PartitionCount, ClusterSettingsError> {
    let key = streams.likes_stream.settings();
    let kind: String = redis.run(&key, Retry::Idempotent, "TYPE", vec![key.as_str().into()]).await?;
    if kind != "hash" && kind != "none" {
        return Err(ClusterSettingsError::ForeignKey { key, kind });
    }
    let first = streams.likes_partitions.unwrap_or(PartitionCount::DEFAULT);
    let record = read_or_record(redis, &key, first).await?;
    let configured = streams.likes_partitions;
    match (record.partitions(), configured) {
        (Some(recorded), None) => Ok(recorded),
        (Some(recorded), Some(configured)) if recorded == configured => Ok(recorded),
        (Some(recorded), Some(configured)) if record.has_grown_from(configured) => {
            tracing::warn!(
                %configured, %recorded,
                "partition count has grown since LIKES_PARTITIONS was set, using the recorded one"
            );
            Ok(recorded)
        }
        (Some(recorded), Some(configured)) => {
            Err(ClusterSettingsError::Partitions { configured, recorded, key })
        }
        (None, _) => {
            Err(ClusterSettingsError::Garbage { recorded: record.partitions.unwrap_or_default(), key })
        }
    }
}

/// Returns the recorded partition count. Where none is recorded, records the configured one. A program that is configured
/// with an earlier count uses the recorded one. Failures of Redis are retried for `limit`, because a part of a cluster may
/// be unavailable. `server` is its name and address.
///
/// # Errors
/// When the configured count conflicts with the recorded one, or Redis keeps failing.
pub async fn negotiate_within(
    limit: Duration,
    server: &str,
    redis: &Connections,
    streams: &StreamArgs,
) -> Result<Result<PartitionCount, ClusterSettingsError>, Unreachable<Error>> {
    wait_for(server, "REDIS_URL", limit, is_refusal, async || settle(redis, streams).await).await
}

/// Does the same as [`negotiate_within`] for a service: retries failures of Redis however long they take, and reports them by
/// `check`.
///
/// # Errors
/// When the configured count conflicts with the recorded one.
pub async fn negotiate_when_available(
    server: &str,
    check: &Check,
    redis: &Connections,
    streams: &StreamArgs,
) -> Result<PartitionCount, ClusterSettingsError> {
    wait_until_available(server, check, async || settle(redis, streams).await).await
}

/// Separates a conflict, which a retry does not fix, from a failure of Redis.
async fn settle(
    redis: &Connections,
    streams: &StreamArgs,
) -> Result<Result<PartitionCount, ClusterSettingsError>, Error> {
    match negotiate(redis, streams).await {
        Err(ClusterSettingsError::Redis(error)) => Err(error),
        settled => Ok(settled),
    }
}

/// Returns whether a partition count is recorded, valid or not.
///
/// # Errors
/// When Redis fails.
pub async fn is_recorded(redis: &Connections, keys: &KeyPrefix) -> Result<bool, Error> {
    Ok(read(redis, &keys.settings()).await?.partitions.is_some())
}

/// Returns the recorded partition count. `None` where there is none, or an invalid one.
///
/// # Errors
/// When Redis fails.
pub async fn recorded(redis: &Connections, keys: &KeyPrefix) -> Result<Option<PartitionCount>, Error> {
    Ok(read(redis, &keys.settings()).await?.partitions())
}

/// Watches the cluster settings and publishes a higher partition count. Restores settings that were deleted or lowered. Never
/// returns.
pub async fn watch(redis: Connections, keys: KeyPrefix, partitions: watch::Sender<PartitionCount>) {
    let key = keys.settings();
    let mut ticks = interval(WATCH_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut refused = None;
    loop {
        ticks.tick().await;
        let known = *partitions.borrow();
        let record = match read_or_record(&redis, &key, known).await {
            Ok(record) => record,
            Err(error) => {
                // An unavailable Redis is reported elsewhere.
                if !redis::is_away(&error) && refused.replace(Record::default()) != Some(Record::default()) {
                    let error = one_line(&error);
                    tracing::error!(key, error, "cannot read the recorded partition count");
                }
                continue;
            }
        };
        match record.partitions() {
            Some(recorded) if recorded == known => refused = None,
            // Every partition that may contain likes must be read.
            Some(recorded) if recorded < known => {
                match increase_partitions(&redis, &keys, recorded, known).await {
                    Ok(true) => tracing::error!(
                        key, %recorded, used = %known,
                        "the recorded partition count was lowered, this program has restored it"
                    ),
                    // Another process has changed it in between.
                    Ok(false) => {}
                    Err(error) => {
                        tracing::debug!(error = one_line(&error), "cannot restore lowered partition count");
                    }
                }
            }
            Some(recorded) => {
                tracing::info!(from = %known, to = %recorded, "partition count has grown");
                partitions.send_replace(recorded);
            }
            None if refused.as_ref() == Some(&record) => {}
            None => {
                let recorded = record.partitions.clone().unwrap_or_default();
                tracing::error!(
                    key, recorded, used = %known, "the recorded partition count is invalid, ignored"
                );
                refused = Some(record);
            }
        }
    }
}

/// Raises the partition count, if it still is `from`, and returns whether it was. Running programs follow by [`watch()`].
///
/// # Errors
/// When Redis fails.
pub async fn increase_partitions(
    redis: &Connections,
    keys: &KeyPrefix,
    from: PartitionCount,
    to: PartitionCount,
) -> Result<bool, Error> {
    let args = [from.to_string(), to.to_string()];
    Ok(redis.eval::<u64>(INCREASE_PARTITIONS, &[keys.settings()], Retry::NonIdempotent, args).await? == 1)
}

/// Reads the cluster settings before writing: a Redis that is out of memory rejects HSETNX even where it changes nothing.
async fn read_or_record(redis: &Connections, key: &str, first: PartitionCount) -> Result<Record, Error> {
    let record = read(redis, key).await?;
    if record.partitions.is_some() {
        return Ok(record);
    }
    let args = vec![key.into(), PARTITIONS.into(), first.to_string().into()];
    redis.run::<u64>(key, Retry::Idempotent, "HSETNX", args).await?;
    read(redis, key).await
}

async fn read(redis: &Connections, key: &str) -> Result<Record, Error> {
    let args = vec![key.into(), PARTITIONS.into(), GROWN_FROM.into()];
    let (partitions, grown_from) = redis.run(key, Retry::Idempotent, "HMGET", args).await?;
    Ok(Record { partitions, grown_from })
}

/// Logs an error if a Redis server may evict streams when its memory is full.
pub async fn warn_of_eviction(redis: &Connections) {
    for server in redis.servers() {
        let memory: String = match server.send("INFO", vec!["memory".into()]).await {
            Ok(memory) => memory,
            Err(error) => {
                let error = one_line(&error);
                tracing::warn!(error, "cannot read maxmemory-policy, which must be noeviction");
                return;
            }
        };
        let field = |name: &str| memory.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let policy = field("maxmemory_policy").unwrap_or("unknown");
        if policy.starts_with("allkeys") {
            tracing::error!(
                maxmemory_policy = policy,
                "Redis evicts likes when its memory is full, set maxmemory-policy to noeviction"
            );
        }
    }
}
