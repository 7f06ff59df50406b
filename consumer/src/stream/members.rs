//! Heartbeats: the members of a group, by Redis's clock alone.

use std::time::Duration;

use fred::prelude::Error;
use shared::redis::Retry;

use crate::stream::{Heartbeats, Streams, reply};

/// Records a heartbeat, and returns the records of all members, each with whether it is fresh or the member counts as
/// dead; removes records that are much older. A name that another process uses is not taken over.
///
/// Runs also when Redis is out of memory, or owners would change just then; a member's record is small.
///
/// KEYS: members, name → "token state assignment milliseconds". ARGV: name, a token that no other process has, its
/// state, its static assignment or nothing, and in milliseconds after what time a member is dead, and after what time
/// removed. Returns `[0 or 1, [[name, state, assignment, 0 or 1] …]]`.
const HEARTBEAT: &str = include_str!("scripts/heartbeat.lua");

/// Removes a member, unless the record is another process's.
///
/// KEYS: members. ARGV: name, token.
const RESIGN: &str = include_str!("scripts/resign.lua");

/// Without a heartbeat for this long a member counts as dead: its partitions go to others, and its pending entries with
/// them.
pub const LIVENESS_TIMEOUT: Duration = Duration::from_secs(4);

/// The age at which a member's record is removed, in liveness timeouts.
const FORGOTTEN_AFTER: u32 = 20;

/// The work that a member can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberState {
    /// All work.
    Active,
    /// It can't store its entries, and should get no more partitions while others can.
    Stuck,
    /// It reads no more and finishes the entries that it has.
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

    /// Returns the state of this name. A name that this version doesn't know counts as active: entries that two consumers
    /// read are stored once.
    pub(crate) fn named(name: &str) -> Self {
        [Self::Stuck, Self::Leaving].into_iter().find(|it| it.name() == name).unwrap_or(Self::Active)
    }
}

/// A member's own record.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    /// Tells two processes of one name apart.
    pub token: String,
    pub state: MemberState,
    /// As in `CONSUMER_PARTITIONS`; empty where the member has a share like others.
    pub static_assignment: String,
    /// Without a heartbeat for this long a member counts as dead.
    pub liveness_timeout: Duration,
}

/// A consumer that has not resigned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub name: String,
    pub state: MemberState,
    /// As in its own record.
    pub static_assignment: String,
    /// Whether its last heartbeat is younger than the liveness timeout.
    pub is_alive: bool,
}

impl Streams {
    /// Returns this consumer's name in the group.
    pub fn consumer(&self) -> &str {
        &self.consumer
    }

    /// Returns the group's name.
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

    async fn heartbeat(&self, heartbeat: &Heartbeat) -> Result<Option<Vec<Member>>, Error> {
        let args = [
            self.consumer.clone(),
            heartbeat.token.clone(),
            heartbeat.state.name().to_owned(),
            heartbeat.static_assignment.clone(),
            heartbeat.liveness_timeout.as_millis().to_string(),
            (heartbeat.liveness_timeout * FORGOTTEN_AFTER).as_millis().to_string(),
        ];
        let members = [self.keys.members(&self.group)];
        reply::members(self.redis.eval(HEARTBEAT, &members, Retry::Idempotent, args).await?)
    }

    async fn resign(&self, token: &str) -> Result<(), Error> {
        let members = [self.keys.members(&self.group)];
        let args = [self.consumer.as_str(), token];
        self.redis.eval::<u64>(RESIGN, &members, Retry::Idempotent, args).await.map(drop)
    }
}
