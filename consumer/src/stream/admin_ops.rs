//! What people change in the streams by hand: for `likesctl`. All of it is safe beside running consumers, and safe to do
//! twice.

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
    group::membership::LIVENESS_TIMEOUT,
    stream::{Streams, reply},
};

/// Says in the set of paused partitions that it is all of them.
pub(super) const ALL: &str = "all";

/// How many records the audit keeps, about.
const AUDIT_RECORDS: u32 = 10_000;

/// Takes entries over for a consumer without a delivery, and tells which of them were pending. Those that are no longer in
/// the stream stay pending, and are told apart: nobody but a consumer that counts them as lost should take them off.
///
/// KEYS: stream, entries tried alone. ARGV: group, consumer, number of deliveries or nothing, and then the ids. Returns `[taken ids, deleted ids]`.
const HAND_OVER: &str = include_str!("scripts/hand_over.lua");

/// Acknowledges entries that are pending, and forgets whatever was noted of them. Returns those that were pending.
///
/// KEYS: stream, entries tried alone. ARGV: group, and then the ids.
const DROP_PENDING: &str = include_str!("scripts/drop_pending.lua");

/// Removes dead letters. Returns those that were there.
///
/// KEYS: dead letters. ARGV: the ids.
const PURGE_DEAD_LETTERS: &str = include_str!("scripts/purge_dead_letters.lua");

/// Appends the payloads of dead letters to their stream again and removes the letters, as one step: a letter is retried
/// once, however often it is asked for. One without a payload stays.
///
/// KEYS: stream, dead letters. ARGV: the field of the payload, and then the ids. Returns the ids of the letters that went.
const RETRY_DEAD_LETTERS: &str = include_str!("scripts/retry_dead_letters.lua");

/// Notes something in the audit, also in a Redis that is out of memory: that is when things are mended.
///
/// KEYS: audit. ARGV: most records, about, and then fields and values.
const AUDIT: &str = include_str!("scripts/audit.lua");

/// Forgets a member that is dead, if it still is. Returns whether it is not among the living.
///
/// KEYS: members. ARGV: name, and after how many milliseconds without a heartbeat a member is dead.
const FORGET_MEMBER: &str = include_str!("scripts/forget_member.lua");

/// What is paused changes, also in a Redis that is out of memory. Returns how many were not so before.
///
/// KEYS: paused. ARGV: SADD or SREM, and then what is paused.
const SET_PAUSED: &str = include_str!("scripts/set_paused.lua");

/// When commits were, by Redis's clock.
///
/// KEYS: commits. ARGV: partition and milliseconds ago, by turns.
const RECORD_COMMITS: &str = include_str!("scripts/record_commits.lua");

impl Streams {
    /// Makes pending entries another consumer's, just delivered, with this number of deliveries or the one that they have.
    /// Returns those that were pending and in the stream, and those that are not in the stream.
    pub async fn hand_over(
        &self,
        partition: Partition,
        ids: &[EntryId],
        consumer: &str,
        deliveries: Option<u64>,
    ) -> Result<(HashSet<EntryId>, HashSet<EntryId>), Error> {
        let keys = [self.key(partition), self.keys.quarantine(partition)];
        let deliveries = deliveries.map(|deliveries| deliveries.to_string()).unwrap_or_default();
        let mut args = vec![self.group.clone(), consumer.to_owned(), deliveries];
        args.extend(ids.iter().map(EntryId::to_string));
        reply::id_sets(self.redis.eval(HAND_OVER, &keys, Retry::Idempotent, args).await?)
    }

    /// Takes entries off the pending list. Returns those that were on it.
    pub async fn drop_pending(
        &self,
        partition: Partition,
        ids: &[EntryId],
    ) -> Result<HashSet<EntryId>, Error> {
        let keys = [self.key(partition), self.keys.quarantine(partition)];
        let args = [self.group.clone()].into_iter().chain(ids.iter().map(EntryId::to_string));
        reply::id_set(self.redis.eval(DROP_PENDING, &keys, Retry::NonIdempotent, args).await?)
    }

    /// Appends what is in dead letters to their stream again, and removes them. Returns those that had something in them.
    pub async fn retry_dead_letters(
        &self,
        partition: Partition,
        ids: &[EntryId],
    ) -> Result<HashSet<EntryId>, Error> {
        let keys = [self.key(partition), self.keys.dead_letters(partition)];
        let args = [codec::FIELD.to_owned()].into_iter().chain(ids.iter().map(EntryId::to_string));
        reply::id_set(self.redis.eval(RETRY_DEAD_LETTERS, &keys, Retry::NonIdempotent, args).await?)
    }

    /// Removes dead letters for good. Returns those that were there.
    pub async fn purge_dead_letters(
        &self,
        partition: Partition,
        ids: &[EntryId],
    ) -> Result<HashSet<EntryId>, Error> {
        let keys = [self.keys.dead_letters(partition)];
        let ids = ids.iter().map(EntryId::to_string);
        reply::id_set(self.redis.eval(PURGE_DEAD_LETTERS, &keys, Retry::NonIdempotent, ids).await?)
    }

    /// Appends a dead letter as it was.
    pub async fn import_letter(
        &self,
        partition: Partition,
        fields: Vec<(Bytes, Bytes)>,
    ) -> Result<(), Error> {
        let key = self.keys.dead_letters(partition);
        let fields = fields.into_iter().flat_map(|(name, value)| [Value::Bytes(name), Value::Bytes(value)]);
        let args = [Value::from(key.as_str()), "*".into()].into_iter().chain(fields).collect();
        self.redis.run::<Value>(&key, Retry::NonIdempotent, "XADD", args).await.map(drop)
    }

    /// Pauses partitions, or all of them with those to come. Returns how many were not.
    pub async fn pause(&self, partitions: Option<&[Partition]>) -> Result<u64, Error> {
        self.set_paused("SADD", partitions).await
    }

    /// Resumes partitions. Returns how many were paused.
    pub async fn resume(&self, partitions: &[Partition]) -> Result<u64, Error> {
        self.set_paused("SREM", Some(partitions)).await
    }

    /// Resumes partitions where all are paused as a whole: the others are paused one by one then.
    pub async fn resume_of_all(
        &self,
        chosen: &[Partition],
        partitions: PartitionCount,
    ) -> Result<u64, Error> {
        let others: Vec<Partition> =
            partitions.partitions().filter(|partition| !chosen.contains(partition)).collect();
        // In this order nothing that should stay paused is read meanwhile.
        if !others.is_empty() {
            self.pause(Some(&others)).await?;
        }
        self.resume(chosen).await?;
        self.set_paused("SREM", None).await?;
        Ok(chosen.len() as u64)
    }

    /// Resumes whatever is paused. Returns 0 if nothing was.
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

    /// Notes when batches with entries of these partitions were committed.
    pub async fn record_commits(&self, commits: &[(Partition, Duration)]) -> Result<(), Error> {
        let args =
            commits.iter().flat_map(|(partition, ago)| [partition.to_string(), ago.as_millis().to_string()]);
        let keys = [self.keys.commits(&self.group)];
        self.redis.eval::<Value>(RECORD_COMMITS, &keys, Retry::Idempotent, args).await.map(drop)
    }

    /// Takes a member off the record, unless it lives. Returns whether it is not among the living.
    pub async fn forget_member(&self, name: &str) -> Result<bool, Error> {
        let keys = [self.keys.members(&self.group)];
        let args = [name.to_owned(), LIVENESS_TIMEOUT.as_millis().to_string()];
        Ok(self.redis.eval::<u64>(FORGET_MEMBER, &keys, Retry::Idempotent, args).await? == 1)
    }

    /// Appends a record to the audit, fields and values by turns. Returns its id.
    pub async fn audit(&self, record: Vec<String>) -> Result<String, Error> {
        let args = [AUDIT_RECORDS.to_string()].into_iter().chain(record);
        self.redis.eval(AUDIT, &[self.keys.audit()], Retry::NonIdempotent, args).await
    }
}
