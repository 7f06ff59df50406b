//! Every Redis command of the consumer: groups, reads, claims, acks, trims. Replies are walked by hand in
//! `stream::reply`.

mod reply;

use std::collections::HashMap;

use bytes::Bytes;
use fred::prelude::{
    Client, ClientLike, Error, HashesInterface, KeysInterface, LuaInterface, StreamsInterface, Value,
};
use futures_util::future::{join, join_all, try_join_all};
use shared::{
    config::StreamArgs,
    partition::{KeyPrefix, Partition},
    redis,
};
use thiserror::Error as ThisError;

use crate::{
    batch::SettledEntry,
    copy::Committed,
    dead_letter::Reason,
    entry::{EntryId, Position, RawEntry},
};

/// Appends an entry's dead letters and acknowledges it, as one step: either both have happened or neither, so an
/// entry that is delivered again never leaves its dead letters twice. Does nothing when the entry isn't pending.
///
/// KEYS: stream, dead-letter stream, entries tried alone. ARGV: group, entry id, consumer, number of letters, then for
/// each letter the number of its fields and values, and these.
///
/// A Redis that is out of memory must take it: unsettled, the entry would keep what is behind it from being trimmed.
const SETTLE: &str = r"#!lua flags=allow-oom
redis.call('HDEL', KEYS[3], ARGV[2])
local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[2], ARGV[2], 1)
if #pending == 0 then return 0 end
local now = redis.call('TIME')
local dead_at = string.format('%d', now[1] * 1000 + math.floor(now[2] / 1000))
local at = 5
for letter = 1, tonumber(ARGV[4]) do
    local fields = {}
    local last = at + tonumber(ARGV[at])
    for i = at + 1, last do fields[#fields + 1] = ARGV[i] end
    at = last + 1
    redis.call('XADD', KEYS[2], '*', 'origin', KEYS[1] .. '/' .. ARGV[2], 'deliveries', pending[1][4],
        'consumer', ARGV[3], 'dead_at', dead_at, unpack(fields))
end
return redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
";

/// Trims from a stream what every group on it has acknowledged, and what is older than the retention. One step, so
/// that no entry can be delivered, and no group made anew, between the looks and the cut.
///
/// Ids are compared as padded text: Lua's numbers can't hold all 64 bits.
///
/// KEYS: stream. ARGV: retention in milliseconds.
const TRIM: &str = r"
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local function parts(id) return string.match(id, '^(%d+)-(%d+)$') end
local function padded(id)
    local ms, seq = parts(id)
    return string.rep('0', 20 - #ms) .. ms .. string.rep('0', 20 - #seq) .. seq
end
local function after(id)
    local ms, seq = parts(id)
    if #seq > 15 then return id end
    return ms .. '-' .. string.format('%.0f', tonumber(seq) + 1)
end
local keep_from = nil
local function keep(id)
    if not keep_from or padded(id) < padded(keep_from) then keep_from = id end
end
for _, fields in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    local group = {}
    for i = 1, #fields, 2 do group[fields[i]] = fields[i + 1] end
    local smallest_pending = redis.call('XPENDING', KEYS[1], group['name'])[2]
    if smallest_pending then keep(smallest_pending) end
    keep(after(group['last-delivered-id']))
end
if not keep_from then return 0 end
if tonumber(ARGV[1]) > 0 then
    local now = redis.call('TIME')
    keep(string.format('%.0f-0', math.max(0, now[1] * 1000 + math.floor(now[2] / 1000) - tonumber(ARGV[1]))))
end
return redis.call('XTRIM', KEYS[1], 'MINID', '=', keep_from)
";

/// Counts a try of an entry, also in a Redis that is out of memory, where draining must go on.
///
/// KEYS: entries tried alone. ARGV: entry id.
const BEGIN_TRY_ALONE: &str = r"#!lua flags=allow-oom
return redis.call('HINCRBY', KEYS[1], ARGV[1], 1)
";

/// Takes consumers out of the group that have been idle for long, unless they have pending entries: XGROUP
/// DELCONSUMER would destroy them. Says how many it took out.
///
/// KEYS: stream. ARGV: group, the least idle time in milliseconds, and a consumer's name or nothing for all of them.
const REMOVE_IDLE: &str = r"
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local removed = 0
for _, fields in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
    local consumer = {}
    for i = 1, #fields, 2 do consumer[fields[i]] = fields[i + 1] end
    if consumer.pending == 0 and consumer.idle >= tonumber(ARGV[2]) and (ARGV[3] == '' or consumer.name == ARGV[3]) then
        redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer.name)
        removed = removed + 1
    end
end
return removed
";

/// A group is not there and can't be made.
#[derive(Debug, ThisError)]
#[error("the consumer group can't be made on {stream} in Redis")]
pub struct GroupError {
    stream: String,
    source: Error,
}

/// The streams, as one member of the group sees them.
#[derive(Clone)]
pub(crate) struct Streams {
    /// For commands that Redis answers at once.
    commands: Client,
    keys: KeyPrefix,
    group: String,
    consumer: String,
    /// The partitions with the keys of their streams.
    partitions: Vec<(Partition, String)>,
}

/// What a claim brought.
#[derive(Debug)]
pub(crate) struct Claimed {
    pub(crate) entries: Vec<RawEntry>,
    /// Entries that were pending but are no longer in the stream: nobody can store them any more.
    pub(crate) deleted: Vec<EntryId>,
    /// Where the next claim goes on; zero when all pending entries were looked at.
    pub(crate) cursor: EntryId,
}

/// What became of the entries of a batch.
#[derive(Debug, Default)]
pub(crate) struct AckOutcome {
    /// All of them, acknowledged or not.
    pub(crate) entries: Vec<SettledEntry>,
    /// How many were pending and no longer are.
    pub(crate) acknowledged: u64,
    /// How many may still be pending, and why.
    pub(crate) failed: Option<(usize, Error)>,
    /// Which dead letters were appended.
    pub(crate) dead_letters: Vec<(Position, Reason)>,
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
    pub(crate) fn new(commands: Client, args: &StreamArgs, group: String, consumer: String) -> Self {
        let keys = args.likes_stream.clone();
        let partitions =
            args.likes_partitions.partitions().map(|partition| (partition, keys.stream(partition))).collect();
        Self { commands, keys, group, consumer, partitions }
    }

    /// All partitions, in order.
    pub(crate) fn partitions(&self) -> impl Iterator<Item = Partition> {
        self.partitions.iter().map(|(partition, _)| *partition)
    }

    fn key(&self, partition: Partition) -> String {
        self.keys.stream(partition)
    }

    /// Makes streams and groups where there are none. A group starts at the very first entry, never at the end:
    /// what is in the stream already was accepted and must be stored.
    pub(crate) async fn ensure_groups(&self) -> Result<(), GroupError> {
        let ensured = self.partitions.iter().map(async |(_, stream)| {
            self.ensure_group(stream).await.map_err(|source| GroupError { stream: stream.clone(), source })
        });
        try_join_all(ensured).await.map(drop)
    }

    async fn ensure_group(&self, stream: &str) -> Result<(), Error> {
        let created: Result<(), Error> = self.commands.xgroup_create(stream, &self.group, "0", true).await;
        match created {
            Ok(()) => {
                tracing::info!(stream, group = self.group, "created the consumer group");
                Ok(())
            }
            Err(error) => match redis::error_code(&error) {
                Some("BUSYGROUP") => Ok(()),
                // A Redis that is out of memory refuses without a look at what is there.
                Some("OOM") if self.has_group(stream).await? => Ok(()),
                _ => Err(error),
            },
        }
    }

    async fn has_group(&self, stream: &str) -> Result<bool, Error> {
        if self.commands.exists::<u64, _>(stream).await? == 0 {
            return Ok(false);
        }
        Ok(reply::group_names(self.commands.xinfo_groups(stream).await?)?.contains(&self.group))
    }

    /// New entries of all partitions, at most `count` of each; waits up to `block_ms` for the first. `reader` is a
    /// client for nothing but reads: while it blocks, all else behind it waits.
    pub(crate) async fn read_new(
        &self,
        reader: &Client,
        count: u64,
        block_ms: u64,
    ) -> Result<Vec<RawEntry>, Error> {
        let keys: Vec<&str> = self.partitions.iter().map(|(_, stream)| stream.as_str()).collect();
        let ids = vec![">"; keys.len()];
        let reply: Value = reader
            .xreadgroup(&self.group, &self.consumer, Some(count), Some(block_ms), false, keys, ids)
            .await?;
        self.entries_by_stream(reply)
    }

    /// Entries that were delivered to this consumer and never acknowledged, from each partition those after the
    /// cursor that `after` has for it, at most `count` of each.
    pub(crate) async fn read_own_pending(
        &self,
        reader: &Client,
        after: &HashMap<Partition, EntryId>,
        count: u64,
    ) -> Result<Vec<RawEntry>, Error> {
        let keys: Vec<&str> = self.partitions.iter().map(|(_, stream)| stream.as_str()).collect();
        let cursor = |partition| after.get(&partition).copied().unwrap_or_default().to_string();
        let ids: Vec<String> = self.partitions().map(cursor).collect();
        let reply: Value =
            reader.xreadgroup(&self.group, &self.consumer, Some(count), None, false, keys, ids).await?;
        self.entries_by_stream(reply)
    }

    fn entries_by_stream(&self, reply: Value) -> Result<Vec<RawEntry>, Error> {
        let mut entries = Vec::new();
        for (stream, rows) in reply::streams(reply)? {
            let partition =
                self.partitions.iter().find(|(_, key)| *key == stream).map(|(partition, _)| *partition);
            let partition = partition.ok_or_else(|| reply::unexpected("a stream that was not asked for"))?;
            entries.extend(reply::entries(partition, rows)?);
        }
        Ok(entries)
    }

    /// Takes over up to `count` entries that have been pending for `min_idle_ms`, looking from `cursor` on.
    pub(crate) async fn claim(
        &self,
        reader: &Client,
        partition: Partition,
        min_idle_ms: u64,
        cursor: EntryId,
        count: u64,
    ) -> Result<Claimed, Error> {
        let key = self.key(partition);
        let reply: Value = reader
            .xautoclaim(key, &self.group, &self.consumer, min_idle_ms, cursor.to_string(), Some(count), false)
            .await?;
        reply::claimed(partition, reply)
    }

    /// Takes entries off the pending list that are no longer in the stream. There is nothing left to lose.
    pub(crate) async fn forget_deleted(&self, at: Position) -> Result<(), Error> {
        self.xack(at.partition, &[at.id]).await.map(drop)
    }

    /// Acknowledges what is stored. An entry with dead letters leaves those first.
    pub(crate) async fn ack(&self, committed: Committed) -> AckOutcome {
        let mut plain: HashMap<Partition, Vec<SettledEntry>> = HashMap::new();
        let mut others = Vec::new();
        for entry in committed.into_entries() {
            if entry.dead_letters.is_empty() && !entry.alone {
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
        let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
        self.commands.xack(self.key(partition), &self.group, ids).await
    }

    /// 1 if it was pending and is no longer; 0 if somebody else has settled it.
    async fn settle(&self, entry: &SettledEntry) -> Result<u64, Error> {
        let Position { partition, id } = entry.at;
        let keys =
            vec![self.key(partition), self.keys.dead_letters(partition), self.keys.tried_alone(partition)];
        let mut args: Vec<Bytes> =
            [&self.group, &id.to_string(), &self.consumer, &entry.dead_letters.len().to_string()]
                .map(|text| Bytes::copy_from_slice(text.as_bytes()))
                .into();
        for letter in &entry.dead_letters {
            let fields = letter.fields();
            args.push(fields.len().to_string().into());
            args.extend(fields);
        }
        self.commands.eval(SETTLE, keys, args).await
    }

    /// Notes that an entry is about to be tried alone, and tells how many such tries have begun and not ended.
    pub(crate) async fn begin_try_alone(&self, at: Position) -> Result<u64, Error> {
        let tried_alone = self.keys.tried_alone(at.partition);
        self.commands.eval(BEGIN_TRY_ALONE, vec![tried_alone], vec![at.id.to_string()]).await
    }

    /// Whoever tried the entry alone has survived.
    pub(crate) async fn end_try_alone(&self, at: Position) -> Result<(), Error> {
        let tried_alone = self.keys.tried_alone(at.partition);
        self.commands.hdel::<u64, _, _>(tried_alone, at.id.to_string()).await.map(drop)
    }

    /// How often an entry was delivered, by Redis's own count. 0 if it isn't pending.
    pub(crate) async fn deliveries(&self, at: Position) -> Result<u64, Error> {
        let id = at.id.to_string();
        let pending: Value =
            self.commands.xpending(self.key(at.partition), &self.group, (&*id, &*id, 1_u64)).await?;
        reply::deliveries(pending)
    }

    /// Trims from a partition what every group on it has acknowledged and what is older than `retention_ms`.
    /// Returns how many entries went.
    pub(crate) async fn trim(&self, partition: Partition, retention_ms: u64) -> Result<u64, Error> {
        self.commands.eval(TRIM, vec![self.key(partition)], vec![retention_ms]).await
    }

    /// Takes this consumer out of the groups where it has nothing pending.
    pub(crate) async fn leave(&self) -> Result<(), Error> {
        let left = self.partitions().map(|partition| self.remove(partition, 0, &self.consumer));
        try_join_all(left).await.map(drop)
    }

    /// Takes consumers out of the group of a partition that have nothing pending and were not heard of for `idle_ms`.
    /// Returns how many.
    pub(crate) async fn remove_idle(&self, partition: Partition, idle_ms: u64) -> Result<u64, Error> {
        self.remove(partition, idle_ms, "").await
    }

    async fn remove(&self, partition: Partition, idle_ms: u64, consumer: &str) -> Result<u64, Error> {
        let args = vec![self.group.clone(), idle_ms.to_string(), consumer.to_owned()];
        self.commands.eval(REMOVE_IDLE, vec![self.key(partition)], args).await
    }

    /// Whether Redis answers.
    pub(crate) async fn ping(&self) -> Result<(), Error> {
        self.commands.ping::<String>(None).await.map(drop)
    }
}
