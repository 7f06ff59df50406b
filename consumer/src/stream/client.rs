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

use crate::{
    entry::{EntryId, Position, RawEntry},
    store::proof::{Committed, SettledEntry},
    stream::{GroupStream, reply},
};

/// Appends an entry's dead letters and acknowledges it, as one step: either both have happened or neither, so an
/// entry that is delivered again never leaves its dead letters twice. Does nothing when the entry isn't pending.
///
/// KEYS: stream, dead-letter stream, quarantine. ARGV: group, entry id, consumer, number of dead letters, then for each
/// dead letter the number of its fields and values, and these.
///
/// Runs also when Redis is out of memory: unsettled, the entry would keep all later entries from being trimmed.
const SETTLE: &str = include_str!("scripts/settle.lua");

/// Trims from a stream the entries that every group on it has acknowledged and that are older than the retention. One
/// step, so that no entry can be delivered, and no group created again, between the checks and the trim.
///
/// Ids are compared as padded text: Lua's numbers can't hold all 64 bits.
///
/// KEYS: stream. ARGV: retention in milliseconds. Returns the number of trimmed entries.
const TRIM: &str = include_str!("scripts/trim.lua");

/// Counts a quarantine of an entry. Runs also when Redis is out of memory, where draining must go on.
///
/// KEYS: quarantine. ARGV: entry id. Returns the number of quarantines that have begun and not ended.
const BEGIN_QUARANTINE: &str = include_str!("scripts/begin_quarantine.lua");

/// Claims entries of a consumer that is no member any more and has been idle for long. Removes such consumers from the
/// group when they have no pending entries: XGROUP DELCONSUMER would destroy those.
///
/// KEYS: stream. ARGV: group, the new owner, the least idle time in milliseconds, most entries, and then the members.
/// Returns `[consumer, entries, deleted ids]`: whose entries they were, and those that are no longer in the stream.
const CLAIM_DEPARTED: &str = include_str!("scripts/claim_departed.lua");

/// Removes a consumer from the group unless it has pending entries: XGROUP DELCONSUMER would destroy them.
///
/// KEYS: stream. ARGV: group, consumer. Returns 1 if it was removed.
const REMOVE_CONSUMER: &str = include_str!("scripts/remove_consumer.lua");

/// A group is missing and can't be created.
#[derive(Debug, ThisError)]
#[error("the consumer group can't be made on {stream} in Redis")]
pub struct GroupError {
    pub(super) stream: String,
    pub(super) source: Error,
}

/// The streams, as one member of the group sees them.
#[derive(Clone)]
pub struct Streams {
    pub(super) redis: Connections,
    pub(super) keys: KeyPrefix,
    pub(super) group: String,
    pub(super) consumer: String,
}

/// The result of a claim.
#[derive(Debug, PartialEq, Eq)]
pub struct Claimed {
    pub entries: Vec<RawEntry>,
    /// Entries that were pending but are no longer in the stream: they can no longer be stored.
    pub deleted: Vec<EntryId>,
    /// The start of the next claim; zero when all pending entries were visited.
    pub cursor: EntryId,
}

/// Entries that were claimed from a consumer that is no member any more.
#[derive(Debug, PartialEq, Eq)]
pub struct ClaimedDeparted {
    /// That consumer.
    pub from: String,
    pub entries: Vec<RawEntry>,
    /// Entries that were pending but are no longer in the stream.
    pub deleted: Vec<EntryId>,
}

/// The result of the acknowledgement of a batch.
#[derive(Debug, Default)]
pub struct AckOutcome {
    /// All entries of the batch, acknowledged or not.
    pub entries: Vec<SettledEntry>,
    /// Number of entries that were pending and no longer are.
    pub acknowledged: u64,
    /// Number of entries that may still be pending, and why.
    pub failed: Option<(usize, Error)>,
    /// Dead letters that were appended.
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

    /// Returns the template of the streams' names, `likes:{partition}`.
    pub fn template(&self) -> String {
        self.keys.stream_template()
    }

    pub(super) fn key(&self, partition: Partition) -> String {
        self.keys.stream(partition)
    }

    /// Creates streams and groups where they are missing. Only logs those that can't be created because a part of Redis is
    /// away: their readers create them.
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

    async fn has_group(&self, stream: &str) -> Result<bool, Error> {
        let args = ["GROUPS", stream].map(Value::from).into();
        match self.redis.run(stream, Retry::Idempotent, "XINFO", args).await {
            Ok(groups) => Ok(reply::group_names(groups)?.contains(&self.group)),
            Err(error) if redis::error_code(&error) == Some("ERR") => Ok(false), // no such key
            Err(error) => Err(error),
        }
    }

    async fn read(&self, partition: Partition, from: String, count: u64) -> Result<Vec<RawEntry>, Error> {
        let stream = self.key(partition);
        let count = count.to_string();
        let args = ["GROUP", &self.group, &self.consumer, "COUNT", &count, "STREAMS", &stream, &from];
        let args = args.map(Value::from).into();
        reply::read(partition, self.redis.run(&stream, Retry::NonIdempotent, "XREADGROUP", args).await?)
    }

    /// Runs a script whose only key is the stream of a partition.
    pub(super) async fn eval(
        &self,
        partition: Partition,
        script: &'static str,
        retry: Retry,
        args: Vec<String>,
    ) -> Result<Value, Error> {
        self.redis.eval(script, &[self.key(partition)], retry, args).await
    }

    /// Returns the number of entries that were pending and no longer are.
    async fn xack(&self, partition: Partition, ids: &[EntryId]) -> Result<u64, Error> {
        let stream = self.key(partition);
        let ids = ids.iter().map(|id| Value::from(id.to_string()));
        let args = [stream.as_str().into(), self.group.as_str().into()].into_iter().chain(ids).collect();
        self.redis.run(&stream, Retry::Idempotent, "XACK", args).await
    }

    /// Returns 1 if the entry was pending and no longer is; 0 if another consumer has settled it.
    async fn settle(&self, entry: &SettledEntry) -> Result<u64, Error> {
        let Position { partition, id } = entry.at;
        let stream = self.key(partition);
        let keys = [stream, self.keys.dead_letters(partition), self.keys.quarantine(partition)];
        let mut args: Vec<Bytes> =
            [&self.group, &id.to_string(), &self.consumer, &entry.dead_letters.len().to_string()]
                .map(|text| Bytes::copy_from_slice(text.as_bytes()))
                .into();
        for dead_letter in &entry.dead_letters {
            let fields = dead_letter.fields();
            args.push(fields.len().to_string().into());
            args.extend(fields);
        }
        self.redis.eval(SETTLE, &keys, Retry::Idempotent, args).await
    }

    /// Trims from a partition the entries that every group has acknowledged and that are older than `retention_ms`.
    /// Returns their number.
    pub async fn trim(&self, partition: Partition, retention_ms: u64) -> Result<u64, Error> {
        let args = vec![retention_ms.to_string()];
        reply::count(&self.eval(partition, TRIM, Retry::Idempotent, args).await?)
    }

    /// Removes this consumer from the groups where it has nothing pending.
    pub async fn leave(&self, partitions: PartitionCount) -> Result<(), Error> {
        let left = partitions.partitions().map(|partition| self.remove_consumer(partition, &self.consumer));
        try_join_all(left).await.map(drop)
    }

    /// Removes a consumer from the group in one partition, unless it has something pending there. Returns whether it was
    /// removed.
    pub async fn remove_consumer(&self, partition: Partition, consumer: &str) -> Result<bool, Error> {
        let args = vec![self.group.clone(), consumer.to_owned()];
        Ok(reply::count(&self.eval(partition, REMOVE_CONSUMER, Retry::Idempotent, args).await?)? > 0)
    }

    /// Returns without an error if all servers of Redis answer.
    pub async fn ping(&self) -> Result<(), Error> {
        self.redis.ping().await
    }
}

impl GroupStream for Streams {
    async fn ensure_group(&self, partition: Partition) -> Result<(), GroupError> {
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
                // A Redis that is out of memory refuses before it checks whether the group exists.
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

    async fn read_new(&self, partition: Partition, count: u64) -> Result<Vec<RawEntry>, Error> {
        self.read(partition, ">".to_owned(), count).await
    }

    async fn read_own_pending(
        &self,
        partition: Partition,
        after: EntryId,
        count: u64,
    ) -> Result<Vec<RawEntry>, Error> {
        self.read(partition, after.to_string(), count).await
    }

    async fn claim(
        &self,
        partition: Partition,
        min_idle_ms: u64,
        cursor: EntryId,
        count: u64,
    ) -> Result<Claimed, Error> {
        let stream = self.key(partition);
        let min_idle_ms = min_idle_ms.to_string();
        let cursor = cursor.to_string();
        let count = count.to_string();
        let args = [&stream, &self.group, &self.consumer, &min_idle_ms, &cursor, "COUNT", &count];
        let args = args.map(Value::from).into();
        reply::claimed(partition, self.redis.run(&stream, Retry::NonIdempotent, "XAUTOCLAIM", args).await?)
    }

    async fn claim_departed(
        &self,
        partition: Partition,
        members: &HashSet<String>,
        idle_ms: u64,
        count: u64,
    ) -> Result<Option<ClaimedDeparted>, Error> {
        let mut args =
            vec![self.group.clone(), self.consumer.clone(), idle_ms.to_string(), count.to_string()];
        args.extend(members.iter().cloned());
        reply::claimed_departed(
            partition,
            self.eval(partition, CLAIM_DEPARTED, Retry::NonIdempotent, args).await?,
        )
    }

    async fn forget_deleted(&self, partition: Partition, ids: &[EntryId]) -> Result<(), Error> {
        self.xack(partition, ids).await.map(drop)
    }

    async fn ack(&self, committed: Committed) -> AckOutcome {
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

    async fn begin_quarantine(&self, at: Position) -> Result<u64, Error> {
        let keys = [self.keys.quarantine(at.partition)];
        self.redis.eval(BEGIN_QUARANTINE, &keys, Retry::NonIdempotent, [at.id.to_string()]).await
    }

    async fn end_quarantine(&self, at: Position) -> Result<(), Error> {
        let quarantine = self.keys.quarantine(at.partition);
        let args = vec![quarantine.as_str().into(), at.id.to_string().into()];
        self.redis.run::<u64>(&quarantine, Retry::Idempotent, "HDEL", args).await.map(drop)
    }

    async fn deliveries(&self, at: Position) -> Result<u64, Error> {
        let stream = self.key(at.partition);
        let id = at.id.to_string();
        let args = [&stream, &self.group, &id, &id, "1"].map(Value::from).into();
        reply::deliveries(self.redis.run(&stream, Retry::Idempotent, "XPENDING", args).await?)
    }
}
