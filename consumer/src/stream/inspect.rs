//! Looks at the streams that change nothing: for `likesctl`.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use fred::prelude::{Error, Value};
use shared::{
    redis::{self, Retry},
    wire::partition::Partition,
};

use crate::{
    entry::{EntryId, RawEntry},
    group::membership::LIVENESS_TIMEOUT,
    stream::{Member, Streams, reply},
};

/// What there is to know of a partition, from one moment.
///
/// KEYS: stream, dead letters. ARGV: group, most undelivered entries to count. Returns names and values, as XINFO does; what is not known is left out.
const INSPECT: &str = include_str!("scripts/inspect.lua");

/// So many undelivered entries are counted, rather than believed: with steady traffic there are hardly more.
const COUNTED_WAITING: u64 = 20;

/// The records of members, with how long ago each has beaten.
///
/// KEYS: members. Returns `[[name, condition, fixed, milliseconds ago] …]`.
const MEMBERS: &str = include_str!("scripts/members.lua");

/// A part of the pending list: how it stands with those entries, and which of them are no longer in the stream.
///
/// KEYS: stream. ARGV: group, first id, most entries. Returns the last id or nothing, how many there were, the most
/// deliveries and whose they are, the longest idle time and whose it is, and the ids of the deleted.
const SUMMARIZE_PENDING: &str = include_str!("scripts/summarize_pending.lua");

/// Entries with what has become of them, from one moment: read before the pending list, entries that were delivered
/// since can't be taken for acknowledged.
///
/// KEYS: stream. ARGV: group, first id, last id, most entries. Returns the group's last delivered id, the entries, and
/// the ids of those that are pending.
const RANGE_WITH_FATE: &str = include_str!("scripts/range_with_fate.lua");

/// What there is to know of a partition.
#[derive(Clone, Debug, Default)]
pub struct PartitionInfo {
    /// By Redis's clock.
    pub now_ms: u64,
    pub length: u64,
    pub last_generated: EntryId,
    /// Entries that there ever were.
    pub entries_added: u64,
    /// The first entry that is in it.
    pub first: Option<EntryId>,
    pub dead: u64,
    /// Nothing when the group isn't there.
    pub group: Option<GroupInfo>,
}

impl PartitionInfo {
    /// Entries that are not stored yet. Where it is not known how many are undelivered, it may be all that are there.
    pub fn backlog(&self) -> u64 {
        let Some(group) = &self.group else { return self.length };
        group.lag.unwrap_or(self.length.saturating_sub(group.pending)) + group.pending
    }

    /// The oldest of these.
    pub fn oldest(&self) -> Option<EntryId> {
        let Some(group) = &self.group else { return self.first };
        group.oldest_pending.into_iter().chain(group.oldest_undelivered).min()
    }

    /// How long ago an entry was appended.
    pub fn age_ms(&self, id: EntryId) -> u64 {
        self.now_ms.saturating_sub(id.ms)
    }
}

/// How the group stands in a partition.
#[derive(Clone, Debug, Default)]
pub struct GroupInfo {
    pub last_delivered: EntryId,
    pub pending: u64,
    /// Undelivered entries; unknown after some events.
    pub lag: Option<u64>,
    pub oldest_pending: Option<EntryId>,
    pub oldest_pending_idle_ms: Option<u64>,
    pub oldest_undelivered: Option<EntryId>,
}

/// A consumer as the group knows it in one partition.
#[derive(Clone, Debug)]
pub struct ConsumerInfo {
    pub name: String,
    pub pending: u64,
    /// Since it was last heard of.
    pub idle_ms: u64,
}

/// A member with how long ago it has beaten.
#[derive(Clone, Debug)]
pub struct MemberInfo {
    pub member: Member,
    pub beat_ms_ago: u64,
}

/// An entry of the pending list.
#[derive(Clone, Debug)]
pub struct PendingEntry {
    pub id: EntryId,
    pub consumer: String,
    pub idle_ms: u64,
    pub deliveries: u64,
}

/// A part of the pending list, summed up.
#[derive(Debug)]
pub struct PendingSummary {
    /// Nothing after the end.
    pub last: Option<EntryId>,
    pub entries: u64,
    pub most_deliveries: u64,
    pub most_delivered: Option<EntryId>,
    pub longest_idle_ms: u64,
    pub longest_idle: Option<EntryId>,
    /// Pending, and no longer in the stream.
    pub deleted: Vec<EntryId>,
}

/// What has become of an entry of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Undelivered,
    Pending,
    Acknowledged,
}

/// Which partitions nobody reads because somebody wants it so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paused {
    pub all: bool,
    pub some: Vec<u16>,
}

impl Paused {
    pub fn contains(&self, partition: Partition) -> bool {
        self.all || self.some.contains(&partition.number())
    }
}

impl Streams {
    /// How a partition stands.
    pub async fn look(&self, partition: Partition) -> Result<PartitionInfo, Error> {
        let keys = [self.key(partition), self.keys.dead_letters(partition)];
        let args = [self.group.clone(), COUNTED_WAITING.to_string()];
        let seen = self.redis.eval(INSPECT, &keys, Retry::Idempotent, args).await;
        let seen = seen.map_err(|error| of_keys(&keys, error))?;
        let seen = reply::named(seen)?;
        let number = |name: &str| seen.get(name).and_then(Value::as_u64);
        let id = |name: &str| seen.get(name).and_then(|id| id.as_str()?.parse::<EntryId>().ok());
        let length = number("length").unwrap_or(0);
        let last_generated = id("last-generated-id").unwrap_or_default();
        let group = id("last-delivered-id").map(|last_delivered| GroupInfo {
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
        Ok(PartitionInfo {
            now_ms,
            length,
            last_generated,
            entries_added,
            first: id("first-id"),
            dead,
            group,
        })
    }

    /// The consumers that the group knows in a partition. None without a group.
    pub async fn consumers(&self, partition: Partition) -> Result<Vec<ConsumerInfo>, Error> {
        let stream = self.key(partition);
        let args = ["CONSUMERS", &stream, &self.group].map(Value::from).into();
        match self.redis.run(&stream, Retry::Idempotent, "XINFO", args).await {
            Ok(consumers) => reply::consumers(consumers),
            Err(error) if is_missing(&error) => Ok(Vec::new()),
            Err(error) => Err(of_keys(&[stream], error)),
        }
    }

    /// All that have a record as members, dead or alive.
    pub async fn members(&self) -> Result<Vec<MemberInfo>, Error> {
        let members = [self.keys.members(&self.group)];
        let seen = self.redis.eval(MEMBERS, &members, Retry::Idempotent, [""; 0]).await;
        let seen = seen.map_err(|error| of_keys(&members, error))?;
        let mut seen = reply::seen_members(seen)?;
        for MemberInfo { member, beat_ms_ago } in &mut seen {
            member.is_alive = u128::from(*beat_ms_ago) < LIVENESS_TIMEOUT.as_millis();
        }
        seen.sort_by(|one, other| one.member.name.cmp(&other.member.name));
        Ok(seen)
    }

    /// When a batch with entries of each partition was last committed, in Unix milliseconds by Redis's clock.
    pub async fn commit_times(&self) -> Result<HashMap<u16, u64>, Error> {
        let key = self.keys.commits(&self.group);
        let commits: BTreeMap<String, u64> = self
            .redis
            .run(&key, Retry::Idempotent, "HGETALL", vec![key.as_str().into()])
            .await
            .map_err(|error| of_keys(std::slice::from_ref(&key), error))?;
        Ok(commits.into_iter().filter_map(|(name, at)| Some((name.parse().ok()?, at))).collect())
    }

    /// What is paused.
    pub async fn paused(&self) -> Result<Paused, Error> {
        let key = self.keys.paused(&self.group);
        let members: Vec<String> = self
            .redis
            .run(&key, Retry::Idempotent, "SMEMBERS", vec![key.as_str().into()])
            .await
            .map_err(|error| of_keys(std::slice::from_ref(&key), error))?;
        let mut some: Vec<u16> = members.iter().filter_map(|member| member.parse().ok()).collect();
        some.sort_unstable();
        Ok(Paused { all: members.iter().any(|member| member == super::admin_ops::ALL), some })
    }

    /// Up to `count` entries of the pending list from `from` on, of one consumer or of all, idle for so long at least.
    pub async fn pending(
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
    pub async fn summarize_pending(
        &self,
        partition: Partition,
        from: EntryId,
        count: usize,
    ) -> Result<PendingSummary, Error> {
        let args = vec![self.group.clone(), from.to_string(), count.to_string()];
        match self.eval(partition, SUMMARIZE_PENDING, Retry::Idempotent, args).await {
            Ok(survey) => reply::pending_survey(survey),
            Err(error) if error.details().contains("NOGROUP") => Ok(PendingSummary {
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
    pub async fn entry(&self, partition: Partition, id: EntryId) -> Result<Option<RawEntry>, Error> {
        Ok(self.entries(partition, (id, id), 1).await?.into_iter().next())
    }

    /// Up to `count` entries from the first id to the last one.
    pub async fn entries(
        &self,
        partition: Partition,
        ids: (EntryId, EntryId),
        count: usize,
    ) -> Result<Vec<RawEntry>, Error> {
        self.range(partition, &self.key(partition), ids, count).await
    }

    /// Up to `count` entries from the first id to the last one, with what has become of them.
    pub async fn range_with_fate(
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
    pub async fn dead_letters(
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
    pub async fn newest(&self, partition: Partition, count: usize) -> Result<Vec<RawEntry>, Error> {
        let stream = self.key(partition);
        let args = [&stream, "+", "-", "COUNT", &count.to_string()].map(Value::from).into();
        reply::entries(partition, self.redis.run(&stream, Retry::Idempotent, "XREVRANGE", args).await?)
    }

    /// What each server says of itself, with its address: `INFO` with all its parts.
    pub async fn servers_info(&self) -> Result<Vec<(String, String)>, Error> {
        let mut infos = Vec::new();
        for server in self.redis.servers() {
            infos.push((server.address(), server.send("INFO", Vec::new()).await?));
        }
        Ok(infos)
    }

    /// Up to `count` audit records, newest first: id and fields.
    pub async fn audit_records(
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
pub fn text_field(fields: &[(Bytes, Bytes)], name: &str) -> Option<String> {
    let (_, value) = fields.iter().find(|(field, _)| field == name.as_bytes())?;
    Some(String::from_utf8_lossy(value).into_owned())
}
