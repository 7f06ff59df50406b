//! Connections to Redis and Postgres, and lookups that several commands share.

use std::time::Duration;

use clap::Args;
use consumer::{
    config::group_name,
    group::static_assignment::StaticAssignment,
    stream::{REASSIGN_CONSUMER, Streams},
};
use fred::prelude::Error;
use futures_util::future::try_join_all;
use shared::{
    cluster_settings,
    error_chain::one_line,
    postgres::{ConnectError, Postgres, Session},
    redis::{Connections, Redis, is_refusal},
    runtime::service::wait_for,
    settings::args::{PostgresArgs, RedisArgs, StreamArgs, positive_duration},
    wire::partition::{KeyPrefix, Partition, PartitionCount},
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::exit::CliError;

/// Maximum time for one response of Postgres.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

#[derive(Args, Clone)]
#[command(next_help_heading = "Connection")]
pub(crate) struct RedisAccess {
    #[command(flatten)]
    redis: RedisArgs,

    /// Prefix of all Redis keys
    #[arg(long, env = "LIKES_STREAM", default_value = "likes", value_name = "PREFIX")]
    likes_stream: KeyPrefix,

    /// Name of the consumer group
    #[arg(long, env = "LIKES_GROUP", default_value = "likes-writers", value_name = "NAME", value_parser = group_name)]
    likes_group: String,

    /// Maximum time to wait for a connection to Redis or Postgres
    #[arg(long, env = "STARTUP_TIMEOUT", default_value = "10s", value_name = "DURATION", value_parser = positive_duration)]
    pub(crate) startup_timeout: Duration,
}

/// Access to the streams of one pipeline and to one consumer group.
pub(crate) struct Context {
    pub(crate) redis: Connections,
    pub(crate) streams: Streams,
    pub(crate) keys: KeyPrefix,
    pub(crate) partitions: PartitionCount,
    /// Server name in messages: `Redis at <address>`.
    pub(crate) server: String,
}

impl RedisAccess {
    /// Returns the prefix of all keys.
    pub(crate) fn prefix(&self) -> String {
        self.likes_stream.to_string()
    }

    /// Returns the name of the group.
    pub(crate) fn group(&self) -> &str {
        &self.likes_group
    }

    /// Connects to Redis and reads the number of partitions.
    ///
    /// # Errors
    /// When Redis is unreachable, or has no cluster settings.
    pub(crate) async fn open(&self) -> Result<Context, CliError> {
        let redis = Redis::new(&self.redis).map_err(|error| CliError::Usage(error.to_string()))?;
        let server = format!("Redis at {}", redis.address());
        let limit = self.startup_timeout;
        let redis = wait_for(&server, "REDIS_URL", limit, is_refusal, || redis.connect()).await?;
        let keys = self.likes_stream.clone();
        if !cluster_settings::is_recorded(&redis, &keys).await? {
            let line = format!(
                "no cluster settings for LIKES_STREAM '{keys}' on {server}: no service has started there, or Redis lost \
                 its data; check LIKES_STREAM and REDIS_URL, and see docs/runbook.md#lost-entries"
            );
            return Err(CliError::failed(line));
        }
        let recorded = StreamArgs { likes_stream: keys.clone(), likes_partitions: None };
        let negotiated = cluster_settings::negotiate_within(limit, &server, &redis, &recorded).await?;
        let partitions = negotiated.map_err(|error| CliError::Usage(one_line(&error)))?;
        let streams =
            Streams::new(redis.clone(), keys.clone(), self.likes_group.clone(), REASSIGN_CONSUMER.to_owned());
        Ok(Context { redis, streams, keys, partitions, server })
    }

    /// Does the same as [`RedisAccess::open`], and checks that the group exists. Can be interrupted.
    ///
    /// # Errors
    /// When [`RedisAccess::open`] fails, or no partition has the group.
    pub(crate) async fn open_group(&self, interrupt: &CancellationToken) -> Result<Context, CliError> {
        let open = async {
            let context = self.open().await?;
            let inspected =
                context.partitions.partitions().map(|partition| context.streams.inspect(partition));
            if try_join_all(inspected).await?.iter().all(|partition| partition.group.is_none()) {
                return Err(CliError::failed(format!(
                    "consumer group '{}' does not exist on any partition; correct LIKES_GROUP, or start a consumer, which creates it",
                    self.likes_group
                )));
            }
            Ok(context)
        };
        interrupt.run_until_cancelled(open).await.unwrap_or(Err(CliError::Interrupted))
    }
}

impl Context {
    /// Returns the current time of Redis.
    pub(crate) async fn now_ms(&self) -> Result<u64, Error> {
        let first = self.partitions.of_user(1);
        Ok(self.streams.inspect(first).await?.now_ms)
    }

    /// Returns the wanted partitions, or all current partitions: their number may have grown since the start.
    pub(crate) async fn partitions_now(
        &self,
        wanted: Option<&StaticAssignment>,
    ) -> Result<Vec<Partition>, Error> {
        let partitions =
            cluster_settings::recorded(&self.redis, &self.keys).await?.unwrap_or(self.partitions);
        Ok(wanted.map_or_else(|| partitions.partitions().collect(), |wanted| wanted.of(partitions)))
    }

    /// Returns the wanted partitions, or all.
    ///
    /// # Errors
    /// When a wanted partition does not exist.
    pub(crate) fn partitions_of(
        &self,
        wanted: Option<&StaticAssignment>,
    ) -> Result<Vec<Partition>, CliError> {
        let Some(wanted) = wanted else { return Ok(self.partitions.partitions().collect()) };
        if let Some(largest) = wanted.largest() {
            self.partition(largest)?;
        }
        Ok(wanted.of(self.partitions))
    }

    /// Returns the partition with a number.
    ///
    /// # Errors
    /// When it does not exist.
    pub(crate) fn partition(&self, number: u16) -> Result<Partition, CliError> {
        let last = self.partitions.get() - 1;
        let found = self.partitions.partitions().nth(number.into());
        found.ok_or_else(|| {
            CliError::failed(format!("partition {number} does not exist; expected a number from 0 to {last}"))
        })
    }

    /// Returns whether a consumer has a recorded heartbeat, or is in the group on any partition.
    pub(crate) async fn has_consumer(&self, name: &str) -> Result<bool, Error> {
        if self.streams.members().await?.iter().any(|info| info.member.name == *name) {
            return Ok(true);
        }
        let in_group = try_join_all(self.partitions.partitions().map(|p| self.streams.consumers(p))).await?;
        Ok(in_group.iter().flatten().any(|consumer| consumer.name == name))
    }

    /// # Errors
    /// When the group has no such consumer, or Redis fails.
    pub(crate) async fn check_consumer(&self, name: &str) -> Result<(), CliError> {
        if self.has_consumer(name).await? { Ok(()) } else { Err(self.unknown_consumer(name)) }
    }

    pub(crate) fn unknown_consumer(&self, name: &str) -> CliError {
        let group = self.streams.group();
        CliError::failed(format!(
            "consumer '{name}' does not exist in group '{group}'; list consumers with likesctl consumers list"
        ))
    }
}

/// Waits for a response of Postgres.
///
/// # Errors
/// When the request fails or times out, for example because the table is locked.
pub(crate) async fn answer<T, E: Into<CliError>>(
    request: impl Future<Output = Result<T, E>>,
) -> Result<T, CliError> {
    match timeout(ANSWER_TIMEOUT, request).await {
        Ok(answer) => answer.map_err(Into::into),
        Err(_) => Err(CliError::failed(format!(
            "Postgres did not answer within {} s; check for locks on the likes table, and for overload",
            ANSWER_TIMEOUT.as_secs()
        ))),
    }
}

/// Connects to Postgres.
///
/// # Errors
/// When Postgres is unreachable for `limit`.
pub(crate) async fn postgres(
    args: &PostgresArgs,
    command: &str,
    limit: Duration,
) -> Result<(Session, Postgres), CliError> {
    let postgres = Postgres::new(args, command).map_err(|error| CliError::Usage(error.to_string()))?;
    let client =
        wait_for(postgres.address(), "DATABASE_URL", limit, ConnectError::is_refusal, || postgres.connect())
            .await?;
    Ok((client, postgres))
}
