//! Heartbeats: who reads with a group, by Redis's clock alone.

use std::time::Duration;

use fred::prelude::Error;
use shared::redis::Retry;

use crate::stream::{Streams, reply};

/// Says that a member is there, and tells who else has a record, and whether that is fresh or the member counts as
/// dead; a record that is much older goes. A name that another process uses is not taken over.
///
/// Redis that is out of memory must take it, or owners would change just then; a member's record is small.
///
/// KEYS: members, name → "token condition partitions milliseconds". ARGV: name, a token that no other process
/// has, its condition, the partitions that it is fixed to or nothing, and in milliseconds after what time a member is
/// dead, and after what time forgotten.
const HEARTBEAT: &str = include_str!("scripts/heartbeat.lua");

/// Takes a member out, unless the record is another process's.
///
/// KEYS: members. ARGV: name, token.
const RESIGN: &str = include_str!("scripts/resign.lua");

/// How many times the age at which a member counts as dead it is forgotten.
const FORGOTTEN_AFTER: u32 = 20;

/// What a member can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberState {
    /// All that there is to do.
    Active,
    /// It can't store what it has, and so should get nothing more while others can.
    Stuck,
    /// It takes no more entries and finishes what it has.
    Leaving,
}

impl MemberState {
    fn name(self) -> &'static str {
        match self {
            Self::Active => "able",
            Self::Stuck => "stuck",
            Self::Leaving => "leaving",
        }
    }

    /// One that this version doesn't know is taken for able: what two read is stored once.
    pub(crate) fn named(name: &str) -> Self {
        [Self::Stuck, Self::Leaving].into_iter().find(|it| it.name() == name).unwrap_or(Self::Active)
    }
}

/// What a member says of itself.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    /// Tells two processes of one name apart.
    pub token: String,
    pub condition: MemberState,
    /// The partitions that it is fixed to, as people write them, or nothing.
    pub fixed: String,
    /// Unheard of for this long, a member counts as dead.
    pub liveness_timeout: Duration,
}

/// A consumer that has not resigned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub name: String,
    pub condition: MemberState,
    /// As it says it.
    pub fixed: String,
    /// Whether it was heard of lately.
    pub is_alive: bool,
}

impl Streams {
    /// This consumer's name in the group.
    pub fn consumer(&self) -> &str {
        &self.consumer
    }

    /// The group's name.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// Says that this consumer is there. Returns all that have not resigned, itself among them, or nothing when another
    /// process has its name.
    pub async fn beat(&self, beat: &Heartbeat) -> Result<Option<Vec<Member>>, Error> {
        let args = [
            self.consumer.clone(),
            beat.token.clone(),
            beat.condition.name().to_owned(),
            beat.fixed.clone(),
            beat.liveness_timeout.as_millis().to_string(),
            (beat.liveness_timeout * FORGOTTEN_AFTER).as_millis().to_string(),
        ];
        let members = [self.keys.members(&self.group)];
        reply::members(self.redis.eval(HEARTBEAT, &members, Retry::Idempotent, args).await?)
    }

    /// Says that this consumer is gone for good.
    pub async fn resign(&self, token: &str) -> Result<(), Error> {
        let members = [self.keys.members(&self.group)];
        let args = [self.consumer.as_str(), token];
        self.redis.eval::<u64>(RESIGN, &members, Retry::Idempotent, args).await.map(drop)
    }
}
