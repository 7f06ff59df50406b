//! The pipeline: its tasks, their channels, and the order in which they stop.

use std::sync::Arc;

use shared::{
    error_chain::one_line,
    postgres::Pool,
    runtime::admin::{Check, Health},
    settings::SettingError,
    telemetry::Telemetry,
    wire::partition::PartitionCount,
};
use thiserror::Error;
use tokio::{
    sync::{mpsc, watch},
    time::{Duration, Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    config::Settings,
    entry::Entry,
    group::{
        binding::BoundDatabase,
        control::{self, CommitTimes},
        membership::{Candidate, Membership, NameTaken},
        ownership::Ownership,
        static_assignment::StaticAssignment,
    },
    in_flight::{InFlight, InFlightLimits},
    metrics::Metrics,
    read::{
        health::ReadHealth,
        pacing,
        partition_reader::{ReadContext, ReadLimits},
        supervisor::{ReaderCrashed, Supervisor},
    },
    store::{gathering::BatchLimits, predictor::InsertPredictor, write::TableWriter},
    stream::{Paused, Streams},
    task,
    trace::BatchTracing,
    upkeep::{Upkeep, UpkeepContext, UpkeepCrashed, UpkeepEnded},
    write::{acknowledger::Acknowledger, writer::Writer},
};

/// Timeout for the last commands to Redis, after all entries are settled.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);

/// In-flight limit in batches: one that is being acknowledged, one that is being written, one that is being read.
const BATCHES_IN_FLIGHT: usize = 3;

/// Reason why the pipeline ended without a clean shutdown.
#[derive(Debug, Error)]
pub(crate) enum PipelineError {
    #[error(transparent)]
    NameTaken(#[from] NameTaken),
    /// The group was bound to another database. Entries that were read stay pending, for consumers of that database.
    #[error(transparent)]
    WrongDatabase(SettingError),
    #[error("{0} stopped unexpectedly: this is a bug; unacknowledged entries will be redelivered")]
    Crashed(&'static str),
    #[error(
        "graceful shutdown incomplete: not all entries were stored within DRAIN_TIMEOUT ({0}); they stay pending and will be redelivered"
    )]
    Drain(humantime::FormattedDuration),
}

impl From<UpkeepCrashed> for PipelineError {
    fn from(UpkeepCrashed(task): UpkeepCrashed) -> Self {
        Self::Crashed(task)
    }
}

impl From<UpkeepEnded> for PipelineError {
    fn from(ended: UpkeepEnded) -> Self {
        match ended {
            UpkeepEnded::Crashed(crashed) => crashed.into(),
            UpkeepEnded::WrongDatabase(error) => Self::WrongDatabase(error),
        }
    }
}

/// Readiness checks of the consumer.
pub(crate) struct Checks {
    pub(crate) redis: Check,
    pub(crate) postgres: Check,
    membership: Check,
    reader: Check,
    writer: Check,
}

impl Checks {
    pub(crate) fn new(health: &Health) -> Self {
        Self {
            redis: health.check("redis"),
            postgres: health.check("postgres"),
            membership: health.check("membership"),
            reader: health.check("reader"),
            writer: health.check("writer"),
        }
    }
}

/// Components from which the pipeline is assembled.
pub(crate) struct Pipeline {
    pub(crate) settings: Settings,
    pub(crate) static_assignment: Option<StaticAssignment>,
    pub(crate) streams: Streams,
    pub(crate) pool: Pool,
    pub(crate) bound: BoundDatabase,
    pub(crate) partitions: watch::Receiver<PartitionCount>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) telemetry: Telemetry,
    pub(crate) checks: Checks,
}

/// State shared by several tasks.
#[derive(Default)]
struct Shared {
    in_flight: Arc<InFlight>,
    commit_times: Arc<CommitTimes>,
    paused: watch::Sender<Paused>,
}

impl Pipeline {
    /// Joins the group and runs until `shutdown`, or until another process takes over this consumer's name. Then drains
    /// for up to `DRAIN_TIMEOUT`: entries that were read are stored and acknowledged. Resigns from the group at the end.
    pub(crate) async fn run(self, shutdown: CancellationToken) -> Result<(), PipelineError> {
        let shared = Shared::default();
        // No entry of a paused partition may be read.
        control::refresh_paused(&self.streams, &shared.paused).await;
        let drain_deadline = async |stop: CancellationToken| {
            stop.cancelled().await;
            sleep(self.settings.drain_timeout).await;
        };
        let joined = tokio::select! {
            joined = self.candidate(&shared).join(&shutdown) => joined?,
            () = drain_deadline(shutdown.clone()) => None,
        };
        let Some(membership) = joined else { return Ok(()) };
        let ownership = membership.ownership();
        let stop = shutdown.child_token();
        let drained = CancellationToken::new();
        let heartbeats = spawn_heartbeats(membership, stop.clone(), drained.clone());
        let commit_times = Arc::clone(&shared.commit_times);
        let control = control::run(self.streams.clone(), shared.paused.clone(), commit_times);
        let _control = task::spawn(Box::pin(control));
        let mut upkeep = self.start_upkeep(&ownership).await;

        let ended = tokio::select! {
            done = self.move_entries(shared, ownership, stop.clone()) => done,
            () = drain_deadline(stop.clone()) => Err(PipelineError::Drain(humantime::format_duration(self.settings.drain_timeout))),
            ended = upkeep.ended() => Err(ended.into()),
        };
        // From here on other consumers may claim the entries that are still pending.
        drained.cancel();
        let (trimmed, resigned, survived) = tokio::join!(
            timeout(SHUTDOWN_GRACE, upkeep.stop()),
            timeout(SHUTDOWN_GRACE, heartbeats),
            timeout(SHUTDOWN_GRACE, self.end_quarantines(&ended)),
        );
        if trimmed.is_err() || resigned.is_err() || survived.is_err() {
            tracing::warn!("Redis did not respond during shutdown");
        }
        if let Ok(resigned) = resigned {
            resigned.map_err(|_| PipelineError::Crashed("the heartbeat task"))??;
        }
        ended?;
        Ok(trimmed.unwrap_or(Ok(()))?)
    }

    /// Removes the records of quarantines that the partition readers could not remove. After a crash they stay: an entry may
    /// have caused it.
    async fn end_quarantines(&self, ended: &Result<(), PipelineError>) {
        if matches!(ended, Err(PipelineError::Crashed(_))) {
            return;
        }
        let partitions = *self.partitions.borrow();
        if let Err(error) = self.streams.end_quarantines(partitions).await {
            tracing::debug!(error = one_line(&error), "cannot record the end of a quarantine");
        }
    }

    fn candidate(&self, shared: &Shared) -> Candidate<Streams> {
        Candidate {
            heartbeats: self.streams.clone(),
            static_assignment: self.static_assignment.as_ref().map(ToString::to_string).unwrap_or_default(),
            partitions: self.partitions.clone(),
            paused: shared.paused.subscribe(),
            in_flight: Arc::clone(&shared.in_flight),
            metrics: Arc::clone(&self.metrics),
            check: self.checks.membership.clone(),
        }
    }

    async fn start_upkeep(&self, ownership: &watch::Receiver<Ownership>) -> Upkeep {
        Upkeep::start(&UpkeepContext {
            streams: &self.streams,
            pool: &self.pool,
            partitions: &self.partitions,
            ownership,
            bound: &self.bound,
            retention: self.settings.stream_retention,
            metrics: &self.metrics,
            meter: &self.telemetry.meter(),
            redis: &self.checks.redis,
            postgres: &self.checks.postgres,
        })
        .await
    }

    /// Reads until `stop`, then waits until all entries that were read are stored and acknowledged. The channel closes when
    /// the last partition reader ends; the writer ends when the channel is closed and empty.
    async fn move_entries(
        &self,
        shared: Shared,
        ownership: watch::Receiver<Ownership>,
        stop: CancellationToken,
    ) -> Result<(), PipelineError> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let writer = self.writer(&shared, ownership.clone());
        let writing = task::spawn(Box::pin(writer.run(receiver)));
        let supervisor = self.supervisor(&shared, ownership, sender, stop);
        let partitions = *self.partitions.borrow();
        let reading = task::spawn(Box::pin(supervisor.run(partitions)));
        let read = async {
            let read = reading
                .await
                .map_err(|_| PipelineError::Crashed("the supervisor of the partition readers"))?;
            read.map_err(|ReaderCrashed| PipelineError::Crashed("a partition reader"))
        };
        let written = async { writing.await.map_err(|_| PipelineError::Crashed("the writer")) };
        tokio::try_join!(read, written).map(drop)
    }

    fn writer(&self, shared: &Shared, ownership: watch::Receiver<Ownership>) -> Writer<TableWriter, Streams> {
        let settings = &self.settings;
        let check = self.checks.writer.clone();
        check.pass();
        let predictor = InsertPredictor::default();
        Writer {
            store: TableWriter::new(
                self.pool.clone(),
                settings.transactions(self.bound.database.id),
                Some(predictor),
            ),
            limits: BatchLimits { rows: settings.batch_rows.get(), linger: settings.batch_linger },
            in_flight_limits: self.in_flight_limits(),
            acknowledger: Acknowledger {
                streams: self.streams.clone(),
                in_flight: Arc::clone(&shared.in_flight),
                commit_times: Arc::clone(&shared.commit_times),
                metrics: Arc::clone(&self.metrics),
                tracing: BatchTracing::new(
                    self.telemetry.tracing(),
                    &self.streams.template(),
                    self.streams.group(),
                    self.streams.consumer(),
                ),
                log_rates: Arc::default(),
            },
            check,
            ownership,
        }
    }

    fn in_flight_limits(&self) -> InFlightLimits {
        let rows = BATCHES_IN_FLIGHT * self.settings.batch_rows.get();
        InFlightLimits { rows, bytes: self.settings.in_flight_bytes.0 }
    }

    fn supervisor(
        &self,
        shared: &Shared,
        ownership: watch::Receiver<Ownership>,
        entries: mpsc::UnboundedSender<Entry>,
        shutdown: CancellationToken,
    ) -> Supervisor<Streams> {
        let settings = &self.settings;
        let limits = ReadLimits {
            in_flight: self.in_flight_limits(),
            redis_timeout: settings.redis.redis_timeout,
            poll_min: pacing::poll_min(settings.batch_linger),
            claim_min_idle: settings.claim_min_idle,
            max_deliveries: settings.max_deliveries,
            started: Instant::now(),
        };
        let context = ReadContext {
            streams: self.streams.clone(),
            limits,
            in_flight: Arc::clone(&shared.in_flight),
            entries,
            metrics: Arc::clone(&self.metrics),
            tracing: self.telemetry.tracing(),
            health: ReadHealth::new(self.checks.reader.clone()),
            shutdown,
        };
        let stable_name = settings.consumer_name.is_some();
        Supervisor { context: Arc::new(context), ownership, stable_name }
    }
}

/// Spawns the heartbeat task. It also cancels `stop` when another process takes over this consumer's name.
fn spawn_heartbeats(
    membership: Membership<Streams>,
    stop: CancellationToken,
    drained: CancellationToken,
) -> AbortOnDropHandle<Result<(), NameTaken>> {
    task::spawn(Box::pin(async move {
        membership.run(stop.clone(), drained).await.inspect_err(|_| stop.cancel())
    }))
}
