//! When entries of each partition were last committed here, until that is told to Redis for people to see.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use shared::wire::partition::Partition;
use tokio::time::Instant;

/// Noted by whoever acknowledges, taken when it is told.
#[derive(Default)]
pub(crate) struct LastCommits(Mutex<HashMap<Partition, Instant>>);

impl LastCommits {
    /// Entries of these partitions are stored; those of one come together as a rule, and cost one look then.
    pub(crate) fn note(&self, partitions: impl Iterator<Item = Partition>) {
        let now = Instant::now();
        let mut commits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut noted = None;
        for partition in partitions {
            if noted.replace(partition) != Some(partition) {
                commits.insert(partition, now);
            }
        }
    }

    /// Those that were noted since this was last asked.
    pub(crate) fn take(&self) -> HashMap<Partition, Instant> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
