//! Consumers that died leave their names in the group. Once others have claimed what they had, the names go.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::stream::Streams;

const INTERVAL: Duration = Duration::from_mins(1);

/// Looks for ever. `idle` is how long a name without pending entries must not have been heard of; a living consumer
/// that loses its name by this only gets it anew with its next read.
pub(crate) async fn run(streams: Streams, idle: Duration) {
    let idle_ms = u64::try_from(idle.as_millis()).unwrap_or(u64::MAX);
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        for partition in streams.partitions() {
            match streams.remove_idle(partition, idle_ms).await {
                Ok(0) => {}
                Ok(consumers) => tracing::info!(%partition, consumers, "removed the names of dead consumers"),
                Err(error) => {
                    tracing::debug!(%partition, %error, "names of dead consumers stay");
                    break;
                }
            }
        }
    }
}
