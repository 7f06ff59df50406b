//! Control by operators, and one thing that they see: which partitions are paused, and when each was last committed. Runs
//! beside the heartbeat and never delays it.

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

/// Between two exchanges with Redis.
const INTERVAL: Duration = Duration::from_millis(750);

/// Reads the paused partitions and writes the commit times, at every tick until it is dropped. While the paused partitions can't be read, they stay as they were.
pub(crate) async fn run(streams: Streams, paused: watch::Sender<Paused>, commit_times: Arc<CommitTimes>) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        refresh_paused(&streams, &paused).await;
        record_commits(&streams, &commit_times).await;
    }
}

/// Reads once which partitions are paused.
pub(crate) async fn refresh_paused(streams: &Streams, paused: &watch::Sender<Paused>) {
    match streams.paused().await {
        Ok(new) => {
            paused.send_if_modified(|old| {
                let changed = *old != new;
                *old = new;
                changed
            });
        }
        Err(error) => tracing::debug!(%error, "paused partitions can't be read"),
    }
}

/// Only operators read them: after a failure the next commits are recorded instead.
async fn record_commits(streams: &Streams, commit_times: &CommitTimes) {
    let commits: Vec<_> =
        commit_times.take().into_iter().map(|(partition, at)| (partition, at.elapsed())).collect();
    if !commits.is_empty()
        && let Err(error) = streams.record_commits(&commits).await
    {
        tracing::debug!(%error, "the last commits are not recorded");
    }
}

/// When each partition was last committed, until that is recorded in Redis.
#[derive(Default)]
pub(crate) struct CommitTimes(Mutex<HashMap<Partition, Instant>>);

impl CommitTimes {
    /// Records a commit of entries of these partitions. Those of one partition come together as a rule, and then cost one
    /// insertion.
    pub(crate) fn record(&self, partitions: impl Iterator<Item = Partition>) {
        let now = Instant::now();
        let mut commits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut last = None;
        for partition in partitions {
            if last.replace(partition) != Some(partition) {
                commits.insert(partition, now);
            }
        }
    }

    /// Takes the times that were recorded since the last call.
    pub(crate) fn take(&self) -> HashMap<Partition, Instant> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
