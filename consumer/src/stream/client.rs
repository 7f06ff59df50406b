//! The streams as one member of the group sees them: groups, reads, claims, acknowledgements, trimming.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use fred::prelude::{Error, Value};
use futures_util::future::{join, join_all, try_join_all};
use shared::{
    error_chain::one_line,
    redis::{self, Connections, Retry},
    wire::{
        dead_letter::Reason,
        partition::{KeyPrefix, Partition, PartitionCount},
    },
};
use thiserror::Error as ThisError;

use super::reply;
use crate::{
    entry::{EntryId, Position, RawEntry},
    store::proof::{Committed, SettledEntry},
};

/// Appends an entry's dead letters and acknowledges it, as one step: either both have happened or neither, so an
/// entry that is delivered again never leaves its dead letters twice. Does nothing when the entry isn't pending.
///
/// KEYS: stream, dead-letter stream, entries tried alone. ARGV: group, entry id, consumer, number of letters, then for
/// each letter the number of its fields and values, and these.
///
/// A Redis that is out of memory must take it: unsettled, the entry would keep what is behind it from being trimmed.
const SETTLE: &str = include_str!("scripts/settle.lua");

/// Trims from a stream what every group on it has acknowledged, and what is older than the retention. One step, so
/// that no entry can be delivered, and no group made anew, between the looks and the cut.
///
/// Ids are compared as padded text: Lua's numbers can't hold all 64 bits.
///
/// KEYS: stream. ARGV: retention in milliseconds.
const TRIM: &str = include_str!("scripts/trim.lua");

/// Counts a try of an entry, also in a Redis that is out of memory, where draining must go on.
///
/// KEYS: entries tried alone. ARGV: entry id.
const BEGIN_QUARANTINE: &str = include_str!("scripts/begin_quarantine.lua");

/// Takes over entries of consumers that are no members any more and were not heard of for long, and takes such
/// consumers out of the group that have none: XGROUP DELCONSUMER would destroy pending entries. Says which consumer
/// had the entries, which entries they are, and which were pending but are no longer in the stream.
///
/// KEYS: stream. ARGV: group, the new owner, the least idle time in milliseconds, most entries, and then the members.
const CLAIM_DEPARTED: &str = include_str!("scripts/claim_departed.lua");

/// Takes a consumer out of the group unless it has pending entries: XGROUP DELCONSUMER would destroy them.
///
/// KEYS: stream. ARGV: group, consumer.
const REMOVE_CONSUMER: &str = include_str!("scripts/remove_consumer.lua");

/// A group is not there and can't be made.
#[derive(Debug, ThisError)]
#[error("the consumer group can't be made on {stream} in Redis")]
pub struct GroupError {
    stream: String,
    source: Error,
}

/// The streams, as one member of the group sees them.
#[derive(Clone)]
pub struct Streams {
    pub(super) redis: Connections,
    pub(super) keys: KeyPrefix,
    pub(super) group: String,
    pub(super) consumer: String,
}

/// What a claim brought.
#[derive(Debug, PartialEq, Eq)]
pub struct Claimed {
    pub entries: Vec<RawEntry>,
    /// Entries that were pending but are no longer in the stream: nobody can store them any more.
    pub deleted: Vec<EntryId>,
    /// Where the next claim goes on; zero when all pending entries were looked at.
    pub cursor: EntryId,
}

/// What was claimed from a consumer that is no member any more.
#[derive(Debug, PartialEq, Eq)]
pub struct Inherited {
    /// Whose entries they were.
    pub from: String,
    pub entries: Vec<RawEntry>,
    /// Entries that were pending but are no longer in the stream.
    pub deleted: Vec<EntryId>,
}

/// What became of the entries of a batch.
#[derive(Debug, Default)]
pub struct AckOutcome {
    /// All of them, acknowledged or not.
    pub entries: Vec<SettledEntry>,
    /// How many were pending and no longer are.
    pub acknowledged: u64,
    /// How many may still be pending, and why.
    pub failed: Option<(usize, Error)>,
    /// Which dead letters were appended.
    pub dead_letters: Vec<(Position, Reason)>,
}

impl AckOutcome {
    fn add(&mut self, acked: Result<u64, Error>, entries: usize) {
        match acked {
            Ok(acknowledged) => self.acknowledged += acknowledged,
            Err(error) => {
                let failed = self.failed.get_or_insert((0, error));
                failed.0 += entries;
            }
        }
    }
}

impl Streams {
    pub fn new(redis: Connections, keys: KeyPrefix, group: String, consumer: String) -> Self {
        Self { redis, keys, group, consumer }
    }

    /// What stands for all of them.
    pub fn template(&self) -> String {
        self.keys.stream_template()
    }

    pub(super) fn key(&self, partition: Partition) -> String {
        self.keys.stream(partition)
    }

    /// Makes streams and groups where there are none. That some can't be made is only said, as long as it is because
    /// a part of Redis is away: they are made when they are read.
    pub async fn ensure_groups(&self, partitions: PartitionCount) -> Result<(), GroupError> {
        let ensured = join_all(partitions.partitions().map(|partition| self.ensure_group(partition))).await;
        let all_failed = ensured.iter().all(Result::is_err);
        for failed in ensured.into_iter().filter_map(Result::err) {
            if all_failed || !redis::is_away(&failed.source) {
                return Err(failed);
            }
            tracing::warn!(error = one_line(&failed), "a consumer group has to wait");
        }
        Ok(())
    }

    /// Makes the stream of a partition and its group, if there is none. A group starts at the very first entry, never
    /// at the end: what is in the stream already was accepted and must be stored.
    pub async fn ensure_group(&self, partition: Partition) -> Result<(), GroupError> {
        let stream = self.key(partition);
        let args = ["CREATE", &stream, &self.group, "0", "MKSTREAM"].map(Value::from).into();
        let created = self.redis.run::<Value>(&stream, Retry::Idempotent, "XGROUP", args).await;
        let failed = match created {
            Ok(_) => {
                tracing::info!(stream, group = self.group, "created the consumer group");
                return Ok(());
            }
            Err(error) => match redis::error_code(&error) {
                Some("BUSYGROUP") => return Ok(()),
                // A Redis that is out of memory refuses without a look at what is there.
                Some("OOM") => match self.has_group(&stream).await {
                    Ok(true) => return Ok(()),
                    Ok(false) => error,
                    Err(error) => error,
                },
                _ => error,
            },
        };
        Err(GroupError { stream, source: failed })
    }

    async fn has_group(&self, stream: &str) -> Result<bool, Error> {
        let args = ["GROUPS", stream].map(Value::from).into();
        match self.redis.run(stream, Retry::Idempotent, "XINFO", args).await {
            Ok(groups) => Ok(reply::group_names(groups)?.contains(&self.group)),
            Err(error) if redis::error_code(&error) == Some("ERR") => Ok(false), // no such key
            Err(error) => Err(error),
        }
    }

    /// Up to `count` new entries of a partition. After an error Redis may have handed out entries in a reply that
    /// never came: they are pending then.
    pub async fn read_new(&self, partition: Partition, count: u64) -> Result<Vec<RawEntry>, Error> {
        self.read(partition, ">".to_owned(), count).await
    }

    /// Up to `count` entries of a partition that were delivered to this consumer and never acknowledged, from the one
    /// after `after` on.
    pub async fn read_own_pending(
        &self,
        partition: Partition,
        after: EntryId,
        count: u64,
    ) -> Result<Vec<RawEntry>, Error> {
        self.read(partition, after.to_string(), count).await
    }

    async fn read(&self, partition: Partition, from: String, count: u64) -> Result<Vec<RawEntry>, Error> {
        let (stream, count) = (self.key(partition), count.to_string());
        let args = ["GROUP", &self.group, &self.consumer, "COUNT", &count, "STREAMS", &stream, &from];
        let args = args.map(Value::from).into();
        reply::read(partition, self.redis.run(&stream, Retry::NonIdempotent, "XREADGROUP", args).await?)
    }

    /// Takes over up to `count` entries that have been pending for `min_idle_ms`, looking from `cursor` on.
    pub async fn claim(
        &self,
        partition: Partition,
        min_idle_ms: u64,
        cursor: EntryId,
        count: u64,
    ) -> Result<Claimed, Error> {
        let stream = self.key(partition);
        let (min_idle_ms, cursor, count) = (min_idle_ms.to_string(), cursor.to_string(), count.to_string());
        let args = [&stream, &self.group, &self.consumer, &min_idle_ms, &cursor, "COUNT", &count];
        let args = args.map(Value::from).into();
        reply::claimed(partition, self.redis.run(&stream, Retry::NonIdempotent, "XAUTOCLAIM", args).await?)
    }

    /// Takes over up to `count` entries from a consumer that is not among the members and was not heard of for
    /// `idle_ms`. Nothing when there is none of that kind that has any.
    pub async fn claim_departed(
        &self,
        partition: Partition,
        members: &HashSet<String>,
        idle_ms: u64,
        count: u64,
    ) -> Result<Option<Inherited>, Error> {
        let mut args =
            vec![self.group.clone(), self.consumer.clone(), idle_ms.to_string(), count.to_string()];
        args.extend(members.iter().cloned());
        reply::inherited(partition, self.eval(partition, CLAIM_DEPARTED, Retry::NonIdempotent, args).await?)
    }

    /// Runs a script that touches nothing but the stream of a partition.
    pub(super) async fn eval(
        &self,
        partition: Partition,
        script: &'static str,
        retry: Retry,
        args: Vec<String>,
    ) -> Result<Value, Error> {
        self.redis.eval(script, &[self.key(partition)], retry, args).await
    }

    /// Takes entries off the pending list that are no longer in the stream. There is nothing left to lose.
    pub async fn forget_deleted(&self, partition: Partition, ids: &[EntryId]) -> Result<(), Error> {
        self.xack(partition, ids).await.map(drop)
    }

    /// Acknowledges what is stored. An entry with dead letters leaves those first.
    pub async fn ack(&self, committed: Committed) -> AckOutcome {
        let mut plain: HashMap<Partition, Vec<SettledEntry>> = HashMap::new();
        let mut others = Vec::new();
        for entry in committed.into_entries() {
            if entry.dead_letters.is_empty() && !entry.quarantined {
                plain.entry(entry.at.partition).or_default().push(entry);
            } else {
                others.push(entry);
            }
        }
        let plain = join_all(plain.into_iter().map(async |(partition, entries)| {
            let ids: Vec<EntryId> = entries.iter().map(|entry| entry.at.id).collect();
            (self.xack(partition, &ids).await, entries)
        }));
        let others = join_all(others.into_iter().map(async |entry| (self.settle(&entry).await, entry)));
        let (plain, others) = join(plain, others).await;

        let mut acknowledged = AckOutcome::default();
        for (acked, entries) in plain {
            acknowledged.add(acked, entries.len());
            acknowledged.entries.extend(entries);
        }
        for (settled, entry) in others {
            if matches!(settled, Ok(1)) {
                acknowledged.dead_letters.extend(entry.dead_letters.iter().map(|l| (entry.at, l.reason())));
            }
            acknowledged.add(settled, 1);
            acknowledged.entries.push(entry);
        }
        acknowledged
    }

    /// How many of them were pending and are no longer.
    async fn xack(&self, partition: Partition, ids: &[EntryId]) -> Result<u64, Error> {
        let stream = self.key(partition);
        let ids = ids.iter().map(|id| Value::from(id.to_string()));
        let args = [stream.as_str().into(), self.group.as_str().into()].into_iter().chain(ids).collect();
        self.redis.run(&stream, Retry::Idempotent, "XACK", args).await
    }

    /// 1 if it was pending and is no longer; 0 if somebody else has settled it.
    async fn settle(&self, entry: &SettledEntry) -> Result<u64, Error> {
        let Position { partition, id } = entry.at;
        let stream = self.key(partition);
        let keys = [stream, self.keys.dead_letters(partition), self.keys.quarantine(partition)];
        let mut args: Vec<Bytes> =
            [&self.group, &id.to_string(), &self.consumer, &entry.dead_letters.len().to_string()]
                .map(|text| Bytes::copy_from_slice(text.as_bytes()))
                .into();
        for letter in &entry.dead_letters {
            let fields = letter.fields();
            args.push(fields.len().to_string().into());
            args.extend(fields);
        }
        self.redis.eval(SETTLE, &keys, Retry::Idempotent, args).await
    }

    /// Notes that an entry is about to be tried alone, and tells how many such tries have begun and not ended.
    pub async fn begin_quarantine(&self, at: Position) -> Result<u64, Error> {
        let keys = [self.keys.quarantine(at.partition)];
        self.redis.eval(BEGIN_QUARANTINE, &keys, Retry::NonIdempotent, [at.id.to_string()]).await
    }

    /// Whoever tried the entry alone has survived.
    pub async fn end_quarantine(&self, at: Position) -> Result<(), Error> {
        let quarantine = self.keys.quarantine(at.partition);
        let args = vec![quarantine.as_str().into(), at.id.to_string().into()];
        self.redis.run::<u64>(&quarantine, Retry::Idempotent, "HDEL", args).await.map(drop)
    }

    /// How often an entry was delivered, by Redis's own count. 0 if it isn't pending.
    pub async fn deliveries(&self, at: Position) -> Result<u64, Error> {
        let (stream, id) = (self.key(at.partition), at.id.to_string());
        let args = [&stream, &self.group, &id, &id, "1"].map(Value::from).into();
        reply::deliveries(self.redis.run(&stream, Retry::Idempotent, "XPENDING", args).await?)
    }

    /// Trims from a partition what every group on it has acknowledged and what is older than `retention_ms`.
    /// Returns how many entries went.
    pub async fn trim(&self, partition: Partition, retention_ms: u64) -> Result<u64, Error> {
        let args = vec![retention_ms.to_string()];
        reply::count(&self.eval(partition, TRIM, Retry::Idempotent, args).await?)
    }

    /// Takes this consumer out of the groups where it has nothing pending.
    pub async fn leave(&self, partitions: PartitionCount) -> Result<(), Error> {
        let left = partitions.partitions().map(|partition| self.remove_consumer(partition, &self.consumer));
        try_join_all(left).await.map(drop)
    }

    /// Takes a consumer out of the group in one partition, unless it has something pending there. Returns whether it was
    /// in it and no longer is.
    pub async fn remove_consumer(&self, partition: Partition, consumer: &str) -> Result<bool, Error> {
        let args = vec![self.group.clone(), consumer.to_owned()];
        Ok(reply::count(&self.eval(partition, REMOVE_CONSUMER, Retry::Idempotent, args).await?)? > 0)
    }

    /// Whether all servers of Redis answer.
    pub async fn ping(&self) -> Result<(), Error> {
        self.redis.ping().await
    }
}
