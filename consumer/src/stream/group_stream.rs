//! The streams behind traits: everything that the state machines ask of Redis. Tests put a group in memory in its place.

use std::collections::HashSet;

use fred::prelude::Error;
use shared::wire::partition::Partition;

use crate::{
    entry::{EntryId, Position, RawEntry},
    store::proof::Committed,
    stream::{AckOutcome, Claimed, ClaimedDeparted, GroupError, Heartbeat, Member},
};

/// The streams of the partitions, as one member of the group sees them. After an error a command may have been executed.
pub(crate) trait GroupStream: Clone + Send + Sync + 'static {
    /// Creates the stream of a partition and its group where they are missing. A group starts at the very first entry,
    /// never at the end: entries that are already in the stream were accepted and must be stored.
    fn ensure_group(&self, partition: Partition) -> impl Future<Output = Result<(), GroupError>> + Send;

    /// Reads up to `count` new entries of a partition. After an error Redis may have delivered entries in a reply that
    /// never came: they are pending then.
    fn read_new(
        &self,
        partition: Partition,
        count: u64,
    ) -> impl Future<Output = Result<Vec<RawEntry>, Error>> + Send;

    /// Reads up to `count` entries of a partition that were delivered to this consumer and never acknowledged, from the
    /// one after `after` on.
    fn read_own_pending(
        &self,
        partition: Partition,
        after: EntryId,
        count: u64,
    ) -> impl Future<Output = Result<Vec<RawEntry>, Error>> + Send;

    /// Claims up to `count` entries that have been pending for `min_idle_ms`, from `cursor` on.
    fn claim(
        &self,
        partition: Partition,
        min_idle_ms: u64,
        cursor: EntryId,
        count: u64,
    ) -> impl Future<Output = Result<Claimed, Error>> + Send;

    /// Claims up to `count` entries from a consumer that is not among the members and sent no command for `idle_ms`.
    /// Returns `None` when there is no such consumer with pending entries.
    fn claim_departed(
        &self,
        partition: Partition,
        members: &HashSet<String>,
        idle_ms: u64,
        count: u64,
    ) -> impl Future<Output = Result<Option<ClaimedDeparted>, Error>> + Send;

    /// Returns how often an entry was delivered, by Redis's own count; 0 if it isn't pending.
    fn deliveries(&self, at: Position) -> impl Future<Output = Result<u64, Error>> + Send;

    /// Removes entries from the pending list that are no longer in the stream. There is nothing left to lose.
    fn forget_deleted(
        &self,
        partition: Partition,
        ids: &[EntryId],
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Records that an entry's quarantine begins. Returns how many of its quarantines have begun and not ended.
    fn begin_quarantine(&self, at: Position) -> impl Future<Output = Result<u64, Error>> + Send;

    /// Records that this process has survived an entry's quarantine.
    fn end_quarantine(&self, at: Position) -> impl Future<Output = Result<(), Error>> + Send;

    /// Acknowledges stored entries. The dead letters of an entry are appended first, as one step with its acknowledgement.
    fn ack(&self, committed: Committed) -> impl Future<Output = AckOutcome> + Send;
}

/// The membership record of the group, as one member sees it.
pub(crate) trait Heartbeats: Send + Sync + 'static {
    /// Returns this consumer's name in the group.
    fn consumer(&self) -> &str;

    /// Returns the group's name.
    fn group(&self) -> &str;

    /// Records a sign of life. Returns all members that have not resigned, this one among them, or `None` when another
    /// process has its name.
    fn heartbeat(
        &self,
        heartbeat: &Heartbeat,
    ) -> impl Future<Output = Result<Option<Vec<Member>>, Error>> + Send;

    /// Removes this consumer from the members, unless the record is another process's.
    fn resign(&self, token: &str) -> impl Future<Output = Result<(), Error>> + Send;
}
