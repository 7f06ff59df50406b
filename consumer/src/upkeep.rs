//! Background tasks.
//!
//! Purpose: trim entries that every group has acknowledged, sample the backlog for metrics, probe the servers for
//! `/readyz`, notice what Redis and Postgres have lost (`stream_watch`, `database`). May depend on `group`, `stream`, `store` and `metrics`. Must not know `read` or `write`.

mod backlog;
mod database;
mod probe;
mod stream_watch;
mod trim;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use opentelemetry::metrics::Meter;
use shared::{
    postgres::Pool, runtime::admin::Check, settings::SettingError, wire::partition::PartitionCount,
};
use tokio::{sync::watch, time::timeout};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    group::{binding::BoundDatabase, ownership::Ownership},
    metrics::Metrics,
    stream::Streams,
    task,
    upkeep::{
        backlog::{Backlog, Sampler},
        database::DatabaseWatch,
        stream_watch::StreamWatch,
    },
};

/// Maximum time to wait for the first samples.
const FIRST_SAMPLES_LIMIT: Duration = Duration::from_secs(1);

/// Timeout for saving the state of the streams at the end.
const SAVE_LIMIT: Duration = Duration::from_millis(500);

/// Background tasks. They run until stopped or dropped.
pub(crate) struct Upkeep {
    probe: AbortOnDropHandle<()>,
    sampling: AbortOnDropHandle<()>,
    database: AbortOnDropHandle<Result<(), SettingError>>,
    trimming: AbortOnDropHandle<()>,
    stop: CancellationToken,
}

/// Error: the named task stopped unexpectedly, which is a bug.
pub(crate) struct UpkeepCrashed(pub(crate) &'static str);

/// Reason why the consumer must end at once.
pub(crate) enum UpkeepEnded {
    Crashed(UpkeepCrashed),
    /// The group is bound to another database.
    WrongDatabase(SettingError),
}

/// Components that the tasks need.
pub(crate) struct UpkeepContext<'a> {
    pub(crate) streams: &'a Streams,
    pub(crate) pool: &'a Pool,
    pub(crate) partitions: &'a watch::Receiver<PartitionCount>,
    pub(crate) ownership: &'a watch::Receiver<Ownership>,
    pub(crate) bound: &'a BoundDatabase,
    pub(crate) retention: Duration,
    pub(crate) metrics: &'a Arc<Metrics>,
    pub(crate) meter: &'a Meter,
    pub(crate) redis: &'a Check,
    pub(crate) postgres: &'a Check,
}

impl Upkeep {
    /// Starts the tasks, and waits for the first samples of all partitions, so that they precede all reads.
    pub(crate) async fn start(context: &UpkeepContext<'_>) -> Self {
        let UpkeepContext { streams, pool, ownership, .. } = *context;
        let probe =
            probe::run(streams.clone(), pool.clone(), context.redis.clone(), context.postgres.clone());
        let backlog = Arc::new(Backlog::default());
        backlog.observe(context.meter, streams.group(), ownership);
        let stream_watch = Arc::new(StreamWatch::default());
        let sampler = Sampler {
            streams: streams.clone(),
            partitions: context.partitions.clone(),
            ownership: ownership.clone(),
            backlog,
            stream_watch: Arc::clone(&stream_watch),
        };
        let first_sampled = CancellationToken::new();
        let sampling = task::spawn(Box::pin(sampler.run(first_sampled.clone())));
        // The first samples show what was lost while no consumer was running. They must not delay a start for long, and are not
        // cut off: what a sample says of a group that this process created is said once.
        drop(timeout(FIRST_SAMPLES_LIMIT, first_sampled.cancelled()).await);
        let database = DatabaseWatch {
            streams: streams.clone(),
            pool: pool.clone(),
            bound: context.bound.clone(),
            partitions: context.partitions.clone(),
            ownership: ownership.clone(),
            own: BTreeSet::new(),
            retention: context.retention,
            stream_watch,
            metrics: Arc::clone(context.metrics),
        };
        let stop = CancellationToken::new();
        let trimming = trim::run(
            streams.clone(),
            ownership.clone(),
            context.retention,
            Arc::clone(context.metrics),
            stop.clone(),
        );
        Self {
            probe: task::spawn(Box::pin(probe)),
            sampling,
            database: task::spawn(Box::pin(database.run(stop.clone()))),
            trimming: task::spawn(Box::pin(trimming)),
            stop,
        }
    }

    /// Waits until one of the tasks ends.
    pub(crate) async fn ended(&mut self) -> UpkeepEnded {
        let crashed = |task| UpkeepEnded::Crashed(UpkeepCrashed(task));
        tokio::select! {
            _ = &mut self.probe => crashed("the readiness probe"),
            _ = &mut self.sampling => crashed("backlog sampling"),
            _ = &mut self.trimming => crashed("trimming"),
            ended = &mut self.database => match ended {
                Ok(Err(error)) => UpkeepEnded::WrongDatabase(error),
                _ => crashed("watching the database"),
            },
        }
    }

    /// Trims once more and saves the state of the streams, then stops.
    pub(crate) async fn stop(self) -> Result<(), UpkeepCrashed> {
        // The task ends early only by a bug. It must not be awaited again: `ended` may have done so.
        if self.trimming.is_finished() {
            return Err(UpkeepCrashed("trimming"));
        }
        self.stop.cancel();
        let saved = async {
            if !self.database.is_finished() {
                // Without Postgres, the latest state that was saved remains.
                drop(timeout(SAVE_LIMIT, self.database).await);
            }
        };
        tokio::join!(self.trimming, saved).0.map_err(|_| UpkeepCrashed("trimming"))
    }
}
