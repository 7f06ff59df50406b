//! What people want of consumers and see of them, beside the heartbeat and never in its way: which partitions are paused,
//! and when each was last committed.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use shared::wire::partition::Partition;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};

use crate::stream::{Paused, Streams};

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(750);

/// Looks for ever. While it can't be read, what is paused stays as it was.
pub(crate) async fn run(streams: Streams, paused: watch::Sender<Paused>, commit_times: Arc<CommitTimes>) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        look(&streams, &paused).await;
        record_commits(&streams, &commit_times).await;
    }
}

/// Looks once.
pub(crate) async fn look(streams: &Streams, paused: &watch::Sender<Paused>) {
    match streams.paused().await {
        Ok(new) => {
            paused.send_if_modified(|old| {
                let changed = *old != new;
                *old = new;
                changed
            });
        }
        Err(error) => tracing::debug!(%error, "whether anything is paused can't be read"),
    }
}

/// For people to see: should it fail, the next commits will be told.
async fn record_commits(streams: &Streams, commit_times: &CommitTimes) {
    let commits: Vec<_> =
        commit_times.take().into_iter().map(|(partition, at)| (partition, at.elapsed())).collect();
    if !commits.is_empty()
        && let Err(error) = streams.record_commits(&commits).await
    {
        tracing::debug!(%error, "the last commits are not on record");
    }
}

/// Noted by whoever acknowledges, taken when it is told.
#[derive(Default)]
pub(crate) struct CommitTimes(Mutex<HashMap<Partition, Instant>>);

impl CommitTimes {
    /// Entries of these partitions are stored; those of one come together as a rule, and cost one look then.
    pub(crate) fn record(&self, partitions: impl Iterator<Item = Partition>) {
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
