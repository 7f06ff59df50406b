//! Trims entries that every group has acknowledged, so that Redis keeps only the backlog and the retained entries.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use fred::prelude::Error;
use futures_util::future::join_all;
use shared::{error_chain::one_line, wire::partition::Partition};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use crate::{group::ownership::Ownership, metrics::Metrics, stream::Streams};

const INTERVAL: Duration = Duration::from_secs(1);

/// Trims the owned partitions periodically until `stop`. Then trims all partitions that this consumer has owned once more,
/// so that the last consumer to leave also trims the last acknowledged entries.
pub(crate) async fn run(
    streams: Streams,
    ownership: watch::Receiver<Ownership>,
    retention: Duration,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ever_owned = BTreeSet::new();
    let mut failing = false;
    loop {
        let stopped = stop.run_until_cancelled(ticks.tick()).await.is_none();
        let own = ownership.borrow().own().to_vec();
        ever_owned.extend(own.iter().copied());
        let partitions = if stopped { ever_owned.iter().copied().collect() } else { own };
        let failed = trim(&streams, partitions, retention, &metrics).await;
        match &failed {
            Some(error) if !failing => {
                tracing::warn!(error = one_line(error), "trimming failed, Redis memory will grow");
            }
            None if failing => tracing::info!("trimming recovered"),
            _ => {}
        }
        failing = failed.is_some();
        if stopped {
            return;
        }
    }
}

/// Trims all partitions, even if some of them fail. Returns one of the errors.
async fn trim(
    streams: &Streams,
    partitions: Vec<Partition>,
    retention: Duration,
    metrics: &Metrics,
) -> Option<Error> {
    let retention_ms = u64::try_from(retention.as_millis()).unwrap_or(u64::MAX);
    let trimmed =
        join_all(partitions.into_iter().map(|partition| streams.trim(partition, retention_ms))).await;
    let mut failed = None;
    for trimmed in trimmed {
        match trimmed {
            Ok(entries) => metrics.trimmed(entries),
            Err(error) => {
                metrics.trim_failed();
                failed = Some(error);
            }
        }
    }
    failed
}
