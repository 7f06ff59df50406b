//! What people want of consumers and see of them, beside the heartbeat and never in its way: which partitions are paused,
//! and when each was last committed.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

use crate::{
    last_commits::LastCommits,
    stream::{Paused, Streams},
};

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(750);

/// Looks for ever. While it can't be read, what is paused stays as it was.
pub(crate) async fn run(streams: Streams, paused: watch::Sender<Paused>, last_commits: Arc<LastCommits>) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        look(&streams, &paused).await;
        tell_commits(&streams, &last_commits).await;
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
async fn tell_commits(streams: &Streams, last_commits: &LastCommits) {
    let commits: Vec<_> =
        last_commits.take().into_iter().map(|(partition, at)| (partition, at.elapsed())).collect();
    if !commits.is_empty()
        && let Err(error) = streams.note_commits(&commits).await
    {
        tracing::debug!(%error, "the last commits are not on record");
    }
}
