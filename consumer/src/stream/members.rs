//! Heartbeats: who reads with a group, by Redis's clock alone.

use std::time::Duration;

use fred::prelude::Error;
use shared::redis::Retry;

use super::{Streams, reply};

/// Says that a member is there, and tells who else has a record, and whether that is fresh or the member counts as
/// dead; a record that is much older goes. A name that another process uses is not taken over.
///
/// Redis that is out of memory must take it, or owners would change just then; a member's record is small.
///
/// KEYS: members, name → "token condition partitions milliseconds". ARGV: name, a token that no other process
/// has, its condition, the partitions that it is fixed to or nothing, and in milliseconds after what time a member is
/// dead, and after what time forgotten.
const BEAT: &str = r"#!lua flags=allow-oom
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function read(record)
    local token, condition, fixed, beat = string.match(record, '^(%S+) (%a+) (%S*) (%d+)$')
    return token, condition, fixed, now - tonumber(beat or 0)
end
local function record(token, condition, fixed)
    return string.format('%s %s %s %.0f', token, condition, fixed, now)
end
-- A record from the future, of a server whose clock was ahead, would live for too long: it counts from now on.
local mine = redis.call('HGET', KEYS[1], ARGV[1])
if mine then
    local token, condition, fixed, age = read(mine)
    if token ~= ARGV[2] and age < tonumber(ARGV[5]) then
        if age < 0 then redis.call('HSET', KEYS[1], ARGV[1], record(token, condition, fixed)) end
        return {0, {}}
    end
end
redis.call('HSET', KEYS[1], ARGV[1], record(ARGV[2], ARGV[3], ARGV[4]))
local members = {}
local records = redis.call('HGETALL', KEYS[1])
for i = 1, #records, 2 do
    local token, condition, fixed, age = read(records[i + 1])
    if token and age < 0 then
        redis.call('HSET', KEYS[1], records[i], record(token, condition, fixed))
    end
    if not token or age >= tonumber(ARGV[6]) then
        redis.call('HDEL', KEYS[1], records[i])
    else
        members[#members + 1] = {records[i], condition, fixed, age < tonumber(ARGV[5]) and 1 or 0}
    end
end
return {1, members}
";

/// Takes a member out, unless the record is another process's.
///
/// KEYS: members. ARGV: name, token.
const RESIGN: &str = r"
local mine = redis.call('HGET', KEYS[1], ARGV[1])
if mine and string.match(mine, '^(%S+)') == ARGV[2] then return redis.call('HDEL', KEYS[1], ARGV[1]) end
return 0
";

/// How many times the age at which a member counts as dead it is forgotten.
const FORGOTTEN_AFTER: u32 = 20;

/// What a member can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    /// All that there is to do.
    Able,
    /// It can't store what it has, and so should get nothing more while others can.
    Stuck,
    /// It takes no more entries and finishes what it has.
    Leaving,
}

impl Condition {
    fn name(self) -> &'static str {
        match self {
            Self::Able => "able",
            Self::Stuck => "stuck",
            Self::Leaving => "leaving",
        }
    }

    /// One that this version doesn't know is taken for able: what two read is stored once.
    pub(super) fn named(name: &str) -> Self {
        [Self::Stuck, Self::Leaving].into_iter().find(|it| it.name() == name).unwrap_or(Self::Able)
    }
}

/// What a member says of itself.
#[derive(Clone, Debug)]
pub(crate) struct Beat {
    /// Tells two processes of one name apart.
    pub(crate) token: String,
    pub(crate) condition: Condition,
    /// The partitions that it is fixed to, as people write them, or nothing.
    pub(crate) fixed: String,
    /// Unheard of for this long, a member counts as dead.
    pub(crate) dead_after: Duration,
}

/// A consumer that has not resigned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) condition: Condition,
    /// As it says it.
    pub(crate) fixed: String,
    /// Whether it was heard of lately.
    pub(crate) is_alive: bool,
}

impl Streams {
    /// This consumer's name in the group.
    pub(crate) fn consumer(&self) -> &str {
        &self.consumer
    }

    /// The group's name.
    pub(crate) fn group(&self) -> &str {
        &self.group
    }

    /// Says that this consumer is there. Returns all that have not resigned, itself among them, or nothing when another
    /// process has its name.
    pub(crate) async fn beat(&self, beat: &Beat) -> Result<Option<Vec<Member>>, Error> {
        let args = [
            self.consumer.clone(),
            beat.token.clone(),
            beat.condition.name().to_owned(),
            beat.fixed.clone(),
            beat.dead_after.as_millis().to_string(),
            (beat.dead_after * FORGOTTEN_AFTER).as_millis().to_string(),
        ];
        let members = [self.keys.members(&self.group)];
        reply::members(self.redis.eval(BEAT, &members, Retry::Idempotent, args).await?)
    }

    /// Says that this consumer is gone for good.
    pub(crate) async fn resign(&self, token: &str) -> Result<(), Error> {
        let members = [self.keys.members(&self.group)];
        let args = [self.consumer.as_str(), token];
        self.redis.eval::<u64>(RESIGN, &members, Retry::Idempotent, args).await.map(drop)
    }
}
