//! Trims what every group has acknowledged, so that Redis keeps only what is still to be done.

use std::{sync::Arc, time::Duration};

use fred::prelude::Error;
use futures_util::future::join_all;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::{metrics::Metrics, stream::Streams};

const INTERVAL: Duration = Duration::from_secs(1);

/// Trims now and then until told to stop, and once more then.
pub(crate) async fn run(
    streams: Streams,
    retention: Duration,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        let stopped = stop.run_until_cancelled(ticks.tick()).await.is_none();
        let failed = trim_all(&streams, retention, &metrics).await;
        match &failed {
            Some(error) if !failing => tracing::warn!(%error, "streams can't be trimmed: Redis will fill up"),
            None if failing => tracing::info!("streams are trimmed again"),
            _ => {}
        }
        failing = failed.is_some();
        if stopped {
            return;
        }
    }
}

/// A partition that can't be trimmed doesn't keep the others from it; one error is returned for all.
async fn trim_all(streams: &Streams, retention: Duration, metrics: &Metrics) -> Option<Error> {
    let retention_ms = u64::try_from(retention.as_millis()).unwrap_or(u64::MAX);
    let trimmed = join_all(streams.partitions().map(|partition| streams.trim(partition, retention_ms))).await;
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
