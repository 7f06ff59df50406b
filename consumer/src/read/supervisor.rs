//! Supervisor of the partition readers: one reader per owned partition that is not paused.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use futures_util::FutureExt;
use shared::wire::partition::{Partition, PartitionCount};
use tokio::{
    sync::watch,
    task::{JoinError, JoinSet},
};

use crate::{
    group::ownership::Ownership,
    read::partition_reader::{PartitionReader, ReadContext},
    stream::GroupStream,
};

/// Starts and stops partition readers as ownership changes.
pub(crate) struct Supervisor<S> {
    pub(crate) context: Arc<ReadContext<S>>,
    pub(crate) ownership: watch::Receiver<Ownership>,
    /// Whether an earlier process may have left entries pending under this consumer's name, in any partition.
    pub(crate) stable_name: bool,
}

/// Error: a partition reader panicked.
pub(crate) struct ReaderCrashed;

/// Running readers, each with a channel that stops it when its partition becomes unwanted.
#[derive(Default)]
struct Readers {
    running: JoinSet<Partition>,
    wanted: HashMap<Partition, watch::Sender<bool>>,
}

impl<S: GroupStream> Supervisor<S> {
    /// Runs the readers until shutdown, then waits until every reader has ended.
    pub(crate) async fn run(mut self, partitions: PartitionCount) -> Result<(), ReaderCrashed> {
        let mut readers = Readers::default();
        if self.stable_name {
            // Readers of partitions that other members own end after recovering this consumer's pending entries.
            partitions.partitions().for_each(|partition| self.start(&mut readers, partition, true));
        }
        loop {
            let to_read: HashSet<Partition> = self.ownership.borrow_and_update().to_read().collect();
            for (partition, wanted) in &readers.wanted {
                let is_wanted = to_read.contains(partition);
                wanted.send_if_modified(|wanted| std::mem::replace(wanted, is_wanted) != is_wanted);
            }
            for partition in to_read {
                if !readers.wanted.contains_key(&partition) {
                    self.start(&mut readers, partition, false);
                }
            }
            tokio::select! {
                changed = self.ownership.changed() => if changed.is_err() { break },
                () = self.context.shutdown.cancelled() => break,
                Some(ended) = readers.running.join_next() => readers.ended(ended)?,
            }
        }
        // Drops this sender: the channel to the writer closes when the last reader ends.
        drop(self);
        // Also reached when the membership has ended: then this consumer owns no partition.
        for wanted in readers.wanted.values() {
            wanted.send_replace(false);
        }
        while let Some(ended) = readers.running.join_next().await {
            readers.ended(ended)?;
        }
        Ok(())
    }

    fn start(&self, readers: &mut Readers, partition: Partition, must_recover_pending: bool) {
        let wanted = watch::Sender::new(true);
        let reader = PartitionReader::new(
            partition,
            Arc::clone(&self.context),
            self.ownership.clone(),
            wanted.subscribe(),
            must_recover_pending,
        );
        readers.wanted.insert(partition, wanted);
        readers.running.spawn(reader.run().map(move |()| partition).boxed());
    }
}

impl Readers {
    fn ended(&mut self, ended: Result<Partition, JoinError>) -> Result<(), ReaderCrashed> {
        self.wanted.remove(&ended.map_err(|_| ReaderCrashed)?);
        Ok(())
    }
}
