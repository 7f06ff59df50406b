//! Stream commands of one consumer: groups, reads, claims, acknowledgements, trimming.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use fred::prelude::{Error, Value};
use futures_util::future::{join, join_all, try_join_all};
use shared::{
    error_chain::one_line,
    redis::{self, Connections, Impaired, Incarnation, Retry},
    wire::{
        dead_letter::Reason,
        partition::{KeyPrefix, Partition, PartitionCount},
    },
};
use thiserror::Error as ThisError;

use crate::{
    entry::{EntryId, Position, RawEntry},
    store::proof::{Committed, SettledEntry},
    stream::{CreatedGroup, GroupStream, MemberName, Page, REASSIGN_CONSUMER, activity::Activity, reply},
};

/// Appends the dead letters of an entry and acknowledges the entry, atomically, so that a redelivered entry never writes its
/// dead letters twice. Does nothing if the entry is not pending.
///
/// KEYS: stream, dead letters. ARGV: group, entry id, consumer, number of dead letters; then for each dead
/// letter the number of its fields and values, followed by these.
///
/// Also runs when Redis is out of memory: an unsettled entry prevents all later entries from being trimmed.
const SETTLE: &str = include_str!("scripts/settle.lua");

/// Reads new entries, a few at a time, until a number of entries or of bytes is reached. XREADGROUP has no limit of bytes, and
/// large entries may follow any number of small ones.
///
/// KEYS: stream. ARGV: group, consumer, maximum number of entries, number of bytes, number of entries at a time. Returns the
/// entries.
const READ_WITHIN: &str = include_str!("scripts/read_within.lua");

/// Reads pending entries of this consumer. Changes nothing, whereas XREADGROUP would count a delivery of each of them, and some
/// may be in flight.
///
/// KEYS: stream. ARGV: group, consumer, id after which entries are read, maximum number of entries, number of bytes at which
/// the page ends. Returns the entries; the fields of one that was deleted from the stream are nil.
const READ_OWN_PENDING: &str = include_str!("scripts/read_own_pending.lua");

/// Counts a delivery of each entry that is pending with this consumer. Claims count none: a claimed entry may be in flight in
/// this process.
///
/// KEYS: stream. ARGV: group, consumer, then the ids. Returns the number of deliveries of each entry; 0 if it is not pending
/// with this consumer, or was deleted from the stream.
const DELIVER: &str = include_str!("scripts/deliver.lua");

/// Trims entries that every group of the stream has acknowledged and that are older than the retention. Atomic, so that no
/// entry can be delivered, and no group created, between the checks and the trim.
///
/// Ids are compared as zero-padded text, because Lua numbers cannot represent all 64-bit integers.
///
/// KEYS: stream. ARGV: retention in milliseconds. Returns the number of trimmed entries.
const TRIM: &str = include_str!("scripts/trim.lua");

/// Records that a process tries entries in quarantine. A record lists the tries of an entry as `process/entries`, separated
/// by spaces; a process has one try of an entry at most. Also runs when Redis is out of memory, because draining must
/// continue.
///
/// KEYS: quarantine. ARGV: process, number of entries of the try, then the ids. Returns the number of ids.
const BEGIN_QUARANTINE: &str = include_str!("scripts/begin_quarantine.lua");

/// Removes the tries of a process, and the records of entries that are not pending.
///
/// KEYS: stream, quarantine. ARGV: group, process.
const END_QUARANTINE: &str = include_str!("scripts/end_quarantine.lua");

/// Claims pending entries that have been idle for the minimum idle time, own ones included, without counting a delivery.
/// XAUTOCLAIM and XCLAIM remove entries that were deleted
/// from the stream from the pending entries list: if the reply is lost, so is the loss. Such entries are not claimed here.
///
/// KEYS: stream. ARGV: group, claiming consumer, minimum idle time in milliseconds, first id, maximum number of entries,
/// maximum number of pending entries to visit, number of bytes at which the claim ends. Returns `[last visited id or empty at the end of the list, entries, ids of
/// deleted entries that are pending with the claiming consumer]`.
const CLAIM: &str = include_str!("scripts/claim.lua");

/// Number of pending entries that a claim visits.
const CLAIM_VISITS: u64 = 1_000;

/// Sets idle times of zero to the current time: those of consumers that are no members, and of a page of pending entries. When
/// Redis's clock is set back, times in the future have an idle time of zero until the clock has caught up, and no claim
/// finds them. For an entry that was just delivered, nothing changes.
///
/// KEYS: stream. ARGV: group, start of the page, maximum number of entries, then the members. Returns the number of entries.
const RESTAMP: &str = include_str!("scripts/restamp.lua");

/// Maximum number of pending entries per page of [`RESTAMP`].
const RESTAMPED: u64 = 1_000;

/// Claims pending entries of a departed consumer: one that is not a member and has been idle for the minimum idle time. Also
/// claims those of [`REASSIGN_CONSUMER`], which never reads, however recently entries were handed over to it. Removes departed consumers without pending entries from the group. XGROUP DELCONSUMER discards pending entries, so
/// consumers that have some are kept.
///
/// KEYS: stream. ARGV: group, claiming consumer, minimum idle time in milliseconds, maximum number of entries,
/// [`REASSIGN_CONSUMER`], number of bytes at which the claim ends, then the members. Returns `[departed consumer, entries, ids of entries deleted from the stream]`. The deleted
/// entries stay in the pending entries list.
const CLAIM_DEPARTED: &str = include_str!("scripts/claim_departed.lua");

/// Removes a consumer from the group unless it has pending entries, which XGROUP DELCONSUMER would discard.
///
/// KEYS: stream. ARGV: group, consumer. Returns 1 if the consumer was removed, 0 otherwise.
const REMOVE_CONSUMER: &str = include_str!("scripts/remove_consumer.lua");

/// Error: a consumer group is missing and cannot be created.
#[derive(Debug, ThisError)]
#[error("cannot create the consumer group on stream {stream}")]
pub struct GroupError {
    pub(super) stream: String,
    pub(super) source: Error,
}

/// Access to the streams for one consumer of a group.
#[derive(Clone)]
pub struct Streams {
    pub(super) redis: Connections,
    pub(super) keys: KeyPrefix,
    pub(super) group: String,
    pub(super) consumer: String,
    pub(super) process: String,
    pub(super) activity: Activity,
}

/// Result of a claim.
#[derive(Debug, PartialEq, Eq)]
pub struct Claimed {
    pub entries: Vec<RawEntry>,
    /// Entries pending with this consumer that were deleted from the stream. They are lost unless they are in flight, and stay
    /// pending.
    pub deleted: Vec<Position>,
    /// Start of the next page; zero after the last page.
    pub cursor: EntryId,
}

/// Result of a claim from a departed consumer.
#[derive(Debug, PartialEq, Eq)]
pub struct ClaimedDeparted {
    /// Departed consumer.
    pub from: String,
    pub entries: Vec<RawEntry>,
    /// Entries pending with it that were deleted from the stream. They stay pending.
    pub deleted: Vec<Position>,
}

/// Try of an entry in quarantine that has begun and not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuarantineTry {
    /// Process that tries it.
    pub process: String,
    /// Number of entries that the process tries together; 1 if it has no other entry in flight.
    pub entries: usize,
}

/// Result of the acknowledgement of a batch.
#[derive(Debug, Default)]
pub struct AckOutcome {
    /// All entries of the batch, whether acknowledged or not.
    pub entries: Vec<SettledEntry>,
    /// Number of entries that were pending until this acknowledgement.
    pub acknowledged: u64,
    /// Number of entries that may still be pending, with an error.
    pub failed: Option<(usize, Error)>,
    /// Partitions whose server was replaced since the entries were read. The entries are still pending if the replacement has
    /// them.
    pub replaced: HashSet<Partition>,
    /// Dead letters that were appended.
    pub dead_letters: Vec<(Position, Reason)>,
}

impl AckOutcome {
    fn add(&mut self, partition: Partition, acked: Result<u64, Error>, entries: usize) {
        match acked {
            Ok(acknowledged) => self.acknowledged += acknowledged,
            Err(error) => {
                if redis::is_replaced(&error) {
                    self.replaced.insert(partition);
                }
                let failed = self.failed.get_or_insert((0, error));
                failed.0 += entries;
            }
        }
    }
}

impl Streams {
    pub fn new(redis: Connections, keys: KeyPrefix, group: String, consumer: String) -> Self {
        let process = format!("{:016x}", rand::random::<u64>());
        Self { redis, keys, group, consumer, process, activity: Activity::default() }
    }

    /// Returns the template of the stream names, such as `likes:{partition}`.
    pub fn template(&self) -> String {
        self.keys.stream_template()
    }

    /// Returns the prefix of all keys.
    pub(crate) fn prefix(&self) -> String {
        self.keys.to_string()
    }

    /// Returns the key of the stream of a partition.
    pub(crate) fn key(&self, partition: Partition) -> String {
        self.keys.stream(partition)
    }

    /// Creates missing streams and groups. If only some Redis servers are unavailable, logs the groups that cannot be created;
    /// their partition readers create them later.
    pub async fn ensure_groups(&self, partitions: PartitionCount) -> Result<(), GroupError> {
        let ensured = join_all(partitions.partitions().map(|partition| self.ensure_group(partition))).await;
        let all_failed = ensured.iter().all(Result::is_err);
        for failed in ensured.into_iter().filter_map(Result::err) {
            if all_failed || !redis::is_away(&failed.source) {
                return Err(failed);
            }
            tracing::warn!(error = one_line(&failed), "cannot create a consumer group yet");
        }
        Ok(())
    }

    async fn create_group(&self, partition: Partition, stream: &str) -> Result<(), Error> {
        let activity = self.activity.of(partition);
        let mut last_created = activity.created.lock().await;
        // Also because Redis rejects XGROUP CREATE where it refuses writes, before it checks whether the group exists.
        let info = self.inspect_stream(partition, None).await?.info;
        if info.group.is_some() {
            return Ok(());
        }
        let args = ["CREATE", stream, &self.group, "0", "MKSTREAM"].map(Value::from).into();
        match self.redis.run::<Value>(stream, Retry::Idempotent, "XGROUP", args).await {
            Ok(_) => tracing::info!(stream, group = self.group, "consumer group created"),
            // Also if this process has created it, and the reply was lost.
            Err(error) if redis::error_code(&error) == Some("BUSYGROUP") => {}
            Err(error) => return Err(error),
        }
        *last_created = Some(CreatedGroup { stream: info, read: activity.read() });
        Ok(())
    }

    /// Counts entries that this consumer has read.
    fn count_read(
        &self,
        partition: Partition,
        read: Result<Vec<RawEntry>, Error>,
    ) -> Result<Vec<RawEntry>, Error> {
        self.activity.of(partition).add_read(read.as_ref().map_or(0, Vec::len));
        read
    }

    /// Runs a script whose only key is the stream of a partition.
    pub(super) async fn eval(
        &self,
        partition: Partition,
        script: &'static str,
        retry: Retry,
        args: impl IntoIterator<Item = impl Into<Value>>,
    ) -> Result<Value, Error> {
        self.redis.eval(script, &[self.key(partition)], retry, args).await
    }

    /// Acknowledges entries. Returns the number of those that were pending.
    async fn xack(&self, redis: &Connections, partition: Partition, ids: &[EntryId]) -> Result<u64, Error> {
        let stream = self.key(partition);
        let ids = ids.iter().map(|id| Value::from(id.to_string()));
        let args = [stream.as_str().into(), self.group.as_str().into()].into_iter().chain(ids).collect();
        redis.run(&stream, Retry::Idempotent, "XACK", args).await
    }

    /// Settles an entry with dead letters. Returns 1 if the entry was pending, 0 if another consumer
    /// settled it before.
    async fn settle(&self, entry: &SettledEntry) -> Result<u64, Error> {
        let Position { partition, id, incarnation } = entry.at;
        let keys = [self.key(partition), self.keys.dead_letters(partition)];
        let mut args: Vec<Bytes> =
            [&self.group, &id.to_string(), &self.consumer, &entry.dead_letters.len().to_string()]
                .map(|text| Bytes::copy_from_slice(text.as_bytes()))
                .into();
        for dead_letter in &entry.dead_letters {
            let fields = dead_letter.fields();
            args.push(fields.len().to_string().into());
            args.extend(fields);
        }
        self.redis.only(incarnation).eval(SETTLE, &keys, Retry::Idempotent, args).await
    }

    /// Trims entries of a partition that every group has acknowledged and that are older than `retention_ms`. Returns the
    /// number of trimmed entries.
    pub async fn trim(&self, partition: Partition, retention_ms: u64) -> Result<u64, Error> {
        let args = vec![retention_ms.to_string()];
        reply::count(&self.eval(partition, TRIM, Retry::Idempotent, args).await?)
    }

    /// Removes the tries of this process from the quarantine records of all partitions.
    pub async fn end_quarantines(&self, partitions: PartitionCount) -> Result<(), Error> {
        let ended = partitions.partitions().map(|partition| self.end_quarantine(partition));
        try_join_all(ended).await.map(drop)
    }

    /// Removes this consumer from the group in all partitions where it has no pending entries.
    pub async fn leave(&self, partitions: PartitionCount) -> Result<(), Error> {
        let left = partitions.partitions().map(|partition| self.remove_consumer(partition, &self.consumer));
        try_join_all(left).await.map(drop)
    }

    /// Removes a consumer from the group in one partition, unless it has pending entries there. Returns whether it was
    /// removed.
    pub async fn remove_consumer(&self, partition: Partition, consumer: &str) -> Result<bool, Error> {
        let args = vec![self.group.clone(), consumer.to_owned()];
        Ok(reply::count(&self.eval(partition, REMOVE_CONSUMER, Retry::Idempotent, args).await?)? > 0)
    }

    /// Checks that Redis runs scripts. Passes while any of its servers does.
    pub(crate) async fn check_scripts(&self) -> Result<(), Impaired> {
        let refusing = self.redis.check_scripts().await;
        let all_refuse = refusing.len() == self.redis.servers().len();
        refusing.into_iter().next().filter(|_| all_refuse).map_or(Ok(()), Err)
    }

    /// Checks that all Redis servers reply, accept writes and run scripts.
    pub async fn check(&self) -> Result<(), Impaired> {
        let (_, impaired) = self.redis.check().await;
        let refuse_scripts = self.redis.check_scripts().await;
        impaired.into_iter().chain(refuse_scripts).next().map_or(Ok(()), Err)
    }
}

impl GroupStream for Streams {
    async fn ensure_group(&self, partition: Partition) -> Result<(), GroupError> {
        let stream = self.key(partition);
        let created = self.create_group(partition, &stream).await;
        created.map_err(|source| GroupError { stream, source })
    }

    async fn read_new(&self, partition: Partition, page: Page) -> Result<Vec<RawEntry>, Error> {
        let stream = self.key(partition);
        let count = page.count.to_string();
        if page.count > page.unmeasured && page.patience.is_none() {
            let (bytes, unmeasured) = (page.bytes.to_string(), page.unmeasured.to_string());
            let args = [&self.group, &self.consumer, &count, &bytes, &unmeasured].map(String::clone);
            let keys = [stream];
            let read = self.redis.eval_identifying(READ_WITHIN, &keys, Retry::NonIdempotent, args);
            return self.count_read(partition, reply::entries(partition, read.await?));
        }
        let args = ["GROUP", &self.group, &self.consumer, "COUNT", &count, "STREAMS", &stream, ">"];
        let args = args.map(Value::from).into();
        let read = match page.patience {
            None => self.redis.run_identifying(&stream, Retry::NonIdempotent, "XREADGROUP", args).await?,
            Some(limit) => self.redis.run_patiently(&stream, limit, "XREADGROUP", args).await?,
        };
        self.count_read(partition, reply::read(partition, read))
    }

    async fn read_own_pending(
        &self,
        partition: Partition,
        after: EntryId,
        page: Page,
    ) -> Result<Vec<RawEntry>, Error> {
        let stream = self.key(partition);
        let [count, bytes] = [page.count, page.bytes].map(|number| number.to_string());
        let args = [&self.group, &self.consumer, &after.to_string(), &count, &bytes].map(Value::from);
        let read = match page.patience {
            None => self.redis.eval_identifying(READ_OWN_PENDING, &[stream], Retry::Idempotent, args).await?,
            Some(limit) => {
                let eval = [READ_OWN_PENDING, "1", &stream].map(Value::from).into_iter().chain(args);
                self.redis.run_patiently(&stream, limit, "EVAL", eval.collect()).await?
            }
        };
        // After a lost reply, these are the entries of that read.
        self.count_read(partition, reply::entries(partition, read))
    }

    async fn claim(
        &self,
        partition: Partition,
        min_idle_ms: u64,
        cursor: EntryId,
        page: Page,
    ) -> Result<Claimed, Error> {
        let [min_idle_ms, count, visits, bytes] =
            [min_idle_ms, page.count, CLAIM_VISITS, page.bytes].map(|number| number.to_string());
        let cursor = cursor.to_string();
        let args = [&self.group, &self.consumer, &min_idle_ms, &cursor, &count, &visits, &bytes];
        let (keys, args) = ([self.key(partition)], args.map(String::clone));
        let claimed = self.redis.eval_identifying(CLAIM, &keys, Retry::NonIdempotent, args);
        reply::claimed(partition, claimed.await?)
    }

    async fn claim_departed(
        &self,
        partition: Partition,
        members: &HashSet<MemberName>,
        idle_ms: u64,
        page: Page,
    ) -> Result<Option<ClaimedDeparted>, Error> {
        let [idle_ms, count, bytes] = [idle_ms, page.count, page.bytes].map(|number| number.to_string());
        let args =
            [&self.group, &self.consumer, &idle_ms, &count, REASSIGN_CONSUMER, &bytes].map(Value::from);
        let args = args.into_iter().chain(members.iter().map(MemberName::to_value));
        let keys = [self.key(partition)];
        let claimed = self.redis.eval_identifying(CLAIM_DEPARTED, &keys, Retry::NonIdempotent, args);
        reply::claimed_departed(partition, claimed.await?)
    }

    async fn restamp(
        &self,
        partition: Partition,
        members: &HashSet<MemberName>,
        cursor: EntryId,
    ) -> Result<(), Error> {
        let args = [self.group.as_str(), &cursor.to_string(), &RESTAMPED.to_string()].map(Value::from);
        let args = args.into_iter().chain(members.iter().map(MemberName::to_value));
        self.eval(partition, RESTAMP, Retry::Idempotent, args).await.map(drop)
    }

    async fn forget_deleted(&self, entries: &[Position]) -> Result<(), Error> {
        let Some(Position { partition, incarnation, .. }) = entries.first() else { return Ok(()) };
        let ids: Vec<EntryId> = entries.iter().map(|at| at.id).collect();
        self.xack(&self.redis.only(*incarnation), *partition, &ids).await.map(drop)
    }

    async fn ack(&self, committed: Committed) -> AckOutcome {
        let mut plain: HashMap<(Partition, Incarnation), Vec<SettledEntry>> = HashMap::new();
        let mut others = Vec::new();
        for entry in committed.into_entries() {
            if entry.dead_letters.is_empty() {
                plain.entry((entry.at.partition, entry.at.incarnation)).or_default().push(entry);
            } else {
                others.push(entry);
            }
        }
        let plain = join_all(plain.into_iter().map(async |((partition, incarnation), entries)| {
            let ids: Vec<EntryId> = entries.iter().map(|entry| entry.at.id).collect();
            (partition, self.xack(&self.redis.only(incarnation), partition, &ids).await, entries)
        }));
        let others = join_all(others.into_iter().map(async |entry| (self.settle(&entry).await, entry)));
        let (plain, others) = join(plain, others).await;

        let mut acknowledged = AckOutcome::default();
        for (partition, acked, entries) in plain {
            acknowledged.add(partition, acked, entries.len());
            acknowledged.entries.extend(entries);
        }
        for (settled, entry) in others {
            if matches!(settled, Ok(1)) {
                acknowledged.dead_letters.extend(entry.dead_letters.iter().map(|l| (entry.at, l.reason())));
            }
            acknowledged.add(entry.at.partition, settled, 1);
            acknowledged.entries.push(entry);
        }
        acknowledged
    }

    async fn quarantines(
        &self,
        partition: Partition,
        ids: &[EntryId],
    ) -> Result<Vec<Vec<QuarantineTry>>, Error> {
        let quarantine = self.keys.quarantine(partition, &self.group);
        let ids = ids.iter().map(|id| Value::from(id.to_string()));
        let args = [quarantine.as_str().into()].into_iter().chain(ids).collect();
        reply::quarantines(self.redis.run(&quarantine, Retry::Idempotent, "HMGET", args).await?)
    }

    async fn begin_quarantine(
        &self,
        partition: Partition,
        ids: &[EntryId],
        entries: usize,
    ) -> Result<(), Error> {
        let keys = [self.keys.quarantine(partition, &self.group)];
        let args = [self.process.clone(), entries.to_string()];
        let args = args.into_iter().chain(ids.iter().map(EntryId::to_string));
        self.redis.eval::<u64>(BEGIN_QUARANTINE, &keys, Retry::Idempotent, args).await.map(drop)
    }

    async fn end_quarantine(&self, partition: Partition) -> Result<(), Error> {
        let keys = [self.key(partition), self.keys.quarantine(partition, &self.group)];
        let args = [self.group.as_str(), &self.process];
        self.redis.eval::<u64>(END_QUARANTINE, &keys, Retry::Idempotent, args).await.map(drop)
    }

    async fn deliver(&self, entries: &[Position]) -> Result<Vec<u64>, Error> {
        let Some(Position { partition, incarnation, .. }) = entries.first() else { return Ok(Vec::new()) };
        let args = [self.group.clone(), self.consumer.clone()];
        let args = args.into_iter().chain(entries.iter().map(|at| at.id.to_string()));
        let redis = self.redis.only(*incarnation);
        redis.eval(DELIVER, &[self.key(*partition)], Retry::NonIdempotent, args).await
    }

    async fn deliveries(&self, at: Position) -> Result<u64, Error> {
        let stream = self.key(at.partition);
        let id = at.id.to_string();
        let args = [&stream, &self.group, &id, &id, "1"].map(Value::from).into();
        reply::deliveries(self.redis.run(&stream, Retry::Idempotent, "XPENDING", args).await?)
    }
}
