//! Settings that several programs share: each a clap flag with an environment variable.

use std::{fmt, fs, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use bytesize::ByteSize;
use clap::Args;
use secrecy::{ExposeSecret, SecretString};
use thiserror::Error;

use crate::{
    settings::SettingError,
    wire::partition::{KeyPrefix, PartitionCount},
};

/// Where Redis is.
#[derive(Args, Debug, Clone)]
pub struct RedisArgs {
    /// Redis, as redis://[user:password@]host:port[/db], redis-cluster://host:port[?node=host:port…], or
    /// redis-sentinel://host:port[/db]?sentinelServiceName=name[&node=host:port…]; with TLS rediss://,
    /// rediss-cluster:// or rediss-sentinel:// [default: redis://127.0.0.1:6379]
    #[arg(long, env = "REDIS_URL", hide_env_values = true, value_name = "URL")]
    redis_url: Option<SecretString>,

    /// A file that holds the URL of Redis, in place of REDIS_URL
    #[arg(long, env = "REDIS_URL_FILE", value_name = "FILE", conflicts_with = "redis_url")]
    redis_url_file: Option<PathBuf>,

    /// A file, in PEM, of the authorities whose certificates Redis may have, in place of those that the system trusts
    #[arg(long, env = "REDIS_TLS_CA", value_name = "FILE")]
    pub(crate) redis_tls_ca: Option<PathBuf>,

    /// A file, in PEM, of the certificate that Redis is shown, with what leads to its authority
    #[arg(long, env = "REDIS_TLS_CERT", value_name = "FILE")]
    pub(crate) redis_tls_cert: Option<PathBuf>,

    /// A file, in PEM, of its private key
    #[arg(long, env = "REDIS_TLS_KEY", value_name = "FILE")]
    pub(crate) redis_tls_key: Option<PathBuf>,

    /// How long a command may wait for Redis before it counts as failed
    #[arg(long, env = "REDIS_TIMEOUT", default_value = "2s", value_name = "DURATION",
          value_parser = positive_duration)]
    pub redis_timeout: Duration,
}

impl RedisArgs {
    /// The URL, from wherever it was given.
    pub fn url(&self) -> Result<SecretString, SettingError> {
        secret(
            "REDIS_URL_FILE",
            self.redis_url.as_ref(),
            self.redis_url_file.as_ref(),
            "redis://127.0.0.1:6379",
        )
    }
}

/// Where Postgres is.
#[derive(Args, Debug, Clone)]
pub struct PostgresArgs {
    /// Postgres, as postgres://user[:password]@host:port/database, TLS by libpq's parameters: ?sslmode=verify-full
    /// (or verify-ca, require, prefer, disable), sslrootcert=file, sslcert=file, sslkey=file
    /// [default: postgres://postgres@127.0.0.1:5432/postgres]
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    database_url: Option<SecretString>,

    /// A file that holds the URL of Postgres, in place of DATABASE_URL
    #[arg(long, env = "DATABASE_URL_FILE", value_name = "FILE", conflicts_with = "database_url")]
    database_url_file: Option<PathBuf>,
}

impl PostgresArgs {
    /// The URL, from wherever it was given.
    pub fn url(&self) -> Result<SecretString, SettingError> {
        secret(
            "DATABASE_URL_FILE",
            self.database_url.as_ref(),
            self.database_url_file.as_ref(),
            "postgres://postgres@127.0.0.1:5432/postgres",
        )
    }
}

/// Which streams.
#[derive(Args, Debug, Clone)]
pub struct StreamArgs {
    /// The prefix of all keys in Redis
    #[arg(long, env = "LIKES_STREAM", default_value = "likes", value_name = "PREFIX")]
    pub likes_stream: KeyPrefix,

    /// How many streams the likes are spread over, the same for all programs; recorded in Redis at first start
    /// [default: what is on record, or 16]
    #[arg(long, env = "LIKES_PARTITIONS", value_name = "COUNT")]
    pub likes_partitions: Option<PartitionCount>,
}

/// Reads `250ms`, `30s`, `1m 30s`, at most [`MAX_DURATION`].
pub fn duration(text: &str) -> Result<Duration, InvalidDuration> {
    humantime::parse_duration(text).ok().filter(|duration| *duration <= MAX_DURATION).ok_or(InvalidDuration)
}

/// A leap year: so that sums of durations and times never overflow.
pub const MAX_DURATION: Duration = Duration::from_hours(366 * 24);

/// Reads an address to listen on, like `127.0.0.1:8080`.
pub fn address(text: &str) -> Result<SocketAddr, InvalidAddress> {
    text.parse().map_err(|_| InvalidAddress)
}

/// Not an address.
#[derive(Debug, Error)]
#[error("allowed is an IP address with a port, like 127.0.0.1:8080, 0.0.0.0:8080 or [::1]:8080")]
pub struct InvalidAddress;

/// Reads a [`duration`] that is not zero.
pub fn positive_duration(text: &str) -> Result<Duration, InvalidDuration> {
    duration(text).and_then(|d| if d.is_zero() { Err(InvalidDuration) } else { Ok(d) })
}

/// Reads `16KiB`, `1MB`, `4096`; at least one byte, at most [`ByteCount::MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteCount(pub usize);

impl ByteCount {
    /// 512 MiB: what Redis takes as one value.
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

/// Not a duration, or zero where that makes no sense.
#[derive(Debug, Error)]
#[error(
    "allowed is a duration like 250ms, 30s or 5m, up to 366 days, and not zero where nothing could be done in no time"
)]
pub struct InvalidDuration;

/// Not a size.
#[derive(Debug, Error)]
#[error("allowed is a size from 1 to 512MiB, like 16KiB or 4096")]
pub struct InvalidByteCount;

fn secret(
    file_setting: &'static str,
    given: Option<&SecretString>,
    file: Option<&PathBuf>,
    default: &str,
) -> Result<SecretString, SettingError> {
    let Some(file) = file else {
        return Ok(given.cloned().unwrap_or_else(|| default.into()));
    };
    let read =
        |error: &dyn fmt::Display| SettingError::new(file_setting, format!("'{}' {error}", file.display()));
    let text = fs::read_to_string(file).map_err(|e| read(&format_args!("can't be read: {e}")))?;
    let text = SecretString::from(text.trim());
    if text.expose_secret().is_empty() {
        return Err(read(&"is empty, it should hold a URL"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

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
        assert!(flags.redis.url().unwrap().expose_secret().contains("hunter2"));
    }

    #[test]
    fn durations_and_sizes_are_humane() {
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
}
