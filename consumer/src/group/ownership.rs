//! The partitions of this consumer, as all other modules see them.

use std::{collections::HashSet, sync::Arc};

use shared::wire::partition::{Partition, PartitionCount};

use crate::{group::assignment::Assignment, stream::Paused};

/// The partitions that this consumer reads, and the other members of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ownership {
    pub(crate) assignment: Assignment,
    /// The names of all members: their pending entries are theirs.
    pub(crate) members: Arc<HashSet<String>>,
    pub(crate) partitions: PartitionCount,
    /// Partitions that no consumer reads for now.
    pub(crate) paused: Paused,
}

impl Ownership {
    /// Returns the partitions that are this consumer's.
    pub(crate) fn own(&self) -> &[Partition] {
        &self.assignment.own
    }

    /// Returns this consumer's partitions that are not paused.
    pub(crate) fn to_read(&self) -> impl Iterator<Item = Partition> {
        self.own().iter().copied().filter(|partition| !self.paused.contains(*partition))
    }
}
