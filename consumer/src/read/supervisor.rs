//! The readers of this process: one for each partition that is this consumer's.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
};

use fred::prelude::Error;
use shared::{
    runtime::admin::Check,
    wire::partition::{Partition, PartitionCount},
};
use tokio::{
    sync::watch,
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;

use crate::{group::membership::Ownership, read::partition_reader::PartitionReader};

/// Keeps readers on the partitions that this consumer owns.
pub(crate) struct Supervisor<F> {
    /// Makes a reader.
    pub(crate) reader: F,
    pub(crate) ownership: watch::Receiver<Ownership>,
    /// Whether an earlier process may have had this consumer's name, and left entries pending anywhere.
    pub(crate) stable_name: bool,
    pub(crate) shutdown: CancellationToken,
}

/// A reader has panicked.
pub(crate) struct ReaderCrashed;

/// Running readers, each told whether its partition is still wanted.
#[derive(Default)]
struct Readers {
    running: JoinSet<Partition>,
    wanted: HashMap<Partition, watch::Sender<bool>>,
}

impl<F: Fn(Partition) -> PartitionReader> Supervisor<F> {
    /// Reads until shutdown, and until every reader has ended.
    pub(crate) async fn run(mut self, partitions: PartitionCount) -> Result<(), ReaderCrashed> {
        let mut readers = Readers::default();
        if self.stable_name {
            // Readers of what is not ours end when they have found what the name has pending there.
            partitions.partitions().for_each(|partition| readers.start((self.reader)(partition), true));
        }
        loop {
            let to_read: HashSet<Partition> = self.ownership.borrow_and_update().to_read().collect();
            for (partition, wanted) in &readers.wanted {
                let is_ours = to_read.contains(partition);
                wanted.send_if_modified(|wanted| std::mem::replace(wanted, is_ours) != is_ours);
            }
            for partition in to_read {
                if !readers.wanted.contains_key(&partition) {
                    readers.start((self.reader)(partition), false);
                }
            }
            tokio::select! {
                changed = self.ownership.changed() => if changed.is_err() { break },
                () = self.shutdown.cancelled() => break,
                Some(ended) = readers.running.join_next() => readers.ended(ended)?,
            }
        }
        drop(self);
        // Without membership nothing is ours to read.
        for wanted in readers.wanted.values() {
            wanted.send_replace(false);
        }
        while let Some(ended) = readers.running.join_next().await {
            readers.ended(ended)?;
        }
        Ok(())
    }
}

impl Readers {
    fn start(&mut self, reader: PartitionReader, must_recover_pending: bool) {
        let (partition, wanted) = (reader.partition, watch::Sender::new(true));
        let is_wanted = wanted.subscribe();
        self.wanted.insert(partition, wanted);
        self.running.spawn(async move {
            reader.run(must_recover_pending, is_wanted).await;
            partition
        });
    }

    fn ended(&mut self, ended: Result<Partition, JoinError>) -> Result<(), ReaderCrashed> {
        self.wanted.remove(&ended.map_err(|_| ReaderCrashed)?);
        Ok(())
    }
}

/// Whether the readers can read, for `/readyz` and for the log, which has a line for all of them together.
pub(crate) struct ReadHealth {
    check: Check,
    failing: Mutex<HashSet<Partition>>,
}

impl ReadHealth {
    pub(crate) fn new(check: Check) -> Self {
        check.pass();
        Self { check, failing: Mutex::default() }
    }

    /// A reader could read.
    pub(crate) fn passed(&self, partition: Partition) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        if failing.remove(&partition) && failing.is_empty() && self.check.pass() {
            tracing::info!("all partitions are read again");
        }
    }

    /// A reader could not read.
    pub(crate) fn failed(&self, partition: Partition, error: &Error) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        failing.insert(partition);
        let why = format!("reading {} partitions fails, one of them with: {error}", failing.len());
        if self.check.fail(why) {
            tracing::warn!(%partition, %error, "reading from Redis failed");
        } else {
            tracing::debug!(%partition, %error, "reading from Redis failed");
        }
    }
}
