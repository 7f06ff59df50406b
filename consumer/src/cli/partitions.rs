//! `likesctl partitions`

use std::{
    error::Error,
    io::{self, Write},
    time::Duration,
};

use clap::{Args, Subcommand};
use shared::{
    agreement,
    cli::refuse,
    config::{RedisArgs, StreamArgs, positive_duration},
    partition::{KeyPrefix, PartitionCount},
    redis::{Redis, is_refusal},
    service::wait_for,
};

use crate::{config::group_name, stream::Streams};

#[derive(Subcommand)]
pub(super) enum Command {
    /// Raises the number of partitions while everything runs; it can't be lowered
    #[command(
        after_help = "Running programs follow within seconds. LIKES_PARTITIONS should be set to the new number, or to \
                            nothing, wherever it is set: who starts with the old number follows, too, and warns.\n\n\
                            Example: likesctl partitions grow 32"
    )]
    Grow(GrowOptions),
}

#[derive(Args)]
pub(super) struct GrowOptions {
    /// How many there should be
    #[arg(value_name = "COUNT")]
    count: PartitionCount,

    #[command(flatten)]
    redis: RedisArgs,

    /// The prefix of all keys in Redis
    #[arg(long, env = "LIKES_STREAM", default_value = "likes", value_name = "PREFIX")]
    likes_stream: KeyPrefix,

    /// The consumer group that the new streams get before there is anything in them
    #[arg(long, env = "LIKES_GROUP", default_value = "likes-writers", value_name = "NAME", value_parser = group_name)]
    likes_group: String,

    /// How long to wait for Redis
    #[arg(long, env = "STARTUP_TIMEOUT", default_value = "10s", value_name = "DURATION", value_parser = positive_duration)]
    startup_timeout: Duration,
}

pub(super) async fn run(command: Command) -> Result<(), Box<dyn Error>> {
    match command {
        Command::Grow(options) => grow(options).await,
    }
}

async fn grow(options: GrowOptions) -> Result<(), Box<dyn Error>> {
    let redis = Redis::new(&options.redis).unwrap_or_else(|error| refuse(&error));
    let server = format!("Redis at {}", redis.address());
    let limit = options.startup_timeout;
    let redis = wait_for(&server, "REDIS_URL", limit, is_refusal, || redis.connect()).await?;
    let streams = StreamArgs { likes_stream: options.likes_stream, likes_partitions: None };
    if !agreement::is_recorded(&redis, &streams.likes_stream).await? {
        let prefix = &streams.likes_stream;
        return Err(format!("no likestream with LIKES_STREAM '{prefix}' has ever started on {server}").into());
    }
    let settled = agreement::settle_within(limit, &server, &redis, &streams).await?;
    let now = settled.unwrap_or_else(|error| refuse(&error));
    let wanted = options.count;
    if wanted == now {
        // It is done, whether or not anybody hears of it.
        let _ = writeln!(io::stdout(), "nothing to do: there are {now} partitions");
        return Ok(());
    }
    if wanted < now {
        refuse(&format!(
            "COUNT: '{wanted}' is less than the {now} partitions that there are: allowed is more"
        ));
    }
    let keys = streams.likes_stream;
    // Groups early: a Redis that is out of memory makes none.
    Streams::new(redis.clone(), keys.clone(), options.likes_group, String::new())
        .ensure_groups(wanted)
        .await?;
    if !agreement::grow(&redis, &keys, now, wanted).await? {
        return Err(format!("somebody else has changed the {now} partitions just now: look again").into());
    }
    let _ = writeln!(
        io::stdout(),
        "grown from {now} to {wanted} partitions: running programs follow within seconds"
    );
    Ok(())
}
