//! Read-only views of the streams, for `likesctl`.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use fred::prelude::{Error, Value};
use futures_util::future::join;
use shared::{
    redis::{self, Retry},
    wire::partition::Partition,
};
use tokio::time::sleep;

use crate::{
    entry::{EntryId, RawEntry},
    stream::{HEARTBEAT_INTERVAL, Member, MemberName, Streams, reply},
};

/// Inspects a stream atomically.
///
/// KEYS: stream. ARGV: group, maximum number of undelivered entries to count, id of an entry or an empty string. Returns
/// alternating names and values, as XINFO does; unknown values are omitted. `seen` is 1 if the entry exists, and 0 otherwise.
const INSPECT: &str = include_str!("scripts/inspect.lua");

/// Maximum number of undelivered entries to count instead of using Redis's lag. With steady traffic there are rarely more.
const MAX_COUNTED_UNDELIVERED: u64 = 20;

/// Returns the records of all members.
///
/// KEYS: members. Returns `[[name, token, state, assignment, time of the heartbeat, current time] …]`, both in milliseconds.
const MEMBERS: &str = include_str!("scripts/members.lua");

/// Summarizes a page of the pending entries list and finds entries that were deleted from the stream.
///
/// KEYS: stream. ARGV: group, first id, maximum number of entries. Returns the last id or an empty string, the number of
/// entries, the maximum number of deliveries with its entry, the maximum idle time with its entry, and the ids of deleted
/// entries.
const SUMMARIZE_PENDING: &str = include_str!("scripts/summarize_pending.lua");

/// Returns entries with their delivery state. Atomic, so that an entry that is being delivered is not mistaken for an
/// acknowledged one.
///
/// KEYS: stream. ARGV: group, first id, last id, maximum number of entries. Returns the group's last delivered id, the
/// entries, and the ids of the pending ones.
const RANGE_WITH_FATE: &str = include_str!("scripts/range_with_fate.lua");

/// State of a partition.
#[derive(Clone, Debug, Default)]
pub struct PartitionInfo {
    /// Current time by Redis's clock.
    pub now_ms: u64,
    pub length: u64,
    pub last_generated: EntryId,
    /// Number of entries ever appended.
    pub entries_added: u64,
    /// Oldest entry of the stream.
    pub first: Option<EntryId>,
    pub dead: u64,
    /// `None` if the group does not exist.
    pub group: Option<GroupInfo>,
}

impl PartitionInfo {
    /// Returns the backlog: undelivered and pending entries. If the lag is unknown, all entries of the stream count.
    pub fn backlog(&self) -> u64 {
        let Some(group) = &self.group else { return self.length };
        group.lag.unwrap_or(self.length.saturating_sub(group.pending)) + group.pending
    }

    /// Returns the oldest entry of the backlog.
    pub fn oldest(&self) -> Option<EntryId> {
        let Some(group) = &self.group else { return self.first };
        group.oldest_pending.into_iter().chain(group.oldest_undelivered).min()
    }

    /// Returns the age of an entry in milliseconds.
    pub fn age_ms(&self, id: EntryId) -> u64 {
        self.now_ms.saturating_sub(id.ms)
    }
}

/// State of a partition, compared with an earlier one.
pub(super) struct Inspected {
    pub(super) info: PartitionInfo,
    /// Newest entry of the stream.
    pub(super) newest: Option<EntryId>,
    /// Whether the stream has gone back to a state before its earlier newest entry: older entries are left, and the entry itself
    /// was not deleted.
    pub(super) went_back: bool,
}

/// State of the consumer group in a partition.
#[derive(Clone, Debug, Default)]
pub struct GroupInfo {
    pub last_delivered: EntryId,
    pub pending: u64,
    /// Undelivered entries; `None` if Redis does not know the number.
    pub lag: Option<u64>,
    pub oldest_pending: Option<EntryId>,
    pub oldest_pending_idle_ms: Option<u64>,
    pub oldest_undelivered: Option<EntryId>,
}

/// Consumer of the group in one partition.
#[derive(Clone, Debug)]
pub struct ConsumerInfo {
    pub name: String,
    pub pending: u64,
    /// Time since the last command of the consumer.
    pub idle_ms: u64,
}

/// Member with the age of its last heartbeat.
#[derive(Clone, Debug)]
pub struct MemberInfo {
    pub member: Member,
    pub heartbeat_ms_ago: u64,
    /// Whether the time of the heartbeat is in the future: Redis's clock was set back, or another server has taken over.
    pub is_ahead: bool,
}

/// Entry of the pending entries list.
#[derive(Clone, Debug)]
pub struct PendingEntry {
    pub id: EntryId,
    pub consumer: String,
    pub idle_ms: u64,
    pub deliveries: u64,
}

/// Summary of a page of the pending entries list.
#[derive(Debug)]
pub struct PendingSummary {
    /// Last entry of the page; `None` if the page is empty.
    pub last: Option<EntryId>,
    pub entries: u64,
    pub most_deliveries: u64,
    pub most_delivered: Option<EntryId>,
    pub longest_idle_ms: u64,
    pub longest_idle: Option<EntryId>,
    /// Pending entries that were deleted from the stream.
    pub deleted: Vec<EntryId>,
}

/// Delivery state of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Undelivered,
    Pending,
    Acknowledged,
}

/// Partitions paused by operators.
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
    /// Returns the state of a partition.
    pub async fn inspect(&self, partition: Partition) -> Result<PartitionInfo, Error> {
        Ok(self.inspect_since(partition, None).await?.info)
    }

    /// Returns the state of a partition, compared with an earlier one in which `seen` was the newest entry.
    pub(super) async fn inspect_since(
        &self,
        partition: Partition,
        seen: Option<EntryId>,
    ) -> Result<Inspected, Error> {
        let dead_letters = self.keys.dead_letters(partition);
        // Of two keys in one script, a cluster would refuse those that it has moved only in part, or that do not exist.
        let (inspected, dead) = join(
            self.inspect_stream(partition, seen),
            self.redis.run(&dead_letters, Retry::Idempotent, "XLEN", vec![dead_letters.as_str().into()]),
        )
        .await;
        let mut inspected = inspected?;
        inspected.info.dead = dead.map_err(|error| of_keys(std::slice::from_ref(&dead_letters), error))?;
        Ok(inspected)
    }

    /// As [`Streams::inspect_since`], without the number of dead letters.
    pub(super) async fn inspect_stream(
        &self,
        partition: Partition,
        seen: Option<EntryId>,
    ) -> Result<Inspected, Error> {
        let keys = [self.key(partition)];
        let seen_id = seen.map(|id| id.to_string()).unwrap_or_default();
        let args = [self.group.clone(), MAX_COUNTED_UNDELIVERED.to_string(), seen_id];
        let reply = self.redis.eval(INSPECT, &keys, Retry::Idempotent, args).await;
        let values = reply::named(reply.map_err(|error| of_keys(&keys, error))?)?;
        let number = |name: &str| values.get(name).and_then(Value::as_u64);
        let id = |name: &str| values.get(name).and_then(|id| id.as_str()?.parse::<EntryId>().ok());
        let length = number("length").unwrap_or(0);
        let last_generated = id("last-generated-id").unwrap_or_default();
        let group = id("last-delivered-id").map(|last_delivered| GroupInfo {
            last_delivered,
            pending: number("pending").unwrap_or(0),
            // As in `shared::backlog`: Redis's lag may be unknown or too large. Small numbers of entries are counted.
            lag: match number("undelivered") {
                _ if last_delivered >= last_generated => Some(0),
                Some(undelivered) if undelivered < MAX_COUNTED_UNDELIVERED => Some(undelivered),
                _ => number("lag").map(|lag| lag.min(length)),
            },
            oldest_pending: id("oldest-pending-id"),
            oldest_pending_idle_ms: number("oldest-pending-idle-ms"),
            oldest_undelivered: id("oldest-undelivered-id"),
        });
        let now_ms = number("now_ms").ok_or_else(|| reply::unexpected("a time"))?;
        let entries_added = number("entries-added").unwrap_or(0);
        let first = id("first-id");
        let deleted = id("max-deleted-entry-id").unwrap_or_default();
        let is_missing = number("seen") == Some(0);
        let went_back =
            seen.is_some_and(|seen| is_missing && deleted < seen && first.is_some_and(|first| first <= seen));
        let info = PartitionInfo { now_ms, length, last_generated, entries_added, first, dead: 0, group };
        Ok(Inspected { info, newest: id("last-id"), went_back })
    }

    /// Returns the consumers of the group in a partition; none if the group does not exist.
    pub async fn consumers(&self, partition: Partition) -> Result<Vec<ConsumerInfo>, Error> {
        let stream = self.key(partition);
        let args = ["CONSUMERS", &stream, &self.group].map(Value::from).into();
        match self.redis.run(&stream, Retry::Idempotent, "XINFO", args).await {
            Ok(consumers) => reply::consumers(consumers),
            Err(error) if is_missing(&error) => Ok(Vec::new()),
            Err(error) => Err(of_keys(&[stream], error)),
        }
    }

    /// Returns all members with a record, dead or alive. The age of a heartbeat that Redis's clock places in the future says
    /// nothing: then the records are read a second time, after every live member has sent a heartbeat.
    pub async fn members(&self) -> Result<Vec<MemberInfo>, Error> {
        let mut infos = self.member_records().await?;
        let ahead: HashSet<(MemberName, u64)> =
            infos.iter().filter(|info| info.is_ahead).map(|info| heartbeat_of(&info.member)).collect();
        if !ahead.is_empty() {
            sleep(HEARTBEAT_INTERVAL * 2).await;
            infos = self.member_records().await?;
            for MemberInfo { member, .. } in infos.iter_mut().filter(|info| info.is_ahead) {
                member.is_alive = !ahead.contains(&heartbeat_of(member));
            }
        }
        infos.sort_by(|one, other| one.member.name.cmp(&other.member.name));
        Ok(infos)
    }

    async fn member_records(&self) -> Result<Vec<MemberInfo>, Error> {
        let members = [self.keys.members(&self.group)];
        let reply = self.redis.eval(MEMBERS, &members, Retry::Idempotent, [""; 0]).await;
        let reply = reply.map_err(|error| of_keys(&members, error))?;
        reply::member_infos(reply)
    }

    /// Returns the time of the last commit of each partition, in Unix milliseconds by Redis's clock.
    pub async fn commit_times(&self) -> Result<HashMap<u16, u64>, Error> {
        let key = self.keys.commits(&self.group);
        let commits: BTreeMap<String, u64> = self
            .redis
            .run(&key, Retry::Idempotent, "HGETALL", vec![key.as_str().into()])
            .await
            .map_err(|error| of_keys(std::slice::from_ref(&key), error))?;
        Ok(commits.into_iter().filter_map(|(name, at)| Some((name.parse().ok()?, at))).collect())
    }

    /// Returns the paused partitions.
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

    /// Returns up to `count` pending entries in a range of ids, of one consumer or of all, that have been idle for at least
    /// `min_idle_ms`.
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

    /// Summarizes up to `count` entries of the pending entries list, starting at `from`.
    pub async fn summarize_pending(
        &self,
        partition: Partition,
        from: EntryId,
        count: usize,
    ) -> Result<PendingSummary, Error> {
        let args = vec![self.group.clone(), from.to_string(), count.to_string()];
        match self.eval(partition, SUMMARIZE_PENDING, Retry::Idempotent, args).await {
            Ok(summary) => reply::pending_summary(summary),
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

    /// Returns an entry; `None` if it is not in the stream.
    pub async fn entry(&self, partition: Partition, id: EntryId) -> Result<Option<RawEntry>, Error> {
        Ok(self.entries(partition, (id, id), 1).await?.into_iter().next())
    }

    /// Returns up to `count` entries in a range of ids.
    pub async fn entries(
        &self,
        partition: Partition,
        ids: (EntryId, EntryId),
        count: usize,
    ) -> Result<Vec<RawEntry>, Error> {
        self.range(partition, &self.key(partition), ids, count).await
    }

    /// Returns up to `count` entries in a range of ids, with their delivery state.
    pub async fn range_with_fate(
        &self,
        partition: Partition,
        (from, to): (EntryId, EntryId),
        count: usize,
    ) -> Result<Vec<(RawEntry, Fate)>, Error> {
        let args = vec![self.group.clone(), from.to_string(), to.to_string(), count.to_string()];
        let keys = [self.key(partition)];
        let range = self.redis.eval_identifying(RANGE_WITH_FATE, &keys, Retry::Idempotent, args);
        reply::range_with_fate(partition, range.await?)
    }

    /// Returns up to `count` dead letters in a range of ids.
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
        reply::entries(partition, self.redis.run_identifying(key, Retry::Idempotent, "XRANGE", args).await?)
    }

    /// Returns the last `count` entries of a partition, newest first.
    pub async fn newest(&self, partition: Partition, count: usize) -> Result<Vec<RawEntry>, Error> {
        let stream = self.key(partition);
        let args = [&stream, "+", "-", "COUNT", &count.to_string()].map(Value::from).into();
        let newest = self.redis.run_identifying(&stream, Retry::Idempotent, "XREVRANGE", args);
        reply::entries(partition, newest.await?)
    }

    /// Returns the address and the `INFO` of each server.
    pub async fn servers_info(&self) -> Result<Vec<(String, String)>, Error> {
        let mut infos = Vec::new();
        for server in self.redis.servers() {
            infos.push((server.address(), server.send("INFO", Vec::new()).await?));
        }
        Ok(infos)
    }

    /// Returns up to `count` audit records before the id `before`, newest first, each with its id and fields.
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

fn heartbeat_of(member: &Member) -> (MemberName, u64) {
    (member.name.clone(), member.heartbeat_at)
}

/// Adds the keys and the action to take to a WRONGTYPE error.
pub(super) fn of_keys(keys: &[String], error: Error) -> Error {
    if redis::error_code(&error) != Some("WRONGTYPE") {
        return error;
    }
    let detail = format!(
        "{} in Redis has an unexpected type, written by another application; rename or delete it",
        keys.join(" or ")
    );
    Error::new(error.kind().clone(), detail)
}

/// Returns whether the error means that the stream or the group does not exist.
fn is_missing(error: &Error) -> bool {
    redis::error_code(error) == Some("NOGROUP") || redis::is_missing_key(error)
}

/// Returns a field of an entry as text. Invalid UTF-8 is replaced.
pub fn text_field(fields: &[(Bytes, Bytes)], name: &str) -> Option<String> {
    let (_, value) = fields.iter().find(|(field, _)| field == name.as_bytes())?;
    Some(String::from_utf8_lossy(value).into_owned())
}
