//! The lanes of this process: one for each partition that is this consumer's.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, PoisonError},
};

use fred::prelude::Error;
use shared::{
    admin::Check,
    partition::{Partition, PartitionCount},
};
use tokio::{sync::watch, task::JoinSet};
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

impl<F: Fn(Partition) -> Lane> Reader<F> {
    /// Reads until shutdown, and until every lane has ended.
    pub(crate) async fn run(mut self, partitions: PartitionCount) -> Result<(), LaneCrashed> {
        let mut running = JoinSet::new();
        let mut lanes: HashMap<Partition, CancellationToken> = HashMap::new();
        if self.had_earlier_life {
            // Lanes on what is not ours end when they have found what the name has pending there.
            for partition in partitions.partitions() {
                lanes.insert(partition, start(&mut running, (self.lane)(partition), true));
            }
        }
        loop {
            let ownership = self.ownership.borrow_and_update().clone();
            lanes.retain(|partition, lost| {
                let stays = ownership.own().contains(partition);
                if !stays {
                    lost.cancel();
                }
                stays
            });
            for partition in ownership.own() {
                if !lanes.contains_key(partition) {
                    lanes.insert(*partition, start(&mut running, (self.lane)(*partition), false));
                }
            }
            tokio::select! {
                changed = self.ownership.changed() => if changed.is_err() { break },
                () = self.shutdown.cancelled() => break,
                Some(ended) = running.join_next() => ended.map_err(|_| LaneCrashed)?,
            }
        }
        // Without membership nothing is ours to read.
        lanes.values().for_each(CancellationToken::cancel);
        drop(self);
        while let Some(ended) = running.join_next().await {
            ended.map_err(|_| LaneCrashed)?;
        }
        Ok(())
    }
}

fn start(running: &mut JoinSet<()>, lane: Lane, own_pending_unknown: bool) -> CancellationToken {
    let lost = CancellationToken::new();
    running.spawn(lane.run(own_pending_unknown, lost.clone()));
    lost
}

/// Whether the lanes can read, for `/readyz` and for the log, which has a line for all of them together.
pub(crate) struct ReadHealth {
    check: Check,
    failing: Mutex<BTreeMap<Partition, String>>,
}

impl ReadHealth {
    pub(crate) fn new(check: Check) -> Self {
        check.pass();
        Self { check, failing: Mutex::default() }
    }

    /// A lane could read.
    pub(crate) fn passed(&self, partition: Partition) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        if failing.remove(&partition).is_some() && failing.is_empty() && self.check.pass() {
            tracing::info!("all partitions are read again");
        }
    }

    /// A lane could not read.
    pub(crate) fn failed(&self, partition: Partition, error: &Error) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        failing.insert(partition, error.to_string());
        let why = format!("reading {} partitions fails, one of them with: {error}", failing.len());
        if self.check.fail(why) {
            tracing::warn!(%partition, %error, "reading from Redis failed");
        } else {
            tracing::debug!(%partition, %error, "reading from Redis failed");
        }
    }
}
