//! Partition ownership of this consumer, as published to the other modules.

use std::{collections::HashSet, sync::Arc};

use shared::wire::partition::{Partition, PartitionCount};

use crate::{group::assignment::Assignment, stream::Paused};

/// Partitions assigned to this consumer, and the members of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ownership {
    pub(crate) assignment: Assignment,
    /// Names of all members. Pending entries of any other consumer are claimed after the liveness timeout.
    pub(crate) members: Arc<HashSet<String>>,
    pub(crate) partitions: PartitionCount,
    /// Partitions paused by an operator.
    pub(crate) paused: Paused,
}

impl Ownership {
    /// Returns the partitions assigned to this consumer.
    pub(crate) fn own(&self) -> &[Partition] {
        &self.assignment.own
    }

    /// Returns the assigned partitions that are not paused.
    pub(crate) fn to_read(&self) -> impl Iterator<Item = Partition> {
        self.own().iter().copied().filter(|partition| !self.paused.contains(*partition))
    }
}
