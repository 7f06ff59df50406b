//! Every Redis command of the consumer: groups, reads, claims, acks, trims. Replies are walked by hand in
//! `stream::reply`.

mod reply;

use std::collections::HashMap;

use bytes::Bytes;
use fred::{
    prelude::{Client, ClientLike, Error, KeysInterface, LuaInterface, StreamsInterface, Value},
    types::{ClusterHash, CustomCommand},
};
use futures_util::future::{join_all, try_join_all};
use shared::{
    config::StreamArgs,
    partition::{KeyPrefix, Partition},
    redis,
};
use thiserror::Error as ThisError;

use crate::{
    batch::SettledEntry,
    copy::Committed,
    entry::{EntryId, Position, RawEntry},
};

/// Appends an entry's dead letters and acknowledges it, as one step: either both have happened or neither, so an
/// entry that is delivered again never leaves its dead letters twice. Does nothing when the entry isn't pending.
///
/// KEYS: stream, dead-letter stream. ARGV: group, entry id, consumer, number of letters, then for each letter the
/// number of its fields and values, and these.
const SETTLE_WITH_DEAD_LETTERS: &str = r"
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

/// Takes the consumer out of the group, unless it has pending entries: XGROUP DELCONSUMER would destroy them.
const LEAVE_IF_NOTHING_PENDING: &str = r"
for _, fields in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
    local consumer = {}
    for i = 1, #fields, 2 do consumer[fields[i]] = fields[i + 1] end
    if consumer.name == ARGV[2] and consumer.pending == 0 then
        redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
    end
end
return 1
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
        let groups = reply::groups(self.commands.xinfo_groups(stream).await?)?;
        Ok(groups.iter().any(|group| group.name == self.group))
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
    pub(crate) async fn forget_deleted(&self, partition: Partition, ids: &[EntryId]) -> Result<(), Error> {
        self.xack(partition, ids).await
    }

    /// Acknowledges what is stored. An entry with dead letters leaves those first.
    ///
    /// Tells for each entry whether that has worked; after an error the entry may still be pending.
    pub(crate) async fn ack(&self, committed: Committed) -> Vec<(SettledEntry, Result<(), Error>)> {
        let mut plain: HashMap<Partition, Vec<SettledEntry>> = HashMap::new();
        let mut with_dead_letters = Vec::new();
        for entry in committed.into_entries() {
            if entry.dead_letters.is_empty() {
                plain.entry(entry.at.partition).or_default().push(entry);
            } else {
                with_dead_letters.push(entry);
            }
        }
        let plain = join_all(plain.into_iter().map(async |(partition, entries)| {
            let ids: Vec<EntryId> = entries.iter().map(|entry| entry.at.id).collect();
            let acked = self.xack(partition, &ids).await;
            entries.into_iter().map(|entry| (entry, acked.clone())).collect::<Vec<_>>()
        }));
        let mut done: Vec<_> = plain.await.into_iter().flatten().collect();
        for entry in with_dead_letters {
            let acked = self.settle_with_dead_letters(&entry).await;
            done.push((entry, acked));
        }
        done
    }

    async fn xack(&self, partition: Partition, ids: &[EntryId]) -> Result<(), Error> {
        let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
        self.commands.xack::<u64, _, _, _>(self.key(partition), &self.group, ids).await.map(drop)
    }

    async fn settle_with_dead_letters(&self, entry: &SettledEntry) -> Result<(), Error> {
        let Position { partition, id } = entry.at;
        let keys = vec![self.key(partition), self.keys.dead_letters(partition)];
        let mut args: Vec<Bytes> =
            [&self.group, &id.to_string(), &self.consumer, &entry.dead_letters.len().to_string()]
                .map(|text| Bytes::copy_from_slice(text.as_bytes()))
                .into();
        for letter in &entry.dead_letters {
            let fields = letter.fields();
            args.push(fields.len().to_string().into());
            args.extend(fields);
        }
        self.commands.eval::<i64, _, _, _>(SETTLE_WITH_DEAD_LETTERS, keys, args).await.map(drop)
    }

    /// Trims from a partition what every group on it has acknowledged and what is older than `retention_ms`.
    /// Returns how many entries went.
    ///
    /// The order of the reads is what makes it safe. An entry that is delivered between the two reads is above the
    /// last-delivered id of the first; one that was delivered before it is either pending in the second, or
    /// acknowledged.
    pub(crate) async fn trim(&self, partition: Partition, retention_ms: u64) -> Result<u64, Error> {
        let key = self.key(partition);
        let groups = reply::groups(self.commands.xinfo_groups(&key).await?)?;
        let mut keep_from: Option<EntryId> = None;
        for group in groups {
            let summary: Value = self.commands.xpending(&key, group.name, ()).await?;
            let delivered = group.last_delivered.next();
            let group_keeps =
                reply::smallest_pending(&summary)?.map_or(delivered, |pending| pending.min(delivered));
            keep_from = Some(keep_from.map_or(group_keeps, |keep| keep.min(group_keeps)));
        }
        let Some(mut keep_from) = keep_from else { return Ok(0) };
        if retention_ms > 0 {
            let oldest_kept_ms = self.now_ms().await?.saturating_sub(retention_ms);
            keep_from = keep_from.min(EntryId { ms: oldest_kept_ms, seq: 0 });
        }
        self.commands.xtrim(&key, ("MINID", "=", keep_from.to_string())).await
    }

    /// Redis's clock, in milliseconds since the Unix epoch.
    async fn now_ms(&self) -> Result<u64, Error> {
        let command = CustomCommand::new_static("TIME", ClusterHash::Random, false);
        let (seconds, microseconds): (u64, u64) = self.commands.custom(command, Vec::<String>::new()).await?;
        Ok(seconds * 1_000 + microseconds / 1_000)
    }

    /// Takes this consumer out of the groups where it has nothing pending.
    pub(crate) async fn leave(&self) -> Result<(), Error> {
        let left = self.partitions.iter().map(async |(_, stream)| {
            let args = vec![self.group.clone(), self.consumer.clone()];
            self.commands.eval::<i64, _, _, _>(LEAVE_IF_NOTHING_PENDING, vec![stream.clone()], args).await
        });
        try_join_all(left).await.map(drop)
    }

    /// Whether Redis answers.
    pub(crate) async fn ping(&self) -> Result<(), Error> {
        self.commands.ping::<String>(None).await.map(drop)
    }
}
