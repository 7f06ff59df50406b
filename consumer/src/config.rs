//! The settings of the consumer.

use std::{
    net::SocketAddr,
    num::{NonZeroU32, NonZeroUsize},
    str::FromStr,
    time::Duration,
};

use clap::Parser;
use shared::{
    settings::{
        self, SettingError,
        args::{PostgresArgs, RedisArgs, StreamArgs, address, duration, positive_duration},
    },
    telemetry::TelemetryArgs,
    wire::partition::PartitionCount,
};

use crate::{
    group::static_assignment::StaticAssignment,
    store::session::{Pooling, Transactions},
};

/// Write likes from Redis Streams into Postgres in large transactions. Any number of copies can run
#[derive(Parser, Debug)]
#[command(name = "consumer", version)]
pub struct Settings {
    #[command(flatten)]
    pub(crate) redis: RedisArgs,

    #[command(flatten)]
    pub(crate) postgres: PostgresArgs,

    #[command(flatten)]
    pub(crate) streams: StreamArgs,

    /// Consumer group, whose members share the entries
    #[arg(long, env = "LIKES_GROUP", default_value = "likes-writers", value_name = "NAME", value_parser = group_name)]
    pub(crate) likes_group: String,

    /// Name of this consumer, unique in its group [default: host name with a unique suffix]
    #[arg(long, env = "CONSUMER_NAME", value_name = "NAME", value_parser = group_name)]
    pub(crate) consumer_name: Option<String>,

    /// Partitions of this consumer: auto (a share among the group's members), a static list (0-3,8), a static share (2/4:
    /// the third of four, counted from 0), or ordinal/4 (a static share by the number at the end of the host name, as in a
    /// StatefulSet)
    #[arg(
        long = "partitions",
        env = "CONSUMER_PARTITIONS",
        default_value = "auto",
        value_name = "PARTITIONS"
    )]
    pub(crate) consumer_partitions: ConsumerPartitions,

    /// Address of /livez, /readyz and /metrics; never needs to be public
    #[arg(long, env = "CONSUMER_ADMIN_LISTEN", default_value = "127.0.0.1:8082", value_name = "ADDRESS",
          value_parser = address)]
    pub(crate) consumer_admin_listen: SocketAddr,

    /// Number of rows from which on a transaction takes no more entries
    #[arg(long, env = "BATCH_ROWS", default_value = "5000", value_name = "ROWS", value_parser = batch_rows)]
    pub(crate) batch_rows: NonZeroUsize,

    /// Maximum time that a transaction that is not full waits for more entries
    #[arg(long, env = "BATCH_LINGER", default_value = "10ms", value_name = "DURATION", value_parser = duration)]
    pub(crate) batch_linger: Duration,

    /// Time that an entry is pending with another consumer before this one claims it; at least BATCH_LINGER plus twice
    /// WRITE_TIMEOUT
    #[arg(long, env = "CLAIM_MIN_IDLE", default_value = "30s", value_name = "DURATION", value_parser = positive_duration)]
    pub(crate) claim_min_idle: Duration,

    /// Maximum number of deliveries of an entry. Beyond it, the entry is suspected of killing consumers: it is processed in
    /// quarantine, by itself, and becomes a dead letter when consumers did not survive that twice
    #[arg(long, env = "MAX_DELIVERIES", default_value = "5", value_name = "COUNT",
          value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub(crate) max_deliveries: u64,

    /// Time that an acknowledged entry stays before it is trimmed
    #[arg(long, env = "STREAM_RETENTION", default_value = "0s", value_name = "DURATION", value_parser = duration)]
    pub(crate) stream_retention: Duration,

    /// Maximum time of a transaction, after which it is tried again
    #[arg(long, env = "WRITE_TIMEOUT", default_value = "10s", value_name = "DURATION", value_parser = write_timeout)]
    pub(crate) write_timeout: Duration,

    /// Sharing of Postgres sessions, which a pooler may give to single transactions
    #[arg(long, env = "POSTGRES_POOLING", default_value = "session", value_name = "MODE", value_enum)]
    pub(crate) postgres_pooling: Pooling,

    /// Maximum time after SIGTERM to store and acknowledge the entries already read
    #[arg(long, env = "DRAIN_TIMEOUT", default_value = "20s", value_name = "DURATION", value_parser = positive_duration)]
    pub(crate) drain_timeout: Duration,

    /// Maximum wait for Redis, and then for Postgres, at start
    #[arg(long, env = "STARTUP_TIMEOUT", default_value = "10s", value_name = "DURATION", value_parser = positive_duration)]
    pub(crate) startup_timeout: Duration,

    #[command(flatten)]
    pub(crate) telemetry: TelemetryArgs,
}

impl Settings {
    /// Returns the settings of logs, metrics and traces.
    pub fn telemetry(&self) -> &TelemetryArgs {
        &self.telemetry
    }

    pub(crate) fn transactions(&self) -> Transactions {
        Transactions { pooling: self.postgres_pooling, limit: self.write_timeout }
    }
}

impl settings::Settings for Settings {
    fn check(&self) -> Result<(), SettingError> {
        // Its own batch and the one before it: hardly an entry is pending for longer while Postgres is well.
        let pending = self.batch_linger.saturating_add(self.write_timeout.saturating_mul(2));
        if pending > self.claim_min_idle {
            let problem = format!(
                "'{}' is too short: allowed is no less than BATCH_LINGER and twice WRITE_TIMEOUT, {}, or else others claim what is being written",
                humantime::format_duration(self.claim_min_idle),
                humantime::format_duration(pending),
            );
            return Err(SettingError::new("CLAIM_MIN_IDLE", problem));
        }
        self.consumer_partitions.resolve().map(drop)
    }
}

/// The setting `CONSUMER_PARTITIONS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ConsumerPartitions {
    /// A share like that of other members.
    Auto,
    Static(StaticAssignment),
    /// One of `of` static shares, by the number at the end of the host's name.
    Ordinal {
        of: u16,
    },
}

impl FromStr for ConsumerPartitions {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        if let Some(of) = text.strip_prefix("ordinal/") {
            let of = of.parse().ok().filter(|of| (1..=PartitionCount::MAX).contains(of));
            let of =
                of.ok_or_else(|| format!("allowed is ordinal/N with N from 1 to {}", PartitionCount::MAX))?;
            return Ok(Self::Ordinal { of });
        }
        text.parse().map(Self::Static).map_err(|error| format!("{error}, auto, or ordinal/4"))
    }
}

impl ConsumerPartitions {
    /// Returns the static assignment on this host; `None` for a share among the members.
    pub(crate) fn resolve(&self) -> Result<Option<StaticAssignment>, SettingError> {
        match self {
            Self::Auto => Ok(None),
            Self::Static(assignment) => Ok(Some(assignment.clone())),
            Self::Ordinal { of } => {
                let host = gethostname::gethostname().to_string_lossy().into_owned();
                let index = ordinal(&host).filter(|index| index < of);
                let index = index.ok_or_else(|| {
                    let problem = format!(
                        "'ordinal/{of}' needs a host name that ends in a hyphen and a number below {of}, and this one's is '{host}': allowed are also auto, partitions like 0-3,8, or a share like 2/4"
                    );
                    SettingError::new("CONSUMER_PARTITIONS", problem)
                })?;
                Ok(Some(StaticAssignment::Share { index, of: *of }))
            }
        }
    }
}

/// Returns the number that a StatefulSet gives its pod.
fn ordinal(host: &str) -> Option<u16> {
    host.split('.').next()?.rsplit_once('-')?.1.parse().ok()
}

/// Postgres counts its timeouts in milliseconds of 31 bits, which is a little more than this.
const WRITE_TIMEOUT_MAX: Duration = Duration::from_hours(24 * 24);

fn write_timeout(text: &str) -> Result<Duration, String> {
    let timeout = positive_duration(text).map_err(|error| error.to_string())?;
    if timeout <= WRITE_TIMEOUT_MAX { Ok(timeout) } else { Err("allowed are at most 24 days".to_owned()) }
}

fn batch_rows(text: &str) -> Result<NonZeroUsize, String> {
    let rows: Option<NonZeroU32> = text.parse().ok().filter(|rows: &NonZeroU32| rows.get() <= 100_000);
    let rows = rows.and_then(|rows| NonZeroUsize::try_from(rows).ok());
    rows.ok_or_else(|| "allowed is a whole number from 1 to 100000".to_owned())
}

/// Parses a name in the group, or the group's.
pub fn group_name(text: &str) -> Result<String, String> {
    if (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(text.to_owned())
    } else {
        Err("allowed are 1 to 128 printable ASCII characters without spaces".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_a_share_or_assigned_statically() {
        assert_eq!("auto".parse(), Ok(ConsumerPartitions::Auto));
        assert_eq!("ordinal/4".parse(), Ok(ConsumerPartitions::Ordinal { of: 4 }));
        let ranges = StaticAssignment::Ranges(vec![(0, 3), (8, 8)]);
        assert_eq!("0-3,8".parse(), Ok(ConsumerPartitions::Static(ranges)));
        for bad in ["", "ordinal", "ordinal/0", "4/4", "all"] {
            assert!(bad.parse::<ConsumerPartitions>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_ordinal_is_at_the_end_of_the_hosts_name() {
        assert_eq!(ordinal("likestream-consumer-12"), Some(12));
        assert_eq!(ordinal("consumer-3.consumers.default.svc"), Some(3));
        assert_eq!(ordinal("consumer"), None);
        assert_eq!(ordinal("consumer-7f9c"), None);
    }
}
