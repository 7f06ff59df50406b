//! The settings of the consumer.

use std::{
    net::SocketAddr,
    num::{NonZeroU32, NonZeroUsize},
    time::Duration,
};

use clap::Parser;
use shared::{
    cli::{self, SettingError},
    config::{PostgresArgs, RedisArgs, StreamArgs, address, duration, positive_duration},
    telemetry::TelemetryArgs,
};

use crate::pooling::{Pooling, Transactions};

/// Writes likes from Redis Streams into Postgres, in big transactions. Run as many as you like.
#[derive(Parser, Debug)]
#[command(name = "consumer", version)]
pub struct Settings {
    #[command(flatten)]
    pub(crate) redis: RedisArgs,

    #[command(flatten)]
    pub(crate) postgres: PostgresArgs,

    #[command(flatten)]
    pub(crate) streams: StreamArgs,

    /// The consumer group: entries are shared among its members
    #[arg(long, env = "LIKES_GROUP", default_value = "likes-writers", value_name = "NAME", value_parser = name)]
    pub(crate) likes_group: String,

    /// This consumer's name in the group, unique in it [default: the host's name with a unique suffix]
    #[arg(long, env = "CONSUMER_NAME", value_name = "NAME", value_parser = name)]
    pub(crate) consumer_name: Option<String>,

    /// Where /livez, /readyz and /metrics are; never needs to be public
    #[arg(long, env = "CONSUMER_ADMIN_LISTEN", default_value = "127.0.0.1:8082", value_name = "ADDRESS",
          value_parser = address)]
    pub(crate) consumer_admin_listen: SocketAddr,

    /// A transaction takes entries until it has this many rows
    #[arg(long, env = "BATCH_ROWS", default_value = "5000", value_name = "ROWS", value_parser = batch_rows)]
    pub(crate) batch_rows: NonZeroUsize,

    /// How long a transaction that is not full waits for more entries
    #[arg(long, env = "BATCH_LINGER", default_value = "10ms", value_name = "DURATION", value_parser = duration)]
    pub(crate) batch_linger: Duration,

    /// How long an entry may be pending with another consumer before this one claims it; at least BATCH_LINGER and
    /// twice WRITE_TIMEOUT
    #[arg(long, env = "CLAIM_MIN_IDLE", default_value = "30s", value_name = "DURATION", value_parser = positive_duration)]
    pub(crate) claim_min_idle: Duration,

    /// How often an entry may be delivered. Beyond it, it may be one that kills consumers: it is tried alone, and is a
    /// dead letter when whoever tries it so does not survive it twice
    #[arg(long, env = "MAX_DELIVERIES", default_value = "5", value_name = "COUNT",
          value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub(crate) max_deliveries: u64,

    /// How long an acknowledged entry stays before it is trimmed
    #[arg(long, env = "STREAM_RETENTION", default_value = "0s", value_name = "DURATION", value_parser = duration)]
    pub(crate) stream_retention: Duration,

    /// How long a transaction may take before it is given up and tried again
    #[arg(long, env = "WRITE_TIMEOUT", default_value = "10s", value_name = "DURATION", value_parser = positive_duration)]
    pub(crate) write_timeout: Duration,

    /// Whether a connection has a session of Postgres to itself, or only a transaction at a time, behind a pooler
    #[arg(long, env = "POSTGRES_POOLING", default_value = "session", value_name = "MODE", value_enum)]
    pub(crate) postgres_pooling: Pooling,

    /// How long the batch in hand may take to be stored and acknowledged after SIGTERM
    #[arg(long, env = "DRAIN_TIMEOUT", default_value = "20s", value_name = "DURATION", value_parser = positive_duration)]
    pub(crate) drain_timeout: Duration,

    /// How long to wait for Redis, and then for Postgres, at start
    #[arg(long, env = "STARTUP_TIMEOUT", default_value = "10s", value_name = "DURATION", value_parser = positive_duration)]
    pub(crate) startup_timeout: Duration,

    #[command(flatten)]
    pub(crate) telemetry: TelemetryArgs,
}

impl Settings {
    /// How to log.
    pub fn telemetry(&self) -> &TelemetryArgs {
        &self.telemetry
    }

    pub(crate) fn transactions(&self) -> Transactions {
        Transactions { pooling: self.postgres_pooling, limit: self.write_timeout }
    }
}

impl cli::Settings for Settings {
    fn check(&self) -> Result<(), SettingError> {
        // Its own batch and the one before it: longer than that no entry is in hand while Postgres is well.
        let in_hand = self.batch_linger.saturating_add(self.write_timeout.saturating_mul(2));
        if in_hand > self.claim_min_idle {
            let problem = format!(
                "'{}' is too short: allowed is no less than BATCH_LINGER and twice WRITE_TIMEOUT, {}, or else others claim what is being written",
                humantime::format_duration(self.claim_min_idle),
                humantime::format_duration(in_hand),
            );
            return Err(SettingError::new("CLAIM_MIN_IDLE", problem));
        }
        Ok(())
    }
}

fn batch_rows(text: &str) -> Result<NonZeroUsize, String> {
    let rows: Option<NonZeroU32> = text.parse().ok().filter(|rows: &NonZeroU32| rows.get() <= 100_000);
    let rows = rows.and_then(|rows| NonZeroUsize::try_from(rows).ok());
    rows.ok_or_else(|| "allowed is a whole number from 1 to 100000".to_owned())
}

fn name(text: &str) -> Result<String, String> {
    let harmless = |b: u8| b.is_ascii_graphic();
    if (1..=128).contains(&text.len()) && text.bytes().all(harmless) {
        Ok(text.to_owned())
    } else {
        Err("allowed are 1 to 128 printable ASCII characters without spaces".to_owned())
    }
}
