//! Settings of the consumer.

use std::{net::SocketAddr, num::NonZeroUsize, str::FromStr, time::Duration};

use clap::Parser;
use shared::{
    settings::{
        self, SettingError,
        args::{
            ByteCount, PostgresArgs, RedisArgs, StreamArgs, address, duration, integer, positive_duration,
        },
        headings,
    },
    telemetry::TelemetryArgs,
    wire::partition::PartitionCount,
};

use crate::{
    group::static_assignment::StaticAssignment,
    store::{
        database::DatabaseId,
        session::{Pooling, Transactions},
    },
    stream::REASSIGN_CONSUMER,
};

/// Write likes from Redis Streams to Postgres
///
/// Any number of consumers can run. They share the partitions of the consumer group.
#[derive(Parser, Debug)]
#[command(name = "consumer", version)]
pub struct Settings {
    #[command(flatten, next_help_heading = headings::REDIS)]
    pub(crate) redis: RedisArgs,

    #[command(flatten, next_help_heading = headings::POSTGRES)]
    pub(crate) postgres: PostgresArgs,

    /// Assignment of Postgres sessions by a connection pooler
    #[arg(long, env = "POSTGRES_POOLING", default_value = "session", value_name = "MODE", value_enum,
          help_heading = headings::POSTGRES)]
    pub(crate) postgres_pooling: Pooling,

    #[command(flatten, next_help_heading = headings::STREAMS)]
    pub(crate) streams: StreamArgs,

    /// Name of the consumer group
    #[arg(long, env = "LIKES_GROUP", default_value = "likes-writers", value_name = "NAME", value_parser = group_name,
          help_heading = headings::CONSUMER_GROUP)]
    pub(crate) likes_group: String,

    /// Name of this consumer, unique in the group [default: host name and a unique suffix]
    ///
    /// The name likesctl is reserved: likesctl reassigns pending entries with it.
    #[arg(long, env = "CONSUMER_NAME", value_name = "NAME", value_parser = consumer_name,
          help_heading = headings::CONSUMER_GROUP)]
    pub(crate) consumer_name: Option<String>,

    /// Partitions of this consumer: auto, or a static assignment such as 0-3,8, 2/4 or ordinal/4
    ///
    /// auto: a share that is rebalanced among the members of the group. 0-3,8: these partitions. 2/4: every fourth
    /// partition, starting with partition 2. ordinal/4: one of four shares, by the number at the end of the host name, as in a StatefulSet.
    #[arg(long = "partitions", env = "CONSUMER_PARTITIONS", default_value = "auto", value_name = "PARTITIONS",
          help_heading = headings::CONSUMER_GROUP)]
    pub(crate) consumer_partitions: ConsumerPartitions,

    /// Address of /livez, /readyz, /metrics and /loglevel; keep it private
    #[arg(long, env = "CONSUMER_ADMIN_LISTEN", default_value = "127.0.0.1:8082", value_name = "ADDRESS",
          value_parser = address, help_heading = headings::HTTP)]
    pub(crate) consumer_admin_listen: SocketAddr,

    /// Number of rows that completes a batch
    ///
    /// The last entry of a batch can add more rows.
    #[arg(long, env = "BATCH_ROWS", default_value = "5000", value_name = "COUNT",
          value_parser = integer(NonZeroUsize::MIN..=BATCH_ROWS_MAX), help_heading = headings::BATCHES)]
    pub(crate) batch_rows: NonZeroUsize,

    /// Maximum time that an incomplete batch waits for more entries
    #[arg(long, env = "BATCH_LINGER", default_value = "10ms", value_name = "DURATION", value_parser = duration,
          help_heading = headings::BATCHES)]
    pub(crate) batch_linger: Duration,

    /// Maximum encoded size of the entries in flight: read and not yet acknowledged
    ///
    /// A larger entry is processed alone. Decoding and writing an entry takes up to 20 times its size in memory.
    #[arg(long, env = "IN_FLIGHT_BYTES", default_value = "16MiB", value_name = "SIZE", help_heading = headings::BATCHES)]
    pub(crate) in_flight_bytes: ByteCount,

    /// Maximum duration of a transaction, after which it is retried
    #[arg(long, env = "WRITE_TIMEOUT", default_value = "10s", value_name = "DURATION", value_parser = write_timeout,
          help_heading = headings::BATCHES)]
    pub(crate) write_timeout: Duration,

    /// Minimum idle time of a pending entry of a live consumer before another one claims it
    ///
    /// At least BATCH_LINGER plus twice WRITE_TIMEOUT.
    #[arg(long, env = "CLAIM_MIN_IDLE", default_value = "30s", value_name = "DURATION",
          value_parser = positive_duration, help_heading = headings::RECLAIM)]
    pub(crate) claim_min_idle: Duration,

    /// Maximum number of deliveries of an entry before quarantine
    ///
    /// Quarantined entries are tried in groups, which get smaller with each crash of a consumer. An entry becomes a dead letter
    /// after two consumers have crashed while they processed it alone.
    #[arg(long, env = "MAX_DELIVERIES", default_value = "5", value_name = "COUNT",
          value_parser = integer(1..=1_000_000_u64), help_heading = headings::RECLAIM)]
    pub(crate) max_deliveries: u64,

    /// Minimum age of acknowledged entries before they are trimmed from the streams
    #[arg(long, env = "STREAM_RETENTION", default_value = "0s", value_name = "DURATION", value_parser = duration,
          help_heading = headings::RECLAIM)]
    pub(crate) stream_retention: Duration,

    /// Maximum time to store and acknowledge the entries in flight after SIGTERM
    #[arg(long, env = "DRAIN_TIMEOUT", default_value = "20s", value_name = "DURATION",
          value_parser = positive_duration, help_heading = headings::LIFECYCLE)]
    pub(crate) drain_timeout: Duration,

    #[command(flatten, next_help_heading = headings::TELEMETRY)]
    pub(crate) telemetry: TelemetryArgs,
}

impl Settings {
    /// Returns the settings of logs.
    pub fn telemetry(&self) -> &TelemetryArgs {
        &self.telemetry
    }

    /// Returns the settings of transactions in the database of the group.
    pub(crate) fn transactions(&self, database: DatabaseId) -> Transactions {
        Transactions { pooling: self.postgres_pooling, limit: self.write_timeout, database }
    }
}

impl settings::Settings for Settings {
    fn check(&self) -> Result<(), SettingError> {
        // An entry waits for its own batch and the one before it: longer only if Postgres is slow.
        let pending = self.batch_linger.saturating_add(self.write_timeout.saturating_mul(2));
        if pending > self.claim_min_idle {
            let problem = format!(
                "'{}' is too short, so that entries would be claimed while they are written; expected at least BATCH_LINGER plus twice WRITE_TIMEOUT, {}",
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
    /// A share that is rebalanced among the members.
    Auto,
    Static(StaticAssignment),
    /// One of `of` static shares, chosen by the number at the end of the host name.
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
                of.ok_or_else(|| format!("expected ordinal/N with N from 1 to {}", PartitionCount::MAX))?;
            return Ok(Self::Ordinal { of });
        }
        text.parse().map(Self::Static).map_err(|error| format!("{error}, or auto, or ordinal/4"))
    }
}

impl ConsumerPartitions {
    /// Returns the static assignment on this host; `None` for auto.
    pub(crate) fn resolve(&self) -> Result<Option<StaticAssignment>, SettingError> {
        match self {
            Self::Auto => Ok(None),
            Self::Static(assignment) => Ok(Some(assignment.clone())),
            Self::Ordinal { of } => {
                let host = gethostname::gethostname().to_string_lossy().into_owned();
                let index = ordinal(&host).filter(|index| index < of);
                let index = index.ok_or_else(|| {
                    let problem = format!(
                        "'ordinal/{of}' does not fit the host name '{host}'; expected a host name that ends in a hyphen and a number below {of}, or a value such as auto, 0-3,8 or 2/4"
                    );
                    SettingError::new("CONSUMER_PARTITIONS", problem)
                })?;
                Ok(Some(StaticAssignment::Share { index, of: *of }))
            }
        }
    }
}

/// Returns the ordinal of a pod of a StatefulSet.
fn ordinal(host: &str) -> Option<u16> {
    host.split('.').next()?.rsplit_once('-')?.1.parse().ok()
}

/// Maximum of `BATCH_ROWS`.
const BATCH_ROWS_MAX: NonZeroUsize = NonZeroUsize::new(100_000).unwrap();

/// Maximum of WRITE_TIMEOUT. Timeouts of Postgres are milliseconds in 31 bits, a little more than this.
const WRITE_TIMEOUT_MAX: Duration = Duration::from_hours(24 * 24);

fn write_timeout(text: &str) -> Result<Duration, String> {
    let timeout = positive_duration(text).map_err(|error| error.to_string())?;
    if timeout <= WRITE_TIMEOUT_MAX {
        Ok(timeout)
    } else {
        Err("is too long; expected at most 24 days".to_owned())
    }
}

/// Parses the name of this consumer. Under the reserved name, other consumers would claim its entries at once.
fn consumer_name(text: &str) -> Result<String, String> {
    if text == REASSIGN_CONSUMER {
        return Err("is reserved for reassigned entries; expected another name".to_owned());
    }
    group_name(text)
}

/// Parses the name of a consumer group or of a consumer.
pub fn group_name(text: &str) -> Result<String, String> {
    if (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(text.to_owned())
    } else {
        Err("expected 1 to 128 printable ASCII characters without spaces".to_owned())
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
    fn the_name_to_which_entries_are_reassigned_is_no_consumer_name() {
        assert!(consumer_name(REASSIGN_CONSUMER).is_err());
        assert_eq!(consumer_name("likesctl-1"), Ok("likesctl-1".to_owned()));
    }

    #[test]
    fn the_ordinal_is_parsed_from_the_host_name() {
        assert_eq!(ordinal("likestream-consumer-12"), Some(12));
        assert_eq!(ordinal("consumer-3.consumers.default.svc"), Some(3));
        assert_eq!(ordinal("consumer"), None);
        assert_eq!(ordinal("consumer-7f9c"), None);
    }
}
