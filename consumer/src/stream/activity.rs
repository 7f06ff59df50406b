//! What this process has done to the streams, which tells a watch of them what happened between two samples.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use fred::prelude::Error;
use shared::wire::partition::Partition;

use crate::{
    entry::EntryId,
    stream::{PartitionInfo, Streams, inspect::Inspected},
};

/// Activity of this process in all partitions.
#[derive(Clone, Debug, Default)]
pub(super) struct Activity(Arc<Mutex<HashMap<Partition, Arc<PartitionActivity>>>>);

/// Activity of this process in one partition.
#[derive(Debug, Default)]
pub(super) struct PartitionActivity {
    /// Number of entries that this process has read.
    read: AtomicU64,
    /// The latest creation of the group, until a sample takes it. Locked while the group is created and while a sample is
    /// taken, so that a sample with a creation was taken after it.
    pub(super) created: tokio::sync::Mutex<Option<CreatedGroup>>,
    /// Newest entry of the latest sample.
    newest: Mutex<Option<EntryId>>,
}

/// Creation of the group by this process, or by another one since this process has found it missing.
#[derive(Clone, Debug)]
pub struct CreatedGroup {
    /// State of the stream before. No consumer had read what is in it, so nothing of it was trimmed.
    pub stream: PartitionInfo,
    /// Number of entries that this process had read.
    pub read: u64,
}

/// State of a partition, with what this process has done there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample {
    pub(crate) info: PartitionInfo,
    /// Number of entries that this process had read before.
    pub(crate) read: u64,
    /// Creation of the group since the sample before.
    pub(crate) created: Option<CreatedGroup>,
    /// Whether the stream has gone back to a state before the newest entry of the sample before.
    pub(crate) went_back: bool,
}

impl Activity {
    pub(super) fn of(&self, partition: Partition) -> Arc<PartitionActivity> {
        let mut partitions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(partitions.entry(partition).or_default())
    }
}

impl PartitionActivity {
    pub(super) fn add_read(&self, entries: usize) {
        self.read.fetch_add(entries as u64, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }
}

impl Streams {
    /// Samples a partition.
    pub(crate) async fn sample(&self, partition: Partition) -> Result<Sample, Error> {
        let activity = self.activity.of(partition);
        let mut created = activity.created.lock().await;
        // Before the stream is inspected: an entry that is delivered meanwhile may count as read later.
        let read = activity.read();
        let seen = *activity.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let Inspected { info, newest, went_back } = self.inspect_since(partition, seen).await?;
        *activity.newest.lock().unwrap_or_else(PoisonError::into_inner) = newest;
        Ok(Sample { info, read, created: created.take(), went_back })
    }
}
