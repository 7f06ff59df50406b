//! Trims what every group has acknowledged, so that Redis keeps only what is still to be done.

use std::{sync::Arc, time::Duration};

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
    loop {
        let stopped = stop.run_until_cancelled(ticks.tick()).await.is_none();
        trim_all(&streams, retention, &metrics).await;
        if stopped {
            return;
        }
    }
}

async fn trim_all(streams: &Streams, retention: Duration, metrics: &Metrics) {
    let retention_ms = u64::try_from(retention.as_millis()).unwrap_or(u64::MAX);
    for partition in streams.partitions() {
        match streams.trim(partition, retention_ms).await {
            Ok(entries) => metrics.trimmed(entries),
            Err(error) => {
                // It is tried again in a second, and whether Redis is well others say.
                tracing::debug!(%partition, %error, "not trimmed");
                return;
            }
        }
    }
}
