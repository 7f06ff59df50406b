//! Appends entries to the streams, as safely as `REDIS_ACK` asks for.

use std::{num::NonZeroU16, str::FromStr, time::Duration};

use fred::{
    bytes::Bytes,
    prelude::{Error, Value},
};
use futures_util::future;
use opentelemetry::trace::SpanContext;
use shared::{
    redis::{self, Connection, Connections, Retry},
    settings::SettingError,
    telemetry::spans,
    wire::codec,
};
use thiserror::Error as ThisError;
use tokio::time::{Instant, sleep};

use super::sink::PublishError;

/// Pause between two attempts to append an entry.
const RETRY_AFTER: Duration = Duration::from_millis(25);

/// When a like counts as accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RedisAck {
    /// When Redis has it in memory. Whether it survives a crash depends on Redis's persistence.
    Memory,
    /// When this number of replicas have it in memory, too.
    Replicas(NonZeroU16),
    /// When it is on Redis's disk.
    Fsync,
}

#[derive(Debug, ThisError)]
#[error("allowed are memory, replicas:N with N from 1 to 65535, and fsync")]
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

/// An entry was not appended, or is not as safe as it should be.
#[derive(Debug, ThisError)]
pub(crate) enum AppendError {
    #[error("Redis did not take the entry")]
    Redis(#[from] Error),
    /// The entry is in the stream, on too few servers.
    #[error("{confirmed} of {asked} {whose} confirmed the entry in time")]
    Unconfirmed { confirmed: u64, asked: u64, whose: &'static str },
}

impl AppendError {
    /// Returns the kind of error, one of few, for metrics and spans.
    pub(crate) fn error_type(&self) -> &'static str {
        match self {
            Self::Redis(error) => redis::error_type(error),
            Self::Unconfirmed { .. } => "unconfirmed",
        }
    }
}

impl From<&AppendError> for PublishError {
    fn from(error: &AppendError) -> Self {
        match error {
            AppendError::Unconfirmed { .. } => Self::Unconfirmed,
            AppendError::Redis(error) if redis::is_away(error) => Self::Unavailable,
            AppendError::Redis(error) => match redis::error_code(error) {
                Some("OOM") => Self::OutOfMemory,
                Some(_) => Self::Refused,
                None => Self::Unavailable,
            },
        }
    }
}

/// An entry that is in its stream.
#[derive(Debug)]
pub(crate) struct Appended {
    pub(crate) entry_id: String,
    /// How often it was sent. An entry that may or may not be in the stream is sent again, and may be there twice.
    pub(crate) attempts: u64,
}

/// The stream of one partition, to append to. Entries are appended one after the other.
pub(crate) trait AppendLog: Send + 'static {
    /// The stream's key.
    fn stream(&self) -> &str;

    /// Appends an entry, with the span that it belongs to.
    ///
    /// # Errors
    /// With [`AppendError::Redis`] the entry may be in the stream all the same.
    fn append(
        &mut self,
        payload: Bytes,
        trace: Option<&SpanContext>,
    ) -> impl Future<Output = Result<Appended, AppendError>> + Send;
}

/// What Redis is asked for after an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Confirmation {
    /// `WAIT` for replicas.
    Replicas(u16),
    /// `WAITAOF` for the server's append-only file to be on disk. Since Redis 7.2.
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
    /// Finds out how this Redis can do what `ack` asks for.
    ///
    /// # Errors
    /// When it can't.
    pub(crate) async fn new(
        redis: Connections,
        ack: RedisAck,
        confirm_timeout: Duration,
    ) -> Result<Self, SettingError> {
        let confirmation = match ack {
            RedisAck::Memory => None,
            RedisAck::Replicas(count) => Some(Confirmation::Replicas(count.get())),
            RedisAck::Fsync if on_every_server(&redis, knows_waitaof).await => Some(Confirmation::LocalFsync),
            // Then the reply to XADD itself comes after the entry is on disk.
            RedisAck::Fsync if on_every_server(&redis, syncs_always).await => None,
            RedisAck::Fsync => {
                return Err(SettingError::new(
                    "REDIS_ACK",
                    "'fsync' is not possible with this Redis: allowed is that with Redis 7.2 or newer, or with appendonly yes and appendfsync always",
                ));
            }
        };
        Ok(Self { redis, confirmation, confirm_timeout })
    }

    pub(crate) fn open(&self, stream: String) -> RedisStream {
        RedisStream { streams: self.clone(), stream, own: None }
    }

    /// Returns how long an append may take where a plain command may take `command`: it may have to connect first, and wait.
    pub(crate) fn entry_timeout(&self, command: Duration) -> Duration {
        if self.confirmation.is_some() { command * 3 } else { command }
    }
}

/// A stream in Redis.
pub(crate) struct RedisStream {
    streams: RedisStreams,
    stream: String,
    /// `WAIT` covers what was written on its own connection. So where it is used the connection is not shared, and never
    /// replaced without our knowledge.
    own: Option<Connection>,
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
        let Some(confirmation) = self.streams.confirmation else {
            let redis = &self.streams.redis;
            let (entry_id, attempts) =
                redis.run_counting(&self.stream, Retry::Idempotent, "XADD", entry).await?;
            return Ok(Appended { entry_id, attempts });
        };
        let give_up_at = Instant::now() + self.streams.confirm_timeout;
        let mut attempts = 1;
        loop {
            match self.append_confirmed(entry.clone(), confirmation).await {
                Err(AppendError::Redis(error)) if redis::is_away(&error) && Instant::now() < give_up_at => {
                    attempts += 1;
                    sleep(RETRY_AFTER).await;
                }
                answer => return answer.map(|entry_id| Appended { entry_id, attempts }),
            }
        }
    }
}

impl RedisStream {
    async fn append_confirmed(
        &mut self,
        entry: Vec<Value>,
        confirmation: Confirmation,
    ) -> Result<String, AppendError> {
        let connection = self.streams.redis.dedicated_connection(&self.stream, self.own.take()).await?;
        // In this order on one connection: the second command waits for the first.
        let (added, confirmed) =
            future::join(connection.send("XADD", entry), self.confirm(&connection, confirmation)).await;
        for error in [added.as_ref().err(), confirmed.as_ref().err()].into_iter().flatten() {
            self.streams.redis.report_error(error);
        }
        if added.is_ok() && confirmed.is_ok() {
            self.own = Some(connection);
        }
        let entry_id = added?;
        let (confirmed, asked, whose) = confirmed?;
        if confirmed < asked {
            return Err(AppendError::Unconfirmed { confirmed, asked, whose });
        }
        Ok(entry_id)
    }

    /// Returns how many have confirmed, how many should have, and what they are.
    async fn confirm(
        &self,
        connection: &Connection,
        confirmation: Confirmation,
    ) -> Result<(u64, u64, &'static str), Error> {
        let limit_ms = self.streams.confirm_timeout.as_millis().to_string();
        match confirmation {
            Confirmation::Replicas(count) => {
                let args = vec![count.to_string().into(), limit_ms.into()];
                Ok((connection.send("WAIT", args).await?, count.into(), "replicas"))
            }
            Confirmation::LocalFsync => {
                let args = vec!["1".into(), "0".into(), limit_ms.into()];
                let (local, _replicas): (u64, u64) = connection.send("WAITAOF", args).await?;
                Ok((local, 1, "disks"))
            }
        }
    }
}

async fn on_every_server(redis: &Connections, is_so: impl AsyncFn(&Connection) -> bool) -> bool {
    for server in redis.servers() {
        if !is_so(&server).await {
            return false;
        }
    }
    true
}

async fn knows_waitaof(server: &Connection) -> bool {
    let info: Result<Vec<Value>, _> = server.send("COMMAND", vec!["INFO".into(), "WAITAOF".into()]).await;
    info.is_ok_and(|info| info.first().is_some_and(|about| !about.is_null()))
}

async fn syncs_always(server: &Connection) -> bool {
    let set_to = async |name: &str, value: &str| {
        let settings: Result<Vec<String>, _> = server.send("CONFIG", vec!["GET".into(), name.into()]).await;
        settings.is_ok_and(|settings| settings.get(1).is_some_and(|set| set == value))
    };
    set_to("appendonly", "yes").await && set_to("appendfsync", "always").await
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
    fn errors_say_whether_the_entry_may_be_in_the_stream() {
        let published = |kind, details: &str| {
            PublishError::from(&AppendError::Redis(Error::new(kind, details.to_owned())))
        };
        assert_eq!(published(ErrorKind::IO, "broken pipe"), PublishError::Unavailable);
        assert_eq!(published(ErrorKind::Timeout, ""), PublishError::Unavailable);
        assert_eq!(published(ErrorKind::Unknown, "LOADING Redis is loading"), PublishError::Unavailable);
        assert_eq!(published(ErrorKind::Unknown, "OOM command not allowed"), PublishError::OutOfMemory);
        assert_eq!(published(ErrorKind::Unknown, "NOPERM no permission"), PublishError::Refused);
        let unconfirmed = AppendError::Unconfirmed { confirmed: 0, asked: 1, whose: "replicas" };
        assert_eq!(PublishError::from(&unconfirmed), PublishError::Unconfirmed);
    }
}
