//! What all programs of one likestream must agree on is recorded in Redis by the first one that starts.

use std::time::Duration;

use fred::prelude::Error;
use thiserror::Error as ThisError;
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

use crate::{
    redis::{self, Connections, Retry, is_refusal},
    runtime::service::{Unreachable, wait_for},
    settings::args::StreamArgs,
    wire::partition::{KeyPrefix, PartitionCount},
};

const PARTITIONS: &str = "partitions";

/// Earlier numbers of partitions, separated by commas: a program that is still set to one of them follows the record.
const GROWN_FROM: &str = "grown_from";

/// Interval between two reads of the record.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Compares and sets: raises the number of partitions if it still is the expected one.
///
/// KEYS: settings. ARGV: the expected number, the new one.
const INCREASE_PARTITIONS: &str = include_str!("cluster_settings/increase_partitions.lua");

/// The programs would not agree, or Redis could not tell.
#[derive(Debug, ThisError)]
pub enum ClusterSettingsError {
    /// Redis failed.
    #[error("the settings recorded in Redis can't be read")]
    Redis(#[from] Error),
    /// Another number of partitions is on record.
    #[error(
        "LIKES_PARTITIONS: '{configured}' is not what Redis has on record in {key}: allowed is {recorded}, or nothing to go by the record; likesctl partitions grow makes more"
    )]
    Partitions {
        /// By this program's settings.
        configured: PartitionCount,
        /// By the first program that started, or since then by `likesctl partitions grow`.
        recorded: PartitionCount,
        /// The key of the record.
        key: String,
    },
    /// What is on record is no number of partitions.
    #[error(
        "{key} in Redis has partitions '{recorded}', which is no number of partitions: put right what somebody has written there"
    )]
    Garbage {
        /// What is there.
        recorded: String,
        /// The key of the record.
        key: String,
    },
    /// The key is someone else's.
    #[error(
        "LIKES_STREAM: the key {key} in Redis is a {kind}, not the hash of likestream's settings: choose another prefix, or remove it"
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

/// What is on record.
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
                "the partitions have grown: LIKES_PARTITIONS should be set to the number on record, which is used"
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

/// How many partitions there are: what is on record, and if nothing is, what this program is set to, which is then
/// recorded. A program that is set to a number from which the partitions have grown follows. Where Redis fails it is
/// asked again for as long as `limit`: a part of it may be away just now. `server` names it.
///
/// # Errors
/// When this program is set to another number, or Redis went on failing.
pub async fn negotiate_within(
    limit: Duration,
    server: &str,
    redis: &Connections,
    streams: &StreamArgs,
) -> Result<Result<PartitionCount, ClusterSettingsError>, Unreachable<Error>> {
    let settled = async || match negotiate(redis, streams).await {
        Err(ClusterSettingsError::Redis(error)) => Err(error),
        settled => Ok(settled),
    };
    wait_for(server, "REDIS_URL", limit, is_refusal, settled).await
}

/// Whether anybody has recorded how many partitions there are.
///
/// # Errors
/// When Redis fails.
pub async fn is_recorded(redis: &Connections, keys: &KeyPrefix) -> Result<bool, Error> {
    Ok(read(redis, &keys.settings()).await?.partitions.is_some())
}

/// How many partitions are on record: nothing where there is no record, or none that makes sense.
///
/// # Errors
/// When Redis fails.
pub async fn recorded(redis: &Connections, keys: &KeyPrefix) -> Result<Option<PartitionCount>, Error> {
    Ok(read(redis, &keys.settings()).await?.partitions())
}

/// Tells of a grown number of partitions, for ever. A record that is lost is made anew.
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
                // What is away is noticed elsewhere.
                if !redis::is_away(&error) && refused.replace(Record::default()) != Some(Record::default()) {
                    tracing::error!(key, %error, "the record of settings can't be read: put it right");
                }
                continue;
            }
        };
        match record.partitions() {
            Some(recorded) if recorded == known => refused = None,
            // Partitions that somebody may have written to must be read.
            Some(recorded) if recorded < known => {
                match increase_partitions(&redis, &keys, recorded, known).await {
                    Ok(true) => tracing::error!(
                        key, %recorded, used = %known,
                        "the record had fewer partitions than there are: it is put right"
                    ),
                    // Somebody else was quicker.
                    Ok(false) => {}
                    Err(error) => tracing::debug!(%error, "the record has fewer partitions than there are"),
                }
            }
            Some(recorded) => {
                tracing::info!(from = %known, to = %recorded, "the partitions have grown");
                partitions.send_replace(recorded);
            }
            None if refused.as_ref() == Some(&record) => {}
            None => {
                let recorded = record.partitions.clone().unwrap_or_default();
                tracing::error!(
                    key, recorded, used = %known, "what is on record is no number of partitions: put it right"
                );
                refused = Some(record);
            }
        }
    }
}

/// Raises the number of partitions. Everybody follows who looks at the record.
///
/// # Errors
/// When Redis fails. `false` when the number was not `from` any more.
pub async fn increase_partitions(
    redis: &Connections,
    keys: &KeyPrefix,
    from: PartitionCount,
    to: PartitionCount,
) -> Result<bool, Error> {
    let args = [from.to_string(), to.to_string()];
    Ok(redis.eval::<u64>(INCREASE_PARTITIONS, &[keys.settings()], Retry::NonIdempotent, args).await? == 1)
}

/// A Redis that is out of memory refuses to write, even where there would be nothing to write; so it is read first.
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

/// Says so, loudly, when a server of Redis might drop streams to make room.
pub async fn warn_of_eviction(redis: &Connections) {
    for server in redis.servers() {
        let memory: String = match server.send("INFO", vec!["memory".into()]).await {
            Ok(memory) => memory,
            Err(error) => {
                tracing::warn!(%error, "Redis does not tell its maxmemory-policy: see that it is noeviction");
                return;
            }
        };
        let field = |name: &str| memory.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let policy = field("maxmemory_policy").unwrap_or("unknown");
        if policy.starts_with("allkeys") {
            tracing::error!(
                maxmemory_policy = policy,
                "Redis drops likes when its memory is full: set maxmemory-policy to noeviction"
            );
        }
    }
}
