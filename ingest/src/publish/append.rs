//! Appends entries to the streams, with the durability of `REDIS_ACK`.

use std::{num::NonZeroU16, str::FromStr, time::Duration};

use fred::{
    bytes::Bytes,
    prelude::{Error, Value},
};
use opentelemetry::trace::SpanContext;
use shared::{
    redis::{self, Connection, Connections, Dedicated, Failed, Retry},
    settings::SettingError,
    telemetry::spans,
    wire::codec,
};
use thiserror::Error as ThisError;

use super::sink::{PublishError, Published};

/// Durability at which a like counts as accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RedisAck {
    /// In memory of the primary. Whether the like survives a crash depends on Redis persistence.
    Memory,
    /// Also in memory of this number of replicas.
    Replicas(NonZeroU16),
    /// On the disk of the primary.
    Fsync,
}

#[derive(Debug, ThisError)]
#[error("expected memory, fsync, or replicas:N with N from 1 to 65535")]
pub(crate) struct InvalidRedisAck;

impl FromStr for RedisAck {
    type Err = InvalidRedisAck;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            None if text == "memory" => Ok(Self::Memory),
            None if text == "fsync" => Ok(Self::Fsync),
            Some(("replicas", count)) => count.parse().map(Self::Replicas).map_err(|_| InvalidRedisAck),
            _ => Err(InvalidRedisAck),
        }
    }
}

/// Error of an entry that was not appended, or not confirmed as `REDIS_ACK` requires.
#[derive(Debug, ThisError)]
pub(crate) enum AppendError {
    #[error("Redis command failed")]
    Redis {
        source: Error,
        /// Whether the entry may still be in the stream.
        may_be_executed: bool,
    },
    /// The entry is in the stream, but too few replicas or disks have confirmed it.
    #[error("{confirmed} of {required} {kind} confirmed the entry in time")]
    Unconfirmed { confirmed: u64, required: u64, kind: &'static str },
}

impl AppendError {
    /// Returns the kind of error, for metrics and spans. The number of kinds is small.
    pub(crate) fn error_type(&self) -> &'static str {
        match self {
            Self::Redis { source, .. } => redis::error_type(source),
            Self::Unconfirmed { .. } => "unconfirmed",
        }
    }
}

impl From<Failed> for AppendError {
    fn from(Failed { error, may_be_executed }: Failed) -> Self {
        Self::Redis { source: error, may_be_executed }
    }
}

impl From<&AppendError> for PublishError {
    fn from(error: &AppendError) -> Self {
        let AppendError::Redis { source, may_be_executed } = error else { return Self::Unconfirmed };
        let published = if *may_be_executed { Published::Unknown } else { Published::No };
        let class = error.error_type();
        match redis::error_code(source) {
            Some("OOM") => Self::OutOfMemory(published),
            Some("READONLY") => Self::ReadOnly(published),
            Some(_) if !redis::is_away(source) => Self::Refused(class, published),
            _ => Self::Unavailable(class, published),
        }
    }
}

/// An entry that is in its stream.
#[derive(Debug)]
pub(crate) struct Appended {
    pub(crate) entry_id: String,
    /// Number of times the entry was sent. An entry with an unknown outcome is sent again, so the stream may have it twice.
    pub(crate) attempts: u64,
}

/// The stream of one partition. Entries are appended one at a time.
pub(crate) trait AppendLog: Send + 'static {
    /// Returns the key of the stream.
    fn stream(&self) -> &str;

    /// Appends an entry, with the context of its span.
    ///
    /// # Errors
    /// When the entry was not appended, or not confirmed.
    fn append(
        &mut self,
        payload: Bytes,
        trace: Option<&SpanContext>,
    ) -> impl Future<Output = Result<Appended, AppendError>> + Send;
}

/// Command that confirms an entry after `XADD`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Confirmation {
    /// `WAIT` for this number of replicas.
    Replicas(u16),
    /// `WAITAOF` until the append-only file of the primary is on disk. Since Redis 7.2.
    LocalFsync,
}

/// Opens streams to append to.
#[derive(Clone)]
pub(crate) struct RedisStreams {
    redis: Connections,
    confirmation: Option<Confirmation>,
    confirm_timeout: Duration,
}

impl RedisStreams {
    /// Chooses the confirmation for `ack` by the version and settings of every Redis server.
    ///
    /// # Errors
    /// Returns an error if a server is unavailable. The inner error is that Redis does not support `ack`.
    pub(crate) async fn new(
        redis: Connections,
        ack: RedisAck,
        confirm_timeout: Duration,
    ) -> Result<Result<Self, SettingError>, Error> {
        let confirmation = match ack {
            RedisAck::Memory => None,
            RedisAck::Replicas(count) => Some(Confirmation::Replicas(count.get())),
            RedisAck::Fsync if on_every_server(&redis, knows_waitaof).await? => {
                Some(Confirmation::LocalFsync)
            }
            // With `appendfsync always`, Redis replies to XADD after the entry is on disk.
            RedisAck::Fsync if on_every_server(&redis, syncs_always).await? => None,
            RedisAck::Fsync => {
                return Ok(Err(SettingError::new(
                    "REDIS_ACK",
                    "'fsync' is not supported by this Redis; expected Redis 7.2 or newer, or appendonly yes and appendfsync always",
                )));
            }
        };
        Ok(Ok(Self { redis, confirmation, confirm_timeout }))
    }

    pub(crate) fn open(&self, stream: String) -> RedisStream {
        let dedicated = self.confirmation.map(|confirmation| (self.redis.dedicated(&stream), confirmation));
        RedisStream { redis: self.redis.clone(), confirm_timeout: self.confirm_timeout, stream, dedicated }
    }

    /// Returns the timeout of an append, given the timeout of one command. A confirmed append may also connect and wait for
    /// the confirmation.
    pub(crate) fn entry_timeout(&self, command: Duration) -> Duration {
        if self.confirmation.is_some() { command * 3 } else { command }
    }
}

/// A stream in Redis.
pub(crate) struct RedisStream {
    redis: Connections,
    stream: String,
    confirm_timeout: Duration,
    /// `WAIT` covers only writes of the same connection. So with a confirmation the stream has its own connections.
    dedicated: Option<(Dedicated, Confirmation)>,
}

impl AppendLog for RedisStream {
    fn stream(&self) -> &str {
        &self.stream
    }

    async fn append(&mut self, payload: Bytes, trace: Option<&SpanContext>) -> Result<Appended, AppendError> {
        let mut entry = vec![self.stream.as_str().into(), "*".into(), codec::FIELD.into(), payload.into()];
        if let Some(trace) = trace {
            entry.extend(spans::fields(trace).flat_map(|(name, value)| [Value::from(name), value.into()]));
        }
        let Some((dedicated, confirmation)) = &mut self.dedicated else {
            let (entry_id, attempts) =
                self.redis.run_counting(&self.stream, Retry::Idempotent, "XADD", entry).await?;
            return Ok(Appended { entry_id, attempts });
        };
        append_confirmed(dedicated, *confirmation, entry, self.confirm_timeout).await
    }
}

/// Appends an entry and requests its confirmation, which covers the XADD before it on the same connection.
async fn append_confirmed(
    dedicated: &mut Dedicated,
    confirmation: Confirmation,
    entry: Vec<Value>,
    limit: Duration,
) -> Result<Appended, AppendError> {
    let limit_ms = Value::from(limit.as_millis().to_string());
    let append = ("XADD", entry);
    let (entry_id, attempts, confirmed, required, kind) = match confirmation {
        Confirmation::Replicas(required) => {
            let wait = ("WAIT", vec![required.to_string().into(), limit_ms]);
            let (entry_id, confirmed, attempts) = dedicated.run::<_, u64>(limit, append, wait).await?;
            (entry_id, attempts, confirmed, required.into(), "replicas")
        }
        Confirmation::LocalFsync => {
            let wait = ("WAITAOF", vec!["1".into(), "0".into(), limit_ms]);
            let (entry_id, (local, _), attempts) =
                dedicated.run::<_, (u64, u64)>(limit, append, wait).await?;
            (entry_id, attempts, local, 1, "disks")
        }
    };
    if confirmed < required {
        return Err(AppendError::Unconfirmed { confirmed, required, kind });
    }
    Ok(Appended { entry_id, attempts })
}

/// Returns whether the check passes on every server. A server that rejects the commands of the check does not pass it.
async fn on_every_server(
    redis: &Connections,
    check: impl AsyncFn(&Connection) -> Result<bool, Error>,
) -> Result<bool, Error> {
    for server in redis.servers() {
        match check(&server).await {
            Ok(true) => {}
            Err(error) if redis::is_away(&error) => return Err(error),
            Ok(false) | Err(_) => return Ok(false),
        }
    }
    Ok(true)
}

async fn knows_waitaof(server: &Connection) -> Result<bool, Error> {
    let info: Vec<Value> = server.send("COMMAND", vec!["INFO".into(), "WAITAOF".into()]).await?;
    Ok(info.first().is_some_and(|about| !about.is_null()))
}

async fn syncs_always(server: &Connection) -> Result<bool, Error> {
    let set_to = async |name: &str, value: &str| {
        let settings: Vec<String> = server.send("CONFIG", vec!["GET".into(), name.into()]).await?;
        Ok::<_, Error>(settings.get(1).is_some_and(|set| set == value))
    };
    Ok(set_to("appendonly", "yes").await? && set_to("appendfsync", "always").await?)
}

#[cfg(test)]
mod tests {
    use fred::prelude::ErrorKind;

    use super::*;

    #[test]
    fn acks_parse_as_memory_replicas_or_fsync() {
        assert_eq!("memory".parse::<RedisAck>().unwrap(), RedisAck::Memory);
        assert_eq!("fsync".parse::<RedisAck>().unwrap(), RedisAck::Fsync);
        let two = NonZeroU16::new(2).unwrap();
        assert_eq!("replicas:2".parse::<RedisAck>().unwrap(), RedisAck::Replicas(two));
        for bad in ["", "replicas", "replicas:0", "replicas:-1", "fsync:1", "Memory"] {
            assert!(bad.parse::<RedisAck>().is_err(), "{bad}");
        }
    }

    #[test]
    fn errors_name_their_class_and_whether_the_entry_may_be_in_the_stream() {
        let published = |may_be_executed, kind, details: &'static str| {
            PublishError::from(&AppendError::Redis { source: Error::new(kind, details), may_be_executed })
        };
        let lost = published(true, ErrorKind::IO, "broken pipe");
        assert_eq!(lost, PublishError::Unavailable("connection", Published::Unknown));
        let not_sent = published(false, ErrorKind::IO, "not connected to redis:6379");
        assert_eq!(not_sent, PublishError::Unavailable("connection", Published::No));
        let unknown = |details| published(false, ErrorKind::Unknown, details);
        assert_eq!(unknown("LOADING Redis"), PublishError::Unavailable("LOADING", Published::No));
        assert_eq!(unknown("OOM command not allowed"), PublishError::OutOfMemory(Published::No));
        assert_eq!(unknown("READONLY You can't"), PublishError::ReadOnly(Published::No));
        assert_eq!(unknown("NOPERM no permission"), PublishError::Refused("NOPERM", Published::No));
        assert_eq!(unknown("MISCONF Redis is"), PublishError::Refused("MISCONF", Published::No));
        let after_a_lost_reply = published(true, ErrorKind::Unknown, "OOM command not allowed");
        assert_eq!(after_a_lost_reply, PublishError::OutOfMemory(Published::Unknown));
        let unconfirmed = AppendError::Unconfirmed { confirmed: 0, required: 1, kind: "replicas" };
        assert_eq!(PublishError::from(&unconfirmed), PublishError::Unconfirmed);
    }
}
