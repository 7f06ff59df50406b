//! Background tasks.
//!
//! Purpose: trim entries that every group has acknowledged, sample the backlog for metrics, probe the servers for
//! `/readyz`. May depend on `group`, `stream`, `store` and `metrics`. Must not know `read` or `write`.

mod backlog;
mod probe;
mod trim;

use std::{sync::Arc, time::Duration};

use opentelemetry::metrics::Meter;
use shared::{postgres::Pool, runtime::admin::Check, wire::partition::PartitionCount};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{group::ownership::Ownership, metrics::Metrics, stream::Streams, task, upkeep::backlog::Backlog};

/// Background tasks. They run until stopped or dropped.
pub(crate) struct Upkeep {
    probe: AbortOnDropHandle<()>,
    sampling: AbortOnDropHandle<()>,
    trimming: AbortOnDropHandle<()>,
    stop_trimming: CancellationToken,
}

/// Error: the named task stopped unexpectedly, which is a bug.
pub(crate) struct UpkeepCrashed(pub(crate) &'static str);

/// Components that the tasks need.
pub(crate) struct UpkeepContext<'a> {
    pub(crate) streams: &'a Streams,
    pub(crate) pool: &'a Pool,
    pub(crate) partitions: &'a watch::Receiver<PartitionCount>,
    pub(crate) ownership: &'a watch::Receiver<Ownership>,
    pub(crate) retention: Duration,
    pub(crate) metrics: &'a Arc<Metrics>,
    pub(crate) meter: &'a Meter,
    pub(crate) redis: &'a Check,
    pub(crate) postgres: &'a Check,
}

impl Upkeep {
    pub(crate) fn spawn(context: &UpkeepContext<'_>) -> Self {
        let UpkeepContext { streams, pool, ownership, .. } = *context;
        let probe =
            probe::run(streams.clone(), pool.clone(), context.redis.clone(), context.postgres.clone());
        let backlog = Arc::new(Backlog::default());
        backlog.observe(context.meter, streams.group(), ownership);
        let sampling = backlog::sample(streams.clone(), context.partitions.clone(), backlog);
        let stop_trimming = CancellationToken::new();
        let trimming = trim::run(
            streams.clone(),
            ownership.clone(),
            context.retention,
            Arc::clone(context.metrics),
            stop_trimming.clone(),
        );
        Self {
            probe: task::spawn(Box::pin(probe)),
            sampling: task::spawn(Box::pin(sampling)),
            trimming: task::spawn(Box::pin(trimming)),
            stop_trimming,
        }
    }

    /// Waits until one of the tasks stops unexpectedly.
    pub(crate) async fn crashed(&mut self) -> UpkeepCrashed {
        tokio::select! {
            _ = &mut self.probe => UpkeepCrashed("the readiness probe"),
            _ = &mut self.sampling => UpkeepCrashed("backlog sampling"),
            _ = &mut self.trimming => UpkeepCrashed("trimming"),
        }
    }

    /// Trims once more, then stops.
    pub(crate) async fn stop(self) -> Result<(), UpkeepCrashed> {
        // The task ends early only by a bug. It must not be awaited again: `crashed` may have done so.
        if self.trimming.is_finished() {
            return Err(UpkeepCrashed("trimming"));
        }
        self.stop_trimming.cancel();
        self.trimming.await.map_err(|_| UpkeepCrashed("trimming"))
    }
}
