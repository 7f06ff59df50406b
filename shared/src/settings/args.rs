//! Groups of options that several programs share. Each option is also an environment variable.
//!
//! The first paragraph of an option's documentation is the line of `-h`. A default that is not a constant stands at its end
//! in brackets: `[default: recorded count, or 16]`.

use std::{
    convert::Infallible,
    fmt::Display,
    net::SocketAddr,
    ops::{Bound, RangeBounds},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use bytesize::ByteSize;
use clap::Args;
use secrecy::SecretString;
use thiserror::Error;

use crate::{
    settings::secret_source::SecretSource,
    wire::partition::{KeyPrefix, PartitionCount},
};

/// Settings of connections to Redis.
#[derive(Args, Debug, Clone)]
pub struct RedisArgs {
    /// URL of Redis
    ///
    /// Single server: redis://[user:password@]host:port[/db]. Cluster: redis-cluster://host:port[?node=host:port…].
    /// Sentinel: redis-sentinel://host:port[/db]?sentinelServiceName=name[&node=host:port…]. With TLS: rediss://,
    /// rediss-cluster:// and rediss-sentinel://. Unix socket: unix://[user:password@]/path[?db=number].
    #[arg(
        long,
        env = "REDIS_URL",
        hide_env_values = true,
        value_name = "URL",
        default_value = "redis://127.0.0.1:6379"
    )]
    redis_url: SecretString,

    /// Path of a file with the URL of Redis, instead of REDIS_URL
    ///
    /// The file is read again for each connection.
    #[arg(long, env = "REDIS_URL_FILE", value_name = "FILE", conflicts_with = "redis_url")]
    redis_url_file: Option<PathBuf>,

    /// Path of a PEM file with the trusted certificate authorities [default: those of the system]
    #[arg(long, env = "REDIS_TLS_CA", value_name = "FILE")]
    pub(crate) redis_tls_ca: Option<PathBuf>,

    /// Path of a PEM file with the client certificate and its intermediate certificates
    #[arg(long, env = "REDIS_TLS_CERT", value_name = "FILE")]
    pub(crate) redis_tls_cert: Option<PathBuf>,

    /// Path of a PEM file with the private key of the client certificate
    #[arg(long, env = "REDIS_TLS_KEY", value_name = "FILE")]
    pub(crate) redis_tls_key: Option<PathBuf>,

    /// Maximum time to wait for the reply to a command
    #[arg(long, env = "REDIS_TIMEOUT", default_value = "2s", value_name = "DURATION",
          value_parser = positive_duration)]
    pub redis_timeout: Duration,
}

impl RedisArgs {
    /// Returns the source of the URL.
    pub fn url(&self) -> SecretSource {
        SecretSource::new(("REDIS_URL", &self.redis_url), ("REDIS_URL_FILE", self.redis_url_file.as_ref()))
    }
}

/// Settings of connections to Postgres.
#[derive(Args, Debug, Clone)]
pub struct PostgresArgs {
    /// URL of Postgres
    ///
    /// Form: postgres://user[:password]@host:port[,host:port…]/database. Parameters are those of libpq: sslmode (disable,
    /// prefer, require, verify-ca or verify-full), sslrootcert, sslcert and sslkey (paths of PEM files);
    /// target_session_attrs (any, read-write, read-only, primary or standby); connect_timeout (seconds for each host, login
    /// included, 5 by default).
    #[arg(
        long,
        env = "DATABASE_URL",
        hide_env_values = true,
        value_name = "URL",
        default_value = "postgres://postgres@127.0.0.1:5432/postgres"
    )]
    database_url: SecretString,

    /// Path of a file with the URL of Postgres, instead of DATABASE_URL
    ///
    /// Read again for each connection.
    #[arg(long, env = "DATABASE_URL_FILE", value_name = "FILE", conflicts_with = "database_url")]
    database_url_file: Option<PathBuf>,
}

impl PostgresArgs {
    /// Returns the source of the URL.
    pub fn url(&self) -> SecretSource {
        let file = ("DATABASE_URL_FILE", self.database_url_file.as_ref());
        SecretSource::new(("DATABASE_URL", &self.database_url), file)
    }
}

/// Settings of the streams.
#[derive(Args, Debug, Clone)]
pub struct StreamArgs {
    /// Prefix of all Redis keys
    #[arg(long, env = "LIKES_STREAM", default_value = "likes", value_name = "PREFIX")]
    pub likes_stream: KeyPrefix,

    /// Number of partitions (streams) [default: recorded count, or 16]
    ///
    /// The first program that starts records the count in Redis. A program exits if this setting differs from the recorded
    /// count. Exception: if likesctl partitions grow has raised the count and this setting still has the old one, the program
    /// logs a warning and uses the recorded count.
    #[arg(long, env = "LIKES_PARTITIONS", value_name = "COUNT", value_parser = partition_count)]
    pub likes_partitions: Option<PartitionCount>,
}

/// Parses a number of partitions.
pub fn partition_count(text: &str) -> Result<PartitionCount, InvalidInteger> {
    let range = 1..=PartitionCount::MAX;
    let count = integer(range.clone())(text)?;
    PartitionCount::new(count).map_err(|_| InvalidInteger::out_of(&range, true))
}

/// Returns a parser of integers in a range.
pub fn integer<T>(
    range: impl RangeBounds<T> + Clone + Send + Sync,
) -> impl Fn(&str) -> Result<T, InvalidInteger> + Clone + Send + Sync
where
    T: FromStr + PartialOrd + Display,
{
    move |text| {
        let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
        let is_integer = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let parsed = text.parse().ok().filter(|number| range.contains(number));
        parsed.ok_or_else(|| InvalidInteger::out_of(&range, is_integer))
    }
}

/// The text is not an integer, or not in the range.
#[derive(Debug, Error)]
#[error("is {problem}; expected an integer {range}")]
pub struct InvalidInteger {
    problem: &'static str,
    range: String,
}

impl InvalidInteger {
    fn out_of<T: Display>(range: &impl RangeBounds<T>, is_integer: bool) -> Self {
        let bound = |bound: Bound<&T>| match bound {
            Bound::Included(limit) => Some(limit.to_string()),
            Bound::Excluded(_) | Bound::Unbounded => None,
        };
        let range = match (bound(range.start_bound()), bound(range.end_bound())) {
            (Some(first), Some(last)) => format!("from {first} to {last}"),
            (Some(first), None) => format!("of at least {first}"),
            (None, Some(last)) => format!("of at most {last}"),
            (None, None) => String::new(),
        };
        Self { problem: if is_integer { "out of range" } else { "not a number" }, range }
    }
}

/// Parses a duration such as `250ms`, `30s` or `1m 30s`, up to [`MAX_DURATION`].
pub fn duration(text: &str) -> Result<Duration, InvalidDuration> {
    let parsed = humantime::parse_duration(text).ok();
    parsed.filter(|duration| *duration <= MAX_DURATION).ok_or(InvalidDuration::Malformed)
}

/// A leap year: so that sums of durations and times never overflow.
pub const MAX_DURATION: Duration = Duration::from_hours(366 * 24);

/// Parses an address to listen on, such as `127.0.0.1:8080`.
pub fn address(text: &str) -> Result<SocketAddr, InvalidAddress> {
    text.parse().map_err(|_| InvalidAddress)
}

/// The text is not an IP address with a port.
#[derive(Debug, Error)]
#[error("expected an IP address and a port, such as 127.0.0.1:8080, 0.0.0.0:8080 or [::1]:8080")]
pub struct InvalidAddress;

/// Parses a [`duration`] that is not zero.
pub fn positive_duration(text: &str) -> Result<Duration, InvalidDuration> {
    duration(text).and_then(|d| if d.is_zero() { Err(InvalidDuration::Zero) } else { Ok(d) })
}

/// A size such as `16KiB`, `1MB` or `4096`: from one byte to [`ByteCount::MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteCount(pub usize);

impl ByteCount {
    /// 512 MiB: the maximum size of a value in Redis.
    pub const MAX: usize = 512 << 20;
}

impl FromStr for ByteCount {
    type Err = InvalidByteCount;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let size: ByteSize = text.parse().map_err(|_| InvalidByteCount)?;
        let bytes = usize::try_from(size.as_u64()).map_err(|_| InvalidByteCount)?;
        if (1..=Self::MAX).contains(&bytes) { Ok(Self(bytes)) } else { Err(InvalidByteCount) }
    }
}

/// The text is not a duration, or zero where that makes no sense.
#[derive(Debug, Error)]
pub enum InvalidDuration {
    #[error("is not a duration up to 366 days; expected a value such as 250ms, 30s or 5m")]
    Malformed,
    #[error("is zero; expected a duration greater than zero, such as 250ms, 30s or 5m")]
    Zero,
}

/// The text is not a size in the range.
#[derive(Debug, Error)]
#[error("expected a size from 1 byte to 512MiB, such as 16KiB or 4096")]
pub struct InvalidByteCount;

/// Removes white space around a value, such as the line break at the end of a file that became an environment variable.
pub fn trimmed(text: &str) -> Result<String, Infallible> {
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use secrecy::ExposeSecret;

    use super::*;

    #[derive(Parser, Debug)]
    struct Flags {
        #[command(flatten)]
        redis: RedisArgs,
        #[command(flatten)]
        postgres: PostgresArgs,
    }

    #[test]
    fn secrets_never_show_in_debug() {
        let flags = Flags::try_parse_from([
            "program",
            "--redis-url=redis://:hunter2@127.0.0.1:1",
            "--database-url=postgres://u:hunter2@127.0.0.1/d",
        ])
        .unwrap();
        assert!(!format!("{flags:?}").contains("hunter2"));
        assert!(flags.redis.url().read().unwrap().expose_secret().contains("hunter2"));
    }

    #[test]
    fn white_space_around_urls_is_removed() {
        let flags = Flags::try_parse_from([
            "program",
            "--redis-url= redis://127.0.0.1:1\n",
            "--database-url=postgres://u@127.0.0.1/d\r\n",
        ])
        .unwrap();
        assert_eq!(flags.redis.url().read().unwrap().expose_secret(), "redis://127.0.0.1:1");
        assert_eq!(flags.postgres.url().read().unwrap().expose_secret(), "postgres://u@127.0.0.1/d");
    }

    #[test]
    fn durations_and_sizes_parse_with_units() {
        assert_eq!(duration("250ms").unwrap(), Duration::from_millis(250));
        assert_eq!(duration("1m 30s").unwrap(), Duration::from_secs(90));
        assert!(
            duration("10").is_err()
                && duration("367d").is_err()
                && duration("-1s").is_err()
                && positive_duration("0s").is_err()
        );
        assert_eq!("16KiB".parse::<ByteCount>().unwrap(), ByteCount(16_384));
        assert_eq!("4096".parse::<ByteCount>().unwrap(), ByteCount(4096));
        assert!("0".parse::<ByteCount>().is_err() && "1TiB".parse::<ByteCount>().is_err());
    }

    #[test]
    fn integer_errors_name_the_problem_and_the_range() {
        let error = |text| integer(1..=1024_u16)(text).unwrap_err().to_string();
        assert_eq!(error("x"), "is not a number; expected an integer from 1 to 1024");
        assert_eq!(error(""), error("x"));
        for text in ["0", "1025", "70000", "-1"] {
            assert_eq!(error(text), "is out of range; expected an integer from 1 to 1024", "{text}");
        }
        let at_least = integer(1_u64..)("0").unwrap_err().to_string();
        assert_eq!(at_least, "is out of range; expected an integer of at least 1");
        assert_eq!(integer(1..=1024_u16)("1024").unwrap(), 1024);
    }
}
