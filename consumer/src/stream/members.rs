//! Membership records: heartbeats of the members of a group. The time in a record is that of Redis's clock, which may be
//! stepped: members compare it for equality only.

use std::{fmt, time::Duration};

use bytes::Bytes;
use fred::prelude::{Error, Value};
use shared::redis::Retry;

use crate::stream::{Heartbeats, Streams, reply};

/// Records a heartbeat and returns the records of all members. Removes records that have not changed for long. Does not take
/// over a name that a live process uses.
///
/// Also runs when Redis is out of memory, to avoid a rebalance at that moment; the record of a member is small.
///
/// KEYS: members, a hash of name → "token state assignment milliseconds". ARGV: name, token (unique per process), state,
/// static assignment or empty, liveness timeout in milliseconds; then the name and time of each record to remove. Returns
/// `[0 or 1, [[name, token, state, assignment, milliseconds, 0 or 1] …]]`: whether the heartbeat was recorded, and the members
/// with whether their records are younger than the liveness timeout by Redis's clock.
const HEARTBEAT: &str = include_str!("scripts/heartbeat.lua");

/// Removes the record of a member, unless it belongs to another process.
///
/// KEYS: members. ARGV: name, token.
const RESIGN: &str = include_str!("scripts/resign.lua");

/// Interval between two heartbeats.
pub(crate) const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(750);

/// Time without a heartbeat after which a member counts as dead. Its partitions are reassigned, and its pending entries are
/// claimed by the new owners.
pub const LIVENESS_TIMEOUT: Duration = Duration::from_secs(4);

/// State that a member announces in its heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberState {
    /// Reads and stores entries.
    Active,
    /// Cannot write to Postgres. Gets no partitions while other members can write.
    Stuck,
    /// Has stopped reading and drains its in-flight entries.
    Leaving,
}

impl MemberState {
    fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Stuck => "stuck",
            Self::Leaving => "leaving",
        }
    }

    /// Parses a state. A state unknown to this version counts as active; if two consumers read the same partition as a result,
    /// entries are still stored once.
    pub(crate) fn named(name: &str) -> Self {
        [Self::Stuck, Self::Leaving].into_iter().find(|it| it.name() == name).unwrap_or(Self::Active)
    }
}

/// Heartbeat of a member.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    pub state: MemberState,
    /// Static assignment in the syntax of `CONSUMER_PARTITIONS`; empty for an automatic assignment.
    pub static_assignment: String,
    /// Records to remove.
    pub silent: Vec<Silent>,
}

/// Record that has not changed for long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Silent {
    pub name: MemberName,
    pub heartbeat_at: u64,
}

/// Name of a member, as recorded. Other programs choose their own names, which may not be valid UTF-8: such names are
/// displayed with replacement characters, and compared by their bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberName(Bytes);

impl MemberName {
    /// Returns the name as an argument of a command.
    pub(super) fn to_value(&self) -> Value {
        Value::Bytes(self.0.clone())
    }
}

impl AsRef<[u8]> for MemberName {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl From<Bytes> for MemberName {
    fn from(name: Bytes) -> Self {
        Self(name)
    }
}

impl From<&str> for MemberName {
    fn from(name: &str) -> Self {
        Self(Bytes::copy_from_slice(name.as_bytes()))
    }
}

impl PartialEq<str> for MemberName {
    fn eq(&self, name: &str) -> bool {
        self.0 == name
    }
}

impl fmt::Display for MemberName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

/// Member of the group: a consumer that has not resigned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub name: MemberName,
    /// Token of the process.
    pub process: String,
    pub state: MemberState,
    /// Static assignment from its heartbeat.
    pub static_assignment: String,
    /// Time of the last heartbeat in milliseconds, by the clock that Redis had then.
    pub heartbeat_at: u64,
    /// Whether the last heartbeat is younger than the liveness timeout.
    pub is_alive: bool,
}

impl Streams {
    /// Returns the name of this consumer.
    pub fn consumer(&self) -> &str {
        &self.consumer
    }

    /// Returns the name of the group.
    pub fn group(&self) -> &str {
        &self.group
    }
}

impl Heartbeats for Streams {
    fn consumer(&self) -> &str {
        &self.consumer
    }

    fn group(&self) -> &str {
        &self.group
    }

    fn process(&self) -> &str {
        &self.process
    }

    async fn heartbeat(&self, heartbeat: &Heartbeat) -> Result<Option<Vec<Member>>, Error> {
        let args = [
            &self.consumer,
            &self.process,
            heartbeat.state.name(),
            &heartbeat.static_assignment,
            &LIVENESS_TIMEOUT.as_millis().to_string(),
        ];
        let silent = heartbeat.silent.iter();
        let silent = silent.flat_map(|one| [one.name.to_value(), one.heartbeat_at.to_string().into()]);
        let args = args.map(Value::from).into_iter().chain(silent);
        let members = [self.keys.members(&self.group)];
        reply::members(self.redis.eval(HEARTBEAT, &members, Retry::Idempotent, args).await?)
    }

    async fn resign(&self) -> Result<(), Error> {
        let members = [self.keys.members(&self.group)];
        let args = [&self.consumer, &self.process];
        self.redis.eval::<u64>(RESIGN, &members, Retry::Idempotent, args).await.map(drop)
    }
}
