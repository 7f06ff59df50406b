//! Partition ownership of this consumer, as published to the other modules.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use shared::wire::partition::{Partition, PartitionCount};
use tokio::time::Instant;

use crate::{
    group::assignment::Assignment,
    stream::{LIVENESS_TIMEOUT, MemberName, Paused},
};

/// Partitions assigned to this consumer, and the members of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ownership {
    pub(crate) assignment: Assignment,
    /// Names of all members. Pending entries of any other consumer are claimed after the liveness timeout.
    pub(crate) members: Arc<HashSet<MemberName>>,
    /// Tokens of the processes of all members.
    pub(crate) processes: Arc<HashSet<String>>,
    /// `None` while heartbeats fail.
    pub(crate) contact: Option<Contact>,
    pub(crate) partitions: PartitionCount,
    /// Partitions paused by an operator.
    pub(crate) paused: Paused,
}

/// Uninterrupted series of successful heartbeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Contact {
    pub(crate) since: Instant,
    /// Time at which the last heartbeat was sent. The members are those of its reply.
    pub(crate) last: Instant,
}

impl Ownership {
    /// Returns the partitions assigned to this consumer.
    pub(crate) fn own(&self) -> &[Partition] {
        &self.assignment.own
    }

    /// Returns the partitions whose state this consumer reports: its own, and those without an owner.
    pub(crate) fn responsible_for(&self) -> BTreeSet<Partition> {
        self.assignment.own.iter().chain(&self.assignment.orphans).copied().collect()
    }

    /// Returns the assigned partitions that are not paused.
    pub(crate) fn to_read(&self) -> impl Iterator<Item = Partition> {
        self.own().iter().copied().filter(|partition| !self.paused.contains(*partition))
    }

    /// Returns whether every process that sent a heartbeat before `at`, and is alive, is among the members: they are of a later
    /// reply, and each live member has had the time to send a heartbeat since an outage of Redis.
    pub(crate) fn knows_the_living_of(&self, at: Instant) -> bool {
        self.contact.is_some_and(|contact| contact.last >= at && contact.since.elapsed() >= LIVENESS_TIMEOUT)
    }
}
