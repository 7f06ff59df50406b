//! Looks at the streams that change nothing: for `likesctl`.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use fred::prelude::{Error, Value};
use shared::{
    redis::{self, Retry},
    wire::partition::Partition,
};

use super::{Member, Streams, reply};
use crate::{
    entry::{EntryId, RawEntry},
    membership::DEAD_AFTER,
};

/// What there is to know of a partition, from one moment.
///
/// KEYS: stream, dead letters. ARGV: group, most undelivered entries to count. Returns names and values, as XINFO does; what is not known is left out.
const LOOK: &str = r"
local now = redis.call('TIME')
local seen = {
    'now_ms', string.format('%.0f', now[1] * 1000 + math.floor(now[2] / 1000)),
    'dead', redis.call('XLEN', KEYS[2]),
}
local function see(name, value)
    if value then
        seen[#seen + 1] = name
        seen[#seen + 1] = value
    end
end
if redis.call('EXISTS', KEYS[1]) == 0 then return seen end
local stream = redis.call('XINFO', 'STREAM', KEYS[1])
for i = 1, #stream, 2 do
    local name = stream[i]
    if name == 'length' or name == 'last-generated-id' or name == 'entries-added' then see(stream[i], stream[i + 1]) end
end
for _, fields in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    local group = {}
    for i = 1, #fields, 2 do group[fields[i]] = fields[i + 1] end
    if group['name'] == ARGV[1] then
        see('pending', group['pending'])
        see('lag', group['lag'])
        see('last-delivered-id', group['last-delivered-id'])
        local oldest = redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1)[1]
        if oldest then
            see('oldest-pending-id', oldest[1])
            see('oldest-pending-idle-ms', oldest[3])
        end
        local waiting = redis.call('XRANGE', KEYS[1], '(' .. group['last-delivered-id'], '+', 'COUNT', ARGV[2])
        if waiting[1] then see('oldest-undelivered-id', waiting[1][1]) end
        see('waiting', #waiting)
    end
end
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
if first then see('first-id', first[1]) end
return seen
";

/// So many undelivered entries are counted, rather than believed: with steady traffic there are hardly more.
const COUNTED_WAITING: u64 = 20;

/// The records of members, with how long ago each has beaten.
///
/// KEYS: members. Returns `[[name, condition, fixed, milliseconds ago] …]`.
const MEMBERS: &str = r"
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local members = {}
local records = redis.call('HGETALL', KEYS[1])
for i = 1, #records, 2 do
    local condition, fixed, beat = string.match(records[i + 1], '^%S+ (%a+) (%S*) (%d+)$')
    if condition then
        members[#members + 1] = {records[i], condition, fixed, math.max(0, now - tonumber(beat))}
    end
end
return members
";

/// A part of the pending list: how it stands with those entries, and which of them are no longer in the stream.
///
/// KEYS: stream. ARGV: group, first id, most entries. Returns the last id or nothing, how many there were, the most
/// deliveries and whose they are, the longest idle time and whose it is, and the ids of the deleted.
const SURVEY_PENDING: &str = r"
if redis.call('EXISTS', KEYS[1]) == 0 then return {'', 0, 0, '', 0, '', {}} end
local last, most, worst, idle, laziest, deleted = '', 0, '', 0, '', {}
local rows = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[2], '+', ARGV[3])
for _, row in ipairs(rows) do
    last = row[1]
    if row[4] > most then most, worst = row[4], row[1] end
    if row[3] > idle then idle, laziest = row[3], row[1] end
    if #redis.call('XRANGE', KEYS[1], row[1], row[1]) == 0 then deleted[#deleted + 1] = row[1] end
end
return {last, #rows, most, worst, idle, laziest, deleted}
";

/// Entries with what has become of them, from one moment: read before the pending list, entries that were delivered
/// since can't be taken for acknowledged.
///
/// KEYS: stream. ARGV: group, first id, last id, most entries. Returns the group's last delivered id, the entries, and
/// the ids of those that are pending.
const RANGE_WITH_FATE: &str = r"
if redis.call('EXISTS', KEYS[1]) == 0 then return {'0-0', {}, {}} end
local delivered = '0-0'
for _, fields in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    local group = {}
    for i = 1, #fields, 2 do group[fields[i]] = fields[i + 1] end
    if group['name'] == ARGV[1] then delivered = group['last-delivered-id'] end
end
local entries = redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[3], 'COUNT', ARGV[4])
local pending = {}
if delivered ~= '0-0' then
    for _, entry in ipairs(entries) do
        if #redis.call('XPENDING', KEYS[1], ARGV[1], entry[1], entry[1], 1) > 0 then pending[#pending + 1] = entry[1] end
    end
end
return {delivered, entries, pending}
";

/// What there is to know of a partition.
#[derive(Clone, Debug, Default)]
pub(crate) struct Look {
    /// By Redis's clock.
    pub(crate) now_ms: u64,
    pub(crate) length: u64,
    pub(crate) last_generated: EntryId,
    /// Entries that there ever were.
    pub(crate) entries_added: u64,
    /// The first entry that is in it.
    pub(crate) first: Option<EntryId>,
    pub(crate) dead: u64,
    /// Nothing when the group isn't there.
    pub(crate) group: Option<GroupLook>,
}

impl Look {
    /// Entries that are not stored yet. Where it is not known how many are undelivered, it may be all that are there.
    pub(crate) fn backlog(&self) -> u64 {
        let Some(group) = &self.group else { return self.length };
        group.lag.unwrap_or(self.length.saturating_sub(group.pending)) + group.pending
    }

    /// The oldest of these.
    pub(crate) fn oldest(&self) -> Option<EntryId> {
        let Some(group) = &self.group else { return self.first };
        group.oldest_pending.into_iter().chain(group.oldest_undelivered).min()
    }

    /// How long ago an entry was appended.
    pub(crate) fn age_ms(&self, id: EntryId) -> u64 {
        self.now_ms.saturating_sub(id.ms)
    }
}

/// How the group stands in a partition.
#[derive(Clone, Debug, Default)]
pub(crate) struct GroupLook {
    pub(crate) last_delivered: EntryId,
    pub(crate) pending: u64,
    /// Undelivered entries; unknown after some events.
    pub(crate) lag: Option<u64>,
    pub(crate) oldest_pending: Option<EntryId>,
    pub(crate) oldest_pending_idle_ms: Option<u64>,
    pub(crate) oldest_undelivered: Option<EntryId>,
}

/// A consumer as the group knows it in one partition.
#[derive(Clone, Debug)]
pub(crate) struct ConsumerLook {
    pub(crate) name: String,
    pub(crate) pending: u64,
    /// Since it was last heard of.
    pub(crate) idle_ms: u64,
}

/// A member with how long ago it has beaten.
#[derive(Clone, Debug)]
pub(crate) struct SeenMember {
    pub(crate) member: Member,
    pub(crate) beat_ms_ago: u64,
}

/// An entry of the pending list.
#[derive(Clone, Debug)]
pub(crate) struct PendingEntry {
    pub(crate) id: EntryId,
    pub(crate) consumer: String,
    pub(crate) idle_ms: u64,
    pub(crate) deliveries: u64,
}

/// A part of the pending list, summed up.
#[derive(Debug)]
pub(crate) struct PendingSurvey {
    /// Nothing after the end.
    pub(crate) last: Option<EntryId>,
    pub(crate) entries: u64,
    pub(crate) most_deliveries: u64,
    pub(crate) most_delivered: Option<EntryId>,
    pub(crate) longest_idle_ms: u64,
    pub(crate) longest_idle: Option<EntryId>,
    /// Pending, and no longer in the stream.
    pub(crate) deleted: Vec<EntryId>,
}

/// What has become of an entry of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Undelivered,
    Pending,
    Acknowledged,
}

/// Which partitions nobody reads because somebody wants it so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Paused {
    pub(crate) all: bool,
    pub(crate) some: Vec<u16>,
}

impl Paused {
    pub(crate) fn contains(&self, partition: Partition) -> bool {
        self.all || self.some.contains(&partition.number())
    }
}

impl Streams {
    /// How a partition stands.
    pub(crate) async fn look(&self, partition: Partition) -> Result<Look, Error> {
        let keys = [self.key(partition), self.keys.dead_letters(partition)];
        let args = [self.group.clone(), COUNTED_WAITING.to_string()];
        let seen = self.redis.eval(LOOK, &keys, Retry::Idempotent, args).await;
        let seen = seen.map_err(|error| of_keys(&keys, error))?;
        let seen = reply::named(seen)?;
        let number = |name: &str| seen.get(name).and_then(Value::as_u64);
        let id = |name: &str| seen.get(name).and_then(|id| id.as_str()?.parse::<EntryId>().ok());
        let length = number("length").unwrap_or(0);
        let last_generated = id("last-generated-id").unwrap_or_default();
        let group = id("last-delivered-id").map(|last_delivered| GroupLook {
            last_delivered,
            pending: number("pending").unwrap_or(0),
            // As in `shared::backlog`: Redis's own lag may be unknown, and may be too large. What can be counted needs none.
            lag: match number("waiting") {
                _ if last_delivered >= last_generated => Some(0),
                Some(waiting) if waiting < COUNTED_WAITING => Some(waiting),
                _ => number("lag").map(|lag| lag.min(length)),
            },
            oldest_pending: id("oldest-pending-id"),
            oldest_pending_idle_ms: number("oldest-pending-idle-ms"),
            oldest_undelivered: id("oldest-undelivered-id"),
        });
        let dead = number("dead").unwrap_or(0);
        let now_ms =
            number("now_ms").ok_or_else(|| reply::unexpected("no time where there should be one"))?;
        let entries_added = number("entries-added").unwrap_or(0);
        Ok(Look { now_ms, length, last_generated, entries_added, first: id("first-id"), dead, group })
    }

    /// The consumers that the group knows in a partition. None without a group.
    pub(crate) async fn consumers(&self, partition: Partition) -> Result<Vec<ConsumerLook>, Error> {
        let stream = self.key(partition);
        let args = ["CONSUMERS", &stream, &self.group].map(Value::from).into();
        match self.redis.run(&stream, Retry::Idempotent, "XINFO", args).await {
            Ok(consumers) => reply::consumers(consumers),
            Err(error) if is_missing(&error) => Ok(Vec::new()),
            Err(error) => Err(of_keys(&[stream], error)),
        }
    }

    /// All that have a record as members, dead or alive.
    pub(crate) async fn members(&self) -> Result<Vec<SeenMember>, Error> {
        let members = [self.keys.members(&self.group)];
        let seen = self.redis.eval(MEMBERS, &members, Retry::Idempotent, [""; 0]).await;
        let seen = seen.map_err(|error| of_keys(&members, error))?;
        let mut seen = reply::seen_members(seen)?;
        for SeenMember { member, beat_ms_ago } in &mut seen {
            member.is_alive = u128::from(*beat_ms_ago) < DEAD_AFTER.as_millis();
        }
        seen.sort_by(|one, other| one.member.name.cmp(&other.member.name));
        Ok(seen)
    }

    /// When a batch with entries of each partition was last committed, in Unix milliseconds by Redis's clock.
    pub(crate) async fn last_commits(&self) -> Result<HashMap<u16, u64>, Error> {
        let key = self.keys.commits(&self.group);
        let commits: BTreeMap<String, u64> = self
            .redis
            .run(&key, Retry::Idempotent, "HGETALL", vec![key.as_str().into()])
            .await
            .map_err(|error| of_keys(std::slice::from_ref(&key), error))?;
        Ok(commits.into_iter().filter_map(|(name, at)| Some((name.parse().ok()?, at))).collect())
    }

    /// What is paused.
    pub(crate) async fn paused(&self) -> Result<Paused, Error> {
        let key = self.keys.paused(&self.group);
        let members: Vec<String> = self
            .redis
            .run(&key, Retry::Idempotent, "SMEMBERS", vec![key.as_str().into()])
            .await
            .map_err(|error| of_keys(std::slice::from_ref(&key), error))?;
        let mut some: Vec<u16> = members.iter().filter_map(|member| member.parse().ok()).collect();
        some.sort_unstable();
        Ok(Paused { all: members.iter().any(|member| member == super::mend::ALL), some })
    }

    /// Up to `count` entries of the pending list from `from` on, of one consumer or of all, idle for so long at least.
    pub(crate) async fn pending(
        &self,
        partition: Partition,
        (from, to): (EntryId, EntryId),
        consumer: Option<&str>,
        min_idle_ms: u64,
        count: usize,
    ) -> Result<Vec<PendingEntry>, Error> {
        let stream = self.key(partition);
        let mut args: Vec<Value> = vec![stream.as_str().into(), self.group.as_str().into()];
        args.extend(["IDLE".into(), min_idle_ms.to_string().into()]);
        args.extend([from.to_string().into(), to.to_string().into(), count.to_string().into()]);
        args.extend(consumer.map(Value::from));
        match self.redis.run(&stream, Retry::Idempotent, "XPENDING", args).await {
            Ok(pending) => reply::pending(pending),
            Err(error) if is_missing(&error) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Sums up to `count` entries of the pending list up, from `from` on.
    pub(crate) async fn survey_pending(
        &self,
        partition: Partition,
        from: EntryId,
        count: usize,
    ) -> Result<PendingSurvey, Error> {
        let args = vec![self.group.clone(), from.to_string(), count.to_string()];
        match self.eval(partition, SURVEY_PENDING, Retry::Idempotent, args).await {
            Ok(survey) => reply::pending_survey(survey),
            Err(error) if error.details().contains("NOGROUP") => Ok(PendingSurvey {
                last: None,
                entries: 0,
                most_deliveries: 0,
                most_delivered: None,
                longest_idle_ms: 0,
                longest_idle: None,
                deleted: Vec::new(),
            }),
            Err(error) => Err(error),
        }
    }

    /// One entry, if it is in the stream.
    pub(crate) async fn entry(&self, partition: Partition, id: EntryId) -> Result<Option<RawEntry>, Error> {
        Ok(self.entries(partition, (id, id), 1).await?.into_iter().next())
    }

    /// Up to `count` entries from the first id to the last one.
    pub(crate) async fn entries(
        &self,
        partition: Partition,
        ids: (EntryId, EntryId),
        count: usize,
    ) -> Result<Vec<RawEntry>, Error> {
        self.range(partition, &self.key(partition), ids, count).await
    }

    /// Up to `count` entries from the first id to the last one, with what has become of them.
    pub(crate) async fn range_with_fate(
        &self,
        partition: Partition,
        (from, to): (EntryId, EntryId),
        count: usize,
    ) -> Result<Vec<(RawEntry, Fate)>, Error> {
        let args = vec![self.group.clone(), from.to_string(), to.to_string(), count.to_string()];
        let looked = self.eval(partition, RANGE_WITH_FATE, Retry::Idempotent, args).await?;
        reply::range_with_fate(partition, looked)
    }

    /// Up to `count` dead letters from the first id to the last one.
    pub(crate) async fn dead_letters(
        &self,
        partition: Partition,
        ids: (EntryId, EntryId),
        count: usize,
    ) -> Result<Vec<RawEntry>, Error> {
        self.range(partition, &self.keys.dead_letters(partition), ids, count).await
    }

    async fn range(
        &self,
        partition: Partition,
        key: &str,
        (from, to): (EntryId, EntryId),
        count: usize,
    ) -> Result<Vec<RawEntry>, Error> {
        let args = [key, &from.to_string(), &to.to_string(), "COUNT", &count.to_string()];
        let args = args.map(Value::from).into();
        reply::entries(partition, self.redis.run(key, Retry::Idempotent, "XRANGE", args).await?)
    }

    /// The last `count` entries of a partition, newest first.
    pub(crate) async fn newest(&self, partition: Partition, count: usize) -> Result<Vec<RawEntry>, Error> {
        let stream = self.key(partition);
        let args = [&stream, "+", "-", "COUNT", &count.to_string()].map(Value::from).into();
        reply::entries(partition, self.redis.run(&stream, Retry::Idempotent, "XREVRANGE", args).await?)
    }

    /// What each server says of itself, with its address: `INFO` with all its parts.
    pub(crate) async fn servers_info(&self) -> Result<Vec<(String, String)>, Error> {
        let mut infos = Vec::new();
        for server in self.redis.servers() {
            infos.push((server.address(), server.send("INFO", Vec::new()).await?));
        }
        Ok(infos)
    }

    /// Up to `count` audit records, newest first: id and fields.
    pub(crate) async fn audit_records(
        &self,
        before: Option<&str>,
        count: usize,
    ) -> Result<Vec<(String, BTreeMap<String, String>)>, Error> {
        let key = self.keys.audit();
        let end = before.map_or_else(|| "+".to_owned(), |id| format!("({id}"));
        let args = [&key, &end, "-", "COUNT", &count.to_string()].map(Value::from).into();
        self.redis.run(&key, Retry::Idempotent, "XREVRANGE", args).await
    }
}

/// A key that somebody else uses is named, with what to do.
fn of_keys(keys: &[String], error: Error) -> Error {
    if redis::error_code(&error) != Some("WRONGTYPE") {
        return error;
    }
    let what =
        format!("{} in Redis is somebody else's, of another type: rename or remove it", keys.join(" or "));
    Error::new(error.kind().clone(), what)
}

/// Whether there is no such stream or group.
fn is_missing(error: &Error) -> bool {
    matches!(redis::error_code(error), Some("NOGROUP" | "ERR"))
}

/// A field of an entry as text, as far as it is some.
pub(crate) fn text_field(fields: &[(Bytes, Bytes)], name: &str) -> Option<String> {
    let (_, value) = fields.iter().find(|(field, _)| field == name.as_bytes())?;
    Some(String::from_utf8_lossy(value).into_owned())
}
