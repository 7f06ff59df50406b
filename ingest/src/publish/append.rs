//! One entry into one stream, as safe as `REDIS_ACK` asks for.

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

/// Between two attempts to append an entry.
const REPEAT_AFTER: Duration = Duration::from_millis(25);

/// When a like counts as taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RedisAck {
    /// When Redis has it in memory. What a crash then takes depends on Redis's persistence.
    Memory,
    /// When so many replicas have it in memory, too.
    Replicas(NonZeroU16),
    /// When it is on Redis's disk.
    Fsync,
}

/// Not one of the three.
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

/// An entry was not taken, or is not as safe as it should be.
#[derive(Debug, ThisError)]
pub(crate) enum AppendError {
    #[error("Redis did not take the entry")]
    Redis(#[from] Error),
    /// It is in the stream, on too few servers.
    #[error("{confirmed} of {asked} {whose} confirmed the entry in time")]
    Unconfirmed { confirmed: u64, asked: u64, whose: &'static str },
}

impl AppendError {
    /// What kind of error it is, for metrics and spans: one of few.
    pub(crate) fn error_type(&self) -> &'static str {
        match self {
            Self::Redis(error) => redis::error_type(error),
            Self::Unconfirmed { .. } => "unconfirmed",
        }
    }
}

/// What Redis is asked for after an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Confirmation {
    /// `WAIT`: replicas that have it.
    Replicas(u16),
    /// `WAITAOF`: it is in the server's append-only file, and that is on the disk. Since Redis 7.2.
    LocalFsync,
}

/// Makes appends for any number of streams.
#[derive(Clone)]
pub(crate) struct AppendFactory {
    redis: Connections,
    confirmation: Option<Confirmation>,
    confirm_within: Duration,
}

impl AppendFactory {
    /// Finds out how this Redis can do what `ack` asks for.
    ///
    /// # Errors
    /// When it can't.
    pub(crate) async fn new(
        redis: Connections,
        ack: RedisAck,
        confirm_within: Duration,
    ) -> Result<Self, SettingError> {
        let confirmation = match ack {
            RedisAck::Memory => None,
            RedisAck::Replicas(count) => Some(Confirmation::Replicas(count.get())),
            RedisAck::Fsync if on_every_server(&redis, knows_waitaof).await => Some(Confirmation::LocalFsync),
            // Then the answer to XADD itself comes after the entry is on the disk.
            RedisAck::Fsync if on_every_server(&redis, syncs_always).await => None,
            RedisAck::Fsync => {
                return Err(SettingError::new(
                    "REDIS_ACK",
                    "'fsync' is not possible with this Redis: allowed is that with Redis 7.2 or newer, or with appendonly yes and appendfsync always",
                ));
            }
        };
        Ok(Self { redis, confirmation, confirm_within })
    }

    /// For one stream. Appends are to be made one after the other.
    pub(crate) fn for_stream(&self, stream: String) -> Append {
        Append { factory: self.clone(), stream, own: None }
    }

    /// How much longer than a plain command an append may take: it may have to connect first, and wait.
    pub(crate) fn patience(&self, command: Duration) -> Duration {
        if self.confirmation.is_some() { command * 3 } else { command }
    }
}

/// Appends to one stream.
pub(crate) struct Append {
    factory: AppendFactory,
    stream: String,
    /// `WAIT` speaks of what was written on its own connection. So where it is used the connection is nobody else's,
    /// and never made anew behind our back.
    own: Option<Connection>,
}

impl Append {
    /// The stream's key.
    pub(crate) fn stream(&self) -> &str {
        &self.stream
    }

    /// Appends an entry, with the span that it belongs to, and returns its id, with how often it was sent: what nobody knows to be done is done again.
    ///
    /// # Errors
    /// After most of them nobody knows whether Redis has the entry.
    pub(crate) async fn append(
        &mut self,
        payload: Bytes,
        trace: Option<&SpanContext>,
    ) -> Result<(String, u64), AppendError> {
        let mut entry = vec![self.stream.as_str().into(), "*".into(), codec::FIELD.into(), payload.into()];
        if let Some(trace) = trace {
            entry.extend(spans::fields(trace).flat_map(|(name, value)| [Value::from(name), value.into()]));
        }
        let Some(confirmation) = self.factory.confirmation else {
            let redis = &self.factory.redis;
            return Ok(redis.run_counting(&self.stream, Retry::Idempotent, "XADD", entry).await?);
        };
        let give_up_at = Instant::now() + self.factory.confirm_within;
        let mut sent = 1;
        loop {
            match self.append_confirmed(entry.clone(), confirmation).await {
                Err(AppendError::Redis(error)) if redis::is_away(&error) && Instant::now() < give_up_at => {
                    sent += 1;
                    sleep(REPEAT_AFTER).await;
                }
                answer => return answer.map(|entry_id| (entry_id, sent)),
            }
        }
    }

    async fn append_confirmed(
        &mut self,
        entry: Vec<Value>,
        confirmation: Confirmation,
    ) -> Result<String, AppendError> {
        let connection = self.factory.redis.dedicated_connection(&self.stream, self.own.take()).await?;
        // In this order on one connection: the second speaks of the first.
        let (added, confirmed) =
            future::join(connection.send("XADD", entry), self.confirm(&connection, confirmation)).await;
        for error in [added.as_ref().err(), confirmed.as_ref().err()].into_iter().flatten() {
            self.factory.redis.report_error(error);
        }
        if added.is_ok() && confirmed.is_ok() {
            self.own = Some(connection);
        }
        let (entry_id, (confirmed, asked, whose)) = (added?, confirmed?);
        if confirmed < asked {
            return Err(AppendError::Unconfirmed { confirmed, asked, whose });
        }
        Ok(entry_id)
    }

    /// How many have confirmed, how many should have, and what they are.
    async fn confirm(
        &self,
        connection: &Connection,
        confirmation: Confirmation,
    ) -> Result<(u64, u64, &'static str), Error> {
        let limit_ms = self.factory.confirm_within.as_millis().to_string();
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
    use super::*;

    #[test]
    fn acks_are_one_of_three() {
        assert_eq!("memory".parse::<RedisAck>().unwrap(), RedisAck::Memory);
        assert_eq!("fsync".parse::<RedisAck>().unwrap(), RedisAck::Fsync);
        let two = NonZeroU16::new(2).unwrap();
        assert_eq!("replicas:2".parse::<RedisAck>().unwrap(), RedisAck::Replicas(two));
        for bad in ["", "replicas", "replicas:0", "replicas:-1", "fsync:1", "Memory"] {
            assert!(bad.parse::<RedisAck>().is_err(), "{bad}");
        }
    }
}
