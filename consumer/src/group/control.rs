//! Control by operators: reads the set of paused partitions and records commit times. Runs concurrently with the heartbeat
//! and never delays it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use shared::{error_chain::one_line, wire::partition::Partition};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};

use crate::stream::{Paused, Streams};

/// Interval between two exchanges with Redis.
const INTERVAL: Duration = Duration::from_millis(750);

/// Reads the paused partitions and records the commit times at every tick, until dropped. If the paused partitions cannot
/// be read, the last known set stays in effect.
pub(crate) async fn run(streams: Streams, paused: watch::Sender<Paused>, commit_times: Arc<CommitTimes>) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        refresh_paused(&streams, &paused).await;
        record_commits(&streams, &commit_times).await;
    }
}

/// Reads the set of paused partitions once.
pub(crate) async fn refresh_paused(streams: &Streams, paused: &watch::Sender<Paused>) {
    match streams.paused().await {
        Ok(new) => {
            paused.send_if_modified(|old| {
                let changed = *old != new;
                *old = new;
                changed
            });
        }
        Err(error) => tracing::debug!(error = one_line(&error), "cannot read the paused partitions"),
    }
}

/// Records commit times, which are informational. After a failure they are not retried; the next commits replace them.
async fn record_commits(streams: &Streams, commit_times: &CommitTimes) {
    let commits: Vec<_> =
        commit_times.take().into_iter().map(|(partition, at)| (partition, at.elapsed())).collect();
    if !commits.is_empty()
        && let Err(error) = streams.record_commits(&commits).await
    {
        tracing::debug!(error = one_line(&error), "cannot record the commit times");
    }
}

/// Time of the last commit per partition, not yet recorded in Redis.
#[derive(Default)]
pub(crate) struct CommitTimes(Mutex<HashMap<Partition, Instant>>);

impl CommitTimes {
    /// Records a commit of entries of these partitions. Consecutive entries of one partition cost a single insertion.
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

    /// Takes the times recorded since the last call.
    pub(crate) fn take(&self) -> HashMap<Partition, Instant> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
