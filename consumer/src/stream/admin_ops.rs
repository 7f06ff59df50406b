//! Manual changes to the streams, for `likesctl`. All are safe while consumers run.

use std::{collections::HashSet, time::Duration};

use bytes::Bytes;
use fred::prelude::{Error, Value};
use shared::{
    redis::Retry,
    wire::{
        codec,
        partition::{Partition, PartitionCount},
    },
};

use crate::{
    entry::EntryId,
    stream::{Streams, reply},
};

/// Consumer to which `likesctl` hands over entries. It reads nothing, so that partition readers claim its pending entries
/// at once. No consumer can have this name.
pub const REASSIGN_CONSUMER: &str = "likesctl";

/// Member of the set of paused partitions that stands for all partitions.
pub(super) const ALL: &str = "all";

/// Approximate number of records that the audit stream keeps.
const AUDIT_RECORDS: u32 = 10_000;

/// Reassigns pending entries to a consumer without delivering them. Entries that were deleted from the stream stay pending:
/// only a consumer, which counts them as lost, should remove them from the pending entries list.
///
/// KEYS: stream, quarantine. ARGV: group, consumer, number of deliveries or empty, then the ids. Returns
/// `[reassigned ids, deleted ids]`.
const HAND_OVER: &str = include_str!("scripts/hand_over.lua");

/// Acknowledges pending entries and removes their quarantine records.
///
/// KEYS: stream, quarantine. ARGV: group, then the ids. Returns the ids that were pending.
const DROP_PENDING: &str = include_str!("scripts/drop_pending.lua");

/// Removes dead letters.
///
/// KEYS: dead letters. ARGV: the ids. Returns the ids that existed.
const PURGE_DEAD_LETTERS: &str = include_str!("scripts/purge_dead_letters.lua");

/// Appends the payloads of dead letters to their stream and removes the dead letters, atomically. Idempotent: a dead letter
/// is retried once, no matter how often the script runs. A dead letter without a payload is kept.
///
/// KEYS: stream, dead letters. ARGV: name of the payload field, then the ids. Returns the ids that were retried.
const RETRY_DEAD_LETTERS: &str = include_str!("scripts/retry_dead_letters.lua");

/// Appends a record to the audit stream. Also runs when Redis is out of memory, because operators act in such incidents.
///
/// KEYS: audit. ARGV: approximate maximum number of records, then fields and values. Returns the id of the record.
const AUDIT: &str = include_str!("scripts/audit.lua");

/// Removes the record of a dead member. Keeps it if the member has sent another heartbeat.
///
/// KEYS: members. ARGV: name, time of the last heartbeat in milliseconds. Returns 0 if the record is kept, 1 otherwise.
const FORGET_MEMBER: &str = include_str!("scripts/forget_member.lua");

/// Pauses or resumes partitions. Also runs when Redis is out of memory.
///
/// KEYS: paused. ARGV: SADD or SREM, then the partitions. Returns the number of partitions that changed.
const SET_PAUSED: &str = include_str!("scripts/set_paused.lua");

/// Records commit times by Redis's clock. Also runs when Redis is out of memory.
///
/// KEYS: commits. ARGV: pairs of partition and age of the commit in milliseconds.
const RECORD_COMMITS: &str = include_str!("scripts/record_commits.lua");

impl Streams {
    /// Reassigns pending entries to another consumer and resets their idle time. `deliveries` replaces their number of
    /// deliveries. Returns the entries that were reassigned, and those that were deleted from the stream.
    pub async fn hand_over(
        &self,
        partition: Partition,
        ids: &[EntryId],
        consumer: &str,
        deliveries: Option<u64>,
    ) -> Result<(HashSet<EntryId>, HashSet<EntryId>), Error> {
        let keys = [self.key(partition), self.keys.quarantine(partition, &self.group)];
        let deliveries = deliveries.map(|deliveries| deliveries.to_string()).unwrap_or_default();
        let mut args = vec![self.group.clone(), consumer.to_owned(), deliveries];
        args.extend(ids.iter().map(EntryId::to_string));
        reply::id_sets(self.redis.eval(HAND_OVER, &keys, Retry::Idempotent, args).await?)
    }

    /// Removes entries from the pending entries list. Returns those that were pending.
    pub async fn drop_pending(
        &self,
        partition: Partition,
        ids: &[EntryId],
    ) -> Result<HashSet<EntryId>, Error> {
        let keys = [self.key(partition), self.keys.quarantine(partition, &self.group)];
        let args = [self.group.clone()].into_iter().chain(ids.iter().map(EntryId::to_string));
        reply::id_set(self.redis.eval(DROP_PENDING, &keys, Retry::NonIdempotent, args).await?)
    }

    /// Appends the payloads of dead letters to their stream and removes the dead letters. Returns those that had a payload.
    pub async fn retry_dead_letters(
        &self,
        partition: Partition,
        ids: &[EntryId],
    ) -> Result<HashSet<EntryId>, Error> {
        let keys = [self.key(partition), self.keys.dead_letters(partition)];
        let args = [codec::FIELD.to_owned()].into_iter().chain(ids.iter().map(EntryId::to_string));
        reply::id_set(self.redis.eval(RETRY_DEAD_LETTERS, &keys, Retry::NonIdempotent, args).await?)
    }

    /// Deletes dead letters permanently. Returns those that existed.
    pub async fn purge_dead_letters(
        &self,
        partition: Partition,
        ids: &[EntryId],
    ) -> Result<HashSet<EntryId>, Error> {
        let keys = [self.keys.dead_letters(partition)];
        let ids = ids.iter().map(EntryId::to_string);
        reply::id_set(self.redis.eval(PURGE_DEAD_LETTERS, &keys, Retry::NonIdempotent, ids).await?)
    }

    /// Appends a dead letter from an export.
    pub async fn import_dead_letter(
        &self,
        partition: Partition,
        fields: Vec<(Bytes, Bytes)>,
    ) -> Result<(), Error> {
        let key = self.keys.dead_letters(partition);
        let fields = fields.into_iter().flat_map(|(name, value)| [Value::Bytes(name), Value::Bytes(value)]);
        let args = [Value::from(key.as_str()), "*".into()].into_iter().chain(fields).collect();
        self.redis.run::<Value>(&key, Retry::NonIdempotent, "XADD", args).await.map(drop)
    }

    /// Pauses partitions; `None` pauses all partitions, including future ones. Returns the number of newly paused ones.
    pub async fn pause(&self, partitions: Option<&[Partition]>) -> Result<u64, Error> {
        self.set_paused("SADD", partitions).await
    }

    /// Resumes partitions. Returns the number of those that were paused.
    pub async fn resume(&self, partitions: &[Partition]) -> Result<u64, Error> {
        self.set_paused("SREM", Some(partitions)).await
    }

    /// Resumes some partitions while all are paused: pauses each of the others individually, then ends the pause of all.
    pub async fn resume_of_all(
        &self,
        chosen: &[Partition],
        partitions: PartitionCount,
    ) -> Result<u64, Error> {
        let others: Vec<Partition> =
            partitions.partitions().filter(|partition| !chosen.contains(partition)).collect();
        // In this order, partitions that stay paused are never read in between.
        if !others.is_empty() {
            self.pause(Some(&others)).await?;
        }
        self.resume(chosen).await?;
        self.set_paused("SREM", None).await?;
        Ok(chosen.len() as u64)
    }

    /// Resumes all partitions. Returns 0 if no partition was paused, 1 otherwise.
    pub async fn resume_all(&self) -> Result<u64, Error> {
        let key = self.keys.paused(&self.group);
        self.redis.run(&key, Retry::Idempotent, "DEL", vec![key.as_str().into()]).await
    }

    async fn set_paused(&self, command: &str, partitions: Option<&[Partition]>) -> Result<u64, Error> {
        let mut args = vec![command.to_owned()];
        match partitions {
            None => args.push(ALL.to_owned()),
            Some(partitions) => args.extend(partitions.iter().map(ToString::to_string)),
        }
        self.redis.eval(SET_PAUSED, &[self.keys.paused(&self.group)], Retry::Idempotent, args).await
    }

    /// Records the age of the last commit of each partition.
    pub async fn record_commits(&self, commits: &[(Partition, Duration)]) -> Result<(), Error> {
        let args =
            commits.iter().flat_map(|(partition, ago)| [partition.to_string(), ago.as_millis().to_string()]);
        let keys = [self.keys.commits(&self.group)];
        self.redis.eval::<Value>(RECORD_COMMITS, &keys, Retry::Idempotent, args).await.map(drop)
    }

    /// Removes the record of a member, unless the member is alive. Returns `false` if it is alive.
    pub async fn forget_member(&self, name: &str) -> Result<bool, Error> {
        let members = self.members().await?;
        let Some(info) = members.into_iter().find(|info| info.member.name == *name) else { return Ok(true) };
        if info.member.is_alive {
            return Ok(false);
        }
        let keys = [self.keys.members(&self.group)];
        let args = [name.to_owned(), info.member.heartbeat_at.to_string()];
        Ok(self.redis.eval::<u64>(FORGET_MEMBER, &keys, Retry::Idempotent, args).await? == 1)
    }

    /// Appends a record, given as alternating fields and values, to the audit stream. Returns its id.
    pub async fn audit(&self, record: Vec<String>) -> Result<String, Error> {
        let args = [AUDIT_RECORDS.to_string()].into_iter().chain(record);
        self.redis.eval(AUDIT, &[self.keys.audit()], Retry::NonIdempotent, args).await
    }
}
