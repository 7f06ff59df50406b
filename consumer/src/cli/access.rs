//! The way to the streams and to the table.

use std::time::Duration;

use clap::Args;
use shared::{
    agreement,
    cli::refuse,
    config::{PostgresArgs, RedisArgs, StreamArgs, positive_duration},
    partition::{KeyPrefix, Partition, PartitionCount},
    pg,
    redis::{Connections, Redis, is_refusal},
    service::wait_for,
};
use tokio_postgres::NoTls;

use super::exit::CliError;
use crate::{config::group_name, fixed_partitions::FixedPartitions, stream::Streams};

/// What entries are given to that whoever has their partition should take at once: it is never a member.
pub(super) const MENDER: &str = "likesctl";

/// Where the streams are.
#[derive(Args, Clone)]
#[command(next_help_heading = "Connection")]
pub(super) struct RedisAccess {
    #[command(flatten)]
    redis: RedisArgs,

    /// The prefix of all keys in Redis
    #[arg(long, env = "LIKES_STREAM", default_value = "likes", value_name = "PREFIX")]
    likes_stream: KeyPrefix,

    /// The consumer group
    #[arg(long, env = "LIKES_GROUP", default_value = "likes-writers", value_name = "NAME", value_parser = group_name)]
    likes_group: String,

    /// How long to wait for a server
    #[arg(long, env = "STARTUP_TIMEOUT", default_value = "10s", value_name = "DURATION", value_parser = positive_duration)]
    pub(super) startup_timeout: Duration,
}

/// The streams of one likestream, with a group.
pub(super) struct Site {
    pub(super) redis: Connections,
    pub(super) streams: Streams,
    pub(super) keys: KeyPrefix,
    pub(super) partitions: PartitionCount,
    /// The name of Redis, with its address.
    pub(super) server: String,
}

impl RedisAccess {
    /// Connects, and finds out how many partitions there are.
    ///
    /// # Errors
    /// When Redis can't be reached, or nobody has ever started likestream there.
    pub(super) async fn open(&self) -> Result<Site, CliError> {
        let redis = Redis::new(&self.redis).unwrap_or_else(|error| refuse(&error));
        let server = format!("Redis at {}", redis.address());
        let limit = self.startup_timeout;
        let redis = wait_for(&server, "REDIS_URL", limit, is_refusal, || redis.connect()).await?;
        let keys = self.likes_stream.clone();
        if !agreement::is_recorded(&redis, &keys).await? {
            let what = format!("no likestream with LIKES_STREAM '{keys}' has ever started on {server}");
            return Err(CliError::failed(what));
        }
        let by_record = StreamArgs { likes_stream: keys.clone(), likes_partitions: None };
        let settled = agreement::settle_within(limit, &server, &redis, &by_record).await?;
        let partitions = settled.unwrap_or_else(|error| refuse(&error));
        let streams = Streams::new(redis.clone(), keys.clone(), self.likes_group.clone(), MENDER.to_owned());
        Ok(Site { redis, streams, keys, partitions, server })
    }
}

impl Site {
    /// All partitions, or those that were asked for.
    ///
    /// # Errors
    /// When none of those is there.
    pub(super) fn partitions_of(&self, wanted: Option<&FixedPartitions>) -> Result<Vec<Partition>, CliError> {
        let Some(wanted) = wanted else { return Ok(self.partitions.partitions().collect()) };
        let found = wanted.of(self.partitions);
        if found.is_empty() {
            let last = self.partitions.get() - 1;
            return Err(CliError::failed(format!("there is no partition {wanted}: they are 0 to {last}")));
        }
        Ok(found)
    }

    /// The partition of a number.
    ///
    /// # Errors
    /// When it isn't there.
    pub(super) fn partition(&self, number: u16) -> Result<Partition, CliError> {
        let last = self.partitions.get() - 1;
        let found = self.partitions.partitions().nth(number.into());
        found.ok_or_else(|| CliError::failed(format!("there is no partition {number}: they are 0 to {last}")))
    }
}

/// Connects to Postgres.
///
/// # Errors
/// When it can't be reached within the time.
pub(super) async fn postgres(
    args: &PostgresArgs,
    command: &str,
    limit: Duration,
) -> Result<(tokio_postgres::Client, tokio_postgres::Config), CliError> {
    let config = pg::config(args, command).unwrap_or_else(|error| refuse(&error));
    let (client, connection) =
        wait_for(pg::address(&config), "DATABASE_URL", limit, pg::is_refusal, || config.connect(NoTls))
            .await?;
    // It ends with the client.
    tokio::spawn(connection);
    Ok((client, config))
}
