//! The lanes of this process: one for each partition that is this consumer's.

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

use crate::{lane::Lane, membership::Ownership};

/// Keeps lanes on the partitions that this consumer owns.
pub(crate) struct Reader<F> {
    /// Makes a lane.
    pub(crate) lane: F,
    pub(crate) ownership: watch::Receiver<Ownership>,
    /// Whether an earlier process may have had this consumer's name, and left entries pending anywhere.
    pub(crate) had_earlier_life: bool,
    pub(crate) shutdown: CancellationToken,
}

/// A lane has panicked.
pub(crate) struct LaneCrashed;

/// Lanes at work, each told whether its partition is still wanted.
#[derive(Default)]
struct Lanes {
    running: JoinSet<Partition>,
    wanted: HashMap<Partition, watch::Sender<bool>>,
}

impl<F: Fn(Partition) -> Lane> Reader<F> {
    /// Reads until shutdown, and until every lane has ended.
    pub(crate) async fn run(mut self, partitions: PartitionCount) -> Result<(), LaneCrashed> {
        let mut lanes = Lanes::default();
        if self.had_earlier_life {
            // Lanes on what is not ours end when they have found what the name has pending there.
            partitions.partitions().for_each(|partition| lanes.start((self.lane)(partition), true));
        }
        loop {
            let to_read: HashSet<Partition> = self.ownership.borrow_and_update().to_read().collect();
            for (partition, wanted) in &lanes.wanted {
                let is_ours = to_read.contains(partition);
                wanted.send_if_modified(|wanted| std::mem::replace(wanted, is_ours) != is_ours);
            }
            for partition in to_read {
                if !lanes.wanted.contains_key(&partition) {
                    lanes.start((self.lane)(partition), false);
                }
            }
            tokio::select! {
                changed = self.ownership.changed() => if changed.is_err() { break },
                () = self.shutdown.cancelled() => break,
                Some(ended) = lanes.running.join_next() => lanes.ended(ended)?,
            }
        }
        drop(self);
        // Without membership nothing is ours to read.
        for wanted in lanes.wanted.values() {
            wanted.send_replace(false);
        }
        while let Some(ended) = lanes.running.join_next().await {
            lanes.ended(ended)?;
        }
        Ok(())
    }
}

impl Lanes {
    fn start(&mut self, lane: Lane, own_pending_unknown: bool) {
        let (partition, wanted) = (lane.partition, watch::Sender::new(true));
        let is_wanted = wanted.subscribe();
        self.wanted.insert(partition, wanted);
        self.running.spawn(async move {
            lane.run(own_pending_unknown, is_wanted).await;
            partition
        });
    }

    fn ended(&mut self, ended: Result<Partition, JoinError>) -> Result<(), LaneCrashed> {
        self.wanted.remove(&ended.map_err(|_| LaneCrashed)?);
        Ok(())
    }
}

/// Whether the lanes can read, for `/readyz` and for the log, which has a line for all of them together.
pub(crate) struct ReadHealth {
    check: Check,
    failing: Mutex<HashSet<Partition>>,
}

impl ReadHealth {
    pub(crate) fn new(check: Check) -> Self {
        check.pass();
        Self { check, failing: Mutex::default() }
    }

    /// A lane could read.
    pub(crate) fn passed(&self, partition: Partition) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        if failing.remove(&partition) && failing.is_empty() && self.check.pass() {
            tracing::info!("all partitions are read again");
        }
    }

    /// A lane could not read.
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
