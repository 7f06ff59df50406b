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

use super::{Streams, reply};
use crate::{entry::EntryId, membership::DEAD_AFTER};

/// Says in the set of paused partitions that it is all of them.
pub(super) const ALL: &str = "all";

/// How many records the audit keeps, about.
const AUDIT_RECORDS: u32 = 10_000;

/// Takes entries over for a consumer without a delivery, and tells which of them were pending. Those that are no longer in
/// the stream stay pending, and are told apart: nobody but a consumer that counts them as lost should take them off.
///
/// KEYS: stream, entries tried alone. ARGV: group, consumer, number of deliveries or nothing, and then the ids. Returns `[taken ids, deleted ids]`.
const HAND_OVER: &str = r"
if redis.call('EXISTS', KEYS[1]) == 0 then return {{}, {}} end
local taken, deleted = {}, {}
for i = 4, #ARGV do
    local id = ARGV[i]
    if #redis.call('XRANGE', KEYS[1], id, id) == 0 then
        deleted[#deleted + 1] = id
    else
        local claim = {'XCLAIM', KEYS[1], ARGV[1], ARGV[2], '0', id}
        if ARGV[3] ~= '' then
            claim[#claim + 1] = 'RETRYCOUNT'
            claim[#claim + 1] = ARGV[3]
        end
        claim[#claim + 1] = 'JUSTID'
        local claimed = redis.call(unpack(claim))
        if #claimed > 0 then
            taken[#taken + 1] = id
            if ARGV[3] ~= '' then redis.call('HDEL', KEYS[2], id) end
        end
    end
end
return {taken, deleted}
";

/// Acknowledges entries that are pending, and forgets whatever was noted of them. Returns those that were pending.
///
/// KEYS: stream, entries tried alone. ARGV: group, and then the ids.
const TAKE_OFF: &str = r"#!lua flags=allow-oom
if redis.call('EXISTS', KEYS[1]) == 0 then return {} end
local taken = {}
for i = 2, #ARGV do
    redis.call('HDEL', KEYS[2], ARGV[i])
    if redis.call('XACK', KEYS[1], ARGV[1], ARGV[i]) == 1 then taken[#taken + 1] = ARGV[i] end
end
return taken
";

/// Removes dead letters. Returns those that were there.
///
/// KEYS: dead letters. ARGV: the ids.
const PURGE_LETTERS: &str = r"
local purged = {}
for _, id in ipairs(ARGV) do
    if redis.call('XDEL', KEYS[1], id) == 1 then purged[#purged + 1] = id end
end
return purged
";

/// Appends the payloads of dead letters to their stream again and removes the letters, as one step: a letter is retried
/// once, however often it is asked for. One without a payload stays.
///
/// KEYS: stream, dead letters. ARGV: the field of the payload, and then the ids. Returns the ids of the letters that went.
const RETRY_LETTERS: &str = r"
local retried = {}
for i = 2, #ARGV do
    local letter = redis.call('XRANGE', KEYS[2], ARGV[i], ARGV[i])[1]
    if letter then
        for f = 1, #letter[2], 2 do
            if letter[2][f] == ARGV[1] and #letter[2][f + 1] > 0 then
                redis.call('XADD', KEYS[1], '*', ARGV[1], letter[2][f + 1])
                redis.call('XDEL', KEYS[2], ARGV[i])
                retried[#retried + 1] = ARGV[i]
                break
            end
        end
    end
end
return retried
";

/// Notes something in the audit, also in a Redis that is out of memory: that is when things are mended.
///
/// KEYS: audit. ARGV: most records, about, and then fields and values.
const AUDIT: &str = r"#!lua flags=allow-oom
return redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', unpack(ARGV, 2))
";

/// Forgets a member that is dead, if it still is. Returns whether it is not among the living.
///
/// KEYS: members. ARGV: name, and after how many milliseconds without a heartbeat a member is dead.
const FORGET_MEMBER: &str = r"
local record = redis.call('HGET', KEYS[1], ARGV[1])
if not record then return 1 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local beat = string.match(record, ' (%d+)$')
if beat and now - tonumber(beat) < tonumber(ARGV[2]) then return 0 end
return redis.call('HDEL', KEYS[1], ARGV[1])
";

/// What is paused changes, also in a Redis that is out of memory. Returns how many were not so before.
///
/// KEYS: paused. ARGV: SADD or SREM, and then what is paused.
const SET_PAUSED: &str = r"#!lua flags=allow-oom
return redis.call(ARGV[1], KEYS[1], unpack(ARGV, 2))
";

/// When commits were, by Redis's clock.
///
/// KEYS: commits. ARGV: partition and milliseconds ago, by turns.
const NOTE_COMMITS: &str = r"#!lua flags=allow-oom
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for i = 1, #ARGV, 2 do
    redis.call('HSET', KEYS[1], ARGV[i], string.format('%.0f', now - tonumber(ARGV[i + 1])))
end
return 1
";

impl Streams {
    /// Makes pending entries another consumer's, just delivered, with this number of deliveries or the one that they have.
    /// Returns those that were pending and in the stream, and those that are not in the stream.
    pub(crate) async fn hand_over(
        &self,
        partition: Partition,
        ids: &[EntryId],
        consumer: &str,
        deliveries: Option<u64>,
    ) -> Result<(HashSet<EntryId>, HashSet<EntryId>), Error> {
        let keys = [self.key(partition), self.keys.tried_alone(partition)];
        let deliveries = deliveries.map(|deliveries| deliveries.to_string()).unwrap_or_default();
        let mut args = vec![self.group.clone(), consumer.to_owned(), deliveries];
        args.extend(ids.iter().map(EntryId::to_string));
        reply::id_sets(self.redis.eval(HAND_OVER, &keys, Retry::Idempotent, args).await?)
    }

    /// Takes entries off the pending list. Returns those that were on it.
    pub(crate) async fn take_off(
        &self,
        partition: Partition,
        ids: &[EntryId],
    ) -> Result<HashSet<EntryId>, Error> {
        let keys = [self.key(partition), self.keys.tried_alone(partition)];
        let args = [self.group.clone()].into_iter().chain(ids.iter().map(EntryId::to_string));
        reply::id_set(self.redis.eval(TAKE_OFF, &keys, Retry::NonIdempotent, args).await?)
    }

    /// Appends what is in dead letters to their stream again, and removes them. Returns those that had something in them.
    pub(crate) async fn retry_letters(
        &self,
        partition: Partition,
        ids: &[EntryId],
    ) -> Result<HashSet<EntryId>, Error> {
        let keys = [self.key(partition), self.keys.dead_letters(partition)];
        let args = [codec::FIELD.to_owned()].into_iter().chain(ids.iter().map(EntryId::to_string));
        reply::id_set(self.redis.eval(RETRY_LETTERS, &keys, Retry::NonIdempotent, args).await?)
    }

    /// Removes dead letters for good. Returns those that were there.
    pub(crate) async fn purge_letters(
        &self,
        partition: Partition,
        ids: &[EntryId],
    ) -> Result<HashSet<EntryId>, Error> {
        let keys = [self.keys.dead_letters(partition)];
        let ids = ids.iter().map(EntryId::to_string);
        reply::id_set(self.redis.eval(PURGE_LETTERS, &keys, Retry::NonIdempotent, ids).await?)
    }

    /// Appends a dead letter as it was.
    pub(crate) async fn import_letter(
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
    pub(crate) async fn pause(&self, partitions: Option<&[Partition]>) -> Result<u64, Error> {
        self.set_paused("SADD", partitions).await
    }

    /// Resumes partitions. Returns how many were paused.
    pub(crate) async fn resume(&self, partitions: &[Partition]) -> Result<u64, Error> {
        self.set_paused("SREM", Some(partitions)).await
    }

    /// Resumes partitions where all are paused as a whole: the others are paused one by one then.
    pub(crate) async fn resume_of_all(
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
    pub(crate) async fn resume_all(&self) -> Result<u64, Error> {
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
    pub(crate) async fn note_commits(&self, commits: &[(Partition, Duration)]) -> Result<(), Error> {
        let args =
            commits.iter().flat_map(|(partition, ago)| [partition.to_string(), ago.as_millis().to_string()]);
        let keys = [self.keys.commits(&self.group)];
        self.redis.eval::<Value>(NOTE_COMMITS, &keys, Retry::Idempotent, args).await.map(drop)
    }

    /// Takes a member off the record, unless it lives. Returns whether it is not among the living.
    pub(crate) async fn forget_member(&self, name: &str) -> Result<bool, Error> {
        let keys = [self.keys.members(&self.group)];
        let args = [name.to_owned(), DEAD_AFTER.as_millis().to_string()];
        Ok(self.redis.eval::<u64>(FORGET_MEMBER, &keys, Retry::Idempotent, args).await? == 1)
    }

    /// Appends a record to the audit, fields and values by turns. Returns its id.
    pub(crate) async fn audit(&self, record: Vec<String>) -> Result<String, Error> {
        let args = [AUDIT_RECORDS.to_string()].into_iter().chain(record);
        self.redis.eval(AUDIT, &[self.keys.audit()], Retry::NonIdempotent, args).await
    }
}
