//! The way to the streams and to the table.

use std::time::Duration;

use clap::Args;
use consumer::{config::group_name, group::static_assignment::StaticAssignment, stream::Streams};
use futures_util::future::try_join_all;
use shared::{
    cluster_settings,
    error_chain::one_line,
    postgres::{self, Postgres},
    redis::{Connections, Redis, is_refusal},
    runtime::service::wait_for,
    settings::args::{PostgresArgs, RedisArgs, StreamArgs, positive_duration},
    wire::partition::{KeyPrefix, Partition, PartitionCount},
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::exit::CliError;

/// What entries are given to that whoever has their partition should take at once: it is never a member.
pub(crate) const REASSIGN_CONSUMER: &str = "likesctl";

/// How long Postgres may take for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Where the streams are.
#[derive(Args, Clone)]
#[command(next_help_heading = "Connection")]
pub(crate) struct RedisAccess {
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
    pub(crate) startup_timeout: Duration,
}

/// The streams of one likestream, with a group.
pub(crate) struct Context {
    pub(crate) redis: Connections,
    pub(crate) streams: Streams,
    pub(crate) keys: KeyPrefix,
    pub(crate) partitions: PartitionCount,
    /// The name of Redis, with its address.
    pub(crate) server: String,
}

impl RedisAccess {
    /// Connects, and finds out how many partitions there are.
    ///
    /// # Errors
    /// When Redis can't be reached, or nobody has ever started likestream there.
    pub(crate) async fn open(&self) -> Result<Context, CliError> {
        let redis = Redis::new(&self.redis).map_err(|error| CliError::Usage(error.to_string()))?;
        let server = format!("Redis at {}", redis.address());
        let limit = self.startup_timeout;
        let redis = wait_for(&server, "REDIS_URL", limit, is_refusal, || redis.connect()).await?;
        let keys = self.likes_stream.clone();
        if !cluster_settings::is_recorded(&redis, &keys).await? {
            let what = format!("no likestream with LIKES_STREAM '{keys}' has ever started on {server}");
            return Err(CliError::failed(what));
        }
        let by_record = StreamArgs { likes_stream: keys.clone(), likes_partitions: None };
        let settled = cluster_settings::negotiate_within(limit, &server, &redis, &by_record).await?;
        let partitions = settled.map_err(|error| CliError::Usage(one_line(&error)))?;
        let streams =
            Streams::new(redis.clone(), keys.clone(), self.likes_group.clone(), REASSIGN_CONSUMER.to_owned());
        Ok(Context { redis, streams, keys, partitions, server })
    }

    /// As [`RedisAccess::open`], for commands that do something with the group: it has to be there. An interruption is heard
    /// meanwhile.
    ///
    /// # Errors
    /// Also when no partition has the group.
    pub(crate) async fn open_group(&self, interrupt: &CancellationToken) -> Result<Context, CliError> {
        let open = async {
            let context = self.open().await?;
            let looks = context.partitions.partitions().map(|partition| context.streams.look(partition));
            if try_join_all(looks).await?.iter().all(|look| look.group.is_none()) {
                return Err(CliError::failed(format!(
                    "no partition has a group {}: correct LIKES_GROUP, or start a consumer, which makes it",
                    self.likes_group
                )));
            }
            Ok(context)
        };
        interrupt.run_until_cancelled(open).await.unwrap_or(Err(CliError::Interrupted))
    }
}

impl Context {
    /// All partitions that there are by now, or those that were asked for.
    ///
    /// # Errors
    /// When Redis fails.
    pub(crate) async fn partitions_now(
        &self,
        wanted: Option<&StaticAssignment>,
    ) -> Result<Vec<Partition>, fred::error::Error> {
        let partitions =
            cluster_settings::recorded(&self.redis, &self.keys).await?.unwrap_or(self.partitions);
        Ok(wanted.map_or_else(|| partitions.partitions().collect(), |wanted| wanted.of(partitions)))
    }

    /// All partitions, or those that were asked for.
    ///
    /// # Errors
    /// When one of those isn't there.
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

    /// The partition of a number.
    ///
    /// # Errors
    /// When it isn't there.
    pub(crate) fn partition(&self, number: u16) -> Result<Partition, CliError> {
        let last = self.partitions.get() - 1;
        let found = self.partitions.partitions().nth(number.into());
        found.ok_or_else(|| CliError::failed(format!("there is no partition {number}: they are 0 to {last}")))
    }
}

/// Waits for an answer of Postgres, with a bound.
///
/// # Errors
/// When there is none in time, as when the table is locked.
pub(crate) async fn answer<T, E: Into<CliError>>(
    asked: impl Future<Output = Result<T, E>>,
) -> Result<T, CliError> {
    match timeout(ANSWER_TIMEOUT, asked).await {
        Ok(answer) => answer.map_err(Into::into),
        Err(_) => Err(CliError::failed(format!(
            "Postgres did not answer within {} s: see whether something locks the table, or it is overloaded",
            ANSWER_TIMEOUT.as_secs()
        ))),
    }
}

/// Connects to Postgres.
///
/// # Errors
/// When it can't be reached within the time.
pub(crate) async fn postgres(
    args: &PostgresArgs,
    command: &str,
    limit: Duration,
) -> Result<(tokio_postgres::Client, Postgres), CliError> {
    let postgres = Postgres::new(args, command).map_err(|error| CliError::Usage(error.to_string()))?;
    let client =
        wait_for(postgres.address(), "DATABASE_URL", limit, postgres::is_refusal, || postgres.connect())
            .await?;
    Ok((client, postgres))
}
