//! Traits for the Redis commands of a consumer. Unit tests replace Redis with fakes in memory.

use std::{collections::HashSet, time::Duration};

use fred::prelude::Error;
use shared::wire::partition::Partition;

use crate::{
    entry::{EntryId, Position, RawEntry},
    store::proof::Committed,
    stream::{
        AckOutcome, Claimed, ClaimedDeparted, GroupError, Heartbeat, Member, MemberName, QuarantineTry,
    },
};

/// Size of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Page {
    /// Maximum number of entries.
    pub(crate) count: u64,
    /// Number of bytes at which the page ends. Entries that Redis reads unmeasured may exceed it.
    pub(crate) bytes: u64,
    /// Number of entries that Redis reads at a time, and whose bytes it does not measure.
    pub(crate) unmeasured: u64,
    /// Time limit of a read on a connection of its own; `None` for a read on the shared connection.
    pub(crate) patience: Option<Duration>,
}

impl Page {
    pub(crate) fn at_most(self, count: u64) -> Self {
        Self { count: self.count.min(count), ..self }
    }
}

/// Stream commands of one consumer. After an error, a command may have been executed.
pub(crate) trait GroupStream: Clone + Send + Sync + 'static {
    /// Creates the stream of a partition and its group if they are missing. A new group starts at the first entry of the
    /// stream: entries already in the stream were accepted and must be stored.
    fn ensure_group(&self, partition: Partition) -> impl Future<Output = Result<(), GroupError>> + Send;

    /// Reads a page of new entries of a partition. After an error, Redis may have delivered entries in a lost reply. They
    /// are pending then.
    fn read_new(
        &self,
        partition: Partition,
        page: Page,
    ) -> impl Future<Output = Result<Vec<RawEntry>, Error>> + Send;

    /// Reads a page of pending entries of this consumer in a partition, with ids greater than `after`. Counts no delivery.
    fn read_own_pending(
        &self,
        partition: Partition,
        after: EntryId,
        page: Page,
    ) -> impl Future<Output = Result<Vec<RawEntry>, Error>> + Send;

    /// Claims a page of pending entries that have been idle for at least `min_idle_ms`, starting at `cursor`. Those of this
    /// consumer are no longer idle afterwards. Counts no delivery. Entries that were deleted from the stream stay pending.
    fn claim(
        &self,
        partition: Partition,
        min_idle_ms: u64,
        cursor: EntryId,
        page: Page,
    ) -> impl Future<Output = Result<Claimed, Error>> + Send;

    /// Claims a page of pending entries of a departed consumer: one that is not among `members` and has been idle for at
    /// least `idle_ms`, or the one to which operators hand over entries. Counts no delivery. Returns `None` if no departed
    /// consumer has pending entries.
    fn claim_departed(
        &self,
        partition: Partition,
        members: &HashSet<MemberName>,
        idle_ms: u64,
        page: Page,
    ) -> impl Future<Output = Result<Option<ClaimedDeparted>, Error>> + Send;

    /// Makes entries claimable again, from `cursor` on, whose idle time stands still after Redis's clock was set back.
    fn restamp(
        &self,
        partition: Partition,
        members: &HashSet<MemberName>,
        cursor: EntryId,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Counts a delivery of each of these entries of one reply, which this process is about to process. Returns the number of
    /// deliveries of each; 0 if it is not pending with this consumer any more.
    fn deliver(&self, entries: &[Position]) -> impl Future<Output = Result<Vec<u64>, Error>> + Send;

    /// Returns the number of deliveries of an entry as counted by Redis; 0 if the entry is not pending.
    fn deliveries(&self, at: Position) -> impl Future<Output = Result<u64, Error>> + Send;

    /// Removes entries of one reply that were deleted from the stream from the pending entries list.
    fn forget_deleted(&self, entries: &[Position]) -> impl Future<Output = Result<(), Error>> + Send;

    /// Returns the tries on record of each of these entries: those that have begun and not ended.
    fn quarantines(
        &self,
        partition: Partition,
        ids: &[EntryId],
    ) -> impl Future<Output = Result<Vec<Vec<QuarantineTry>>, Error>> + Send;

    /// Records that this process tries these entries. `entries` is the number of entries that it tries together.
    fn begin_quarantine(
        &self,
        partition: Partition,
        ids: &[EntryId],
        entries: usize,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Removes the tries of this process in a partition: it has survived them. Also removes the records of entries that are
    /// not pending any more.
    fn end_quarantine(&self, partition: Partition) -> impl Future<Output = Result<(), Error>> + Send;

    /// Acknowledges committed entries. The dead letters of an entry are appended atomically with its acknowledgement.
    fn ack(&self, committed: Committed) -> impl Future<Output = AckOutcome> + Send;
}

/// Membership records of the group, for one member.
pub(crate) trait Heartbeats: Send + Sync + 'static {
    fn consumer(&self) -> &str;

    fn group(&self) -> &str;

    /// Returns the random token of this process. It distinguishes processes that use the same name.
    fn process(&self) -> &str;

    /// Records a heartbeat. Returns all members that have not resigned, including this one; `None` if another process uses
    /// the name of this consumer.
    fn heartbeat(
        &self,
        heartbeat: &Heartbeat,
    ) -> impl Future<Output = Result<Option<Vec<Member>>, Error>> + Send;

    /// Removes the record of this member, unless it belongs to another process.
    fn resign(&self) -> impl Future<Output = Result<(), Error>> + Send;
}
