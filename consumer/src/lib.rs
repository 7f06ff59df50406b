//! The consumer service: entries from Redis Streams into Postgres.
//!
//! An entry's way: `group` says which partitions are this consumer's, `read` takes entries from `stream` and decodes them
//! (`entry`), `in_flight` bounds how many rows are underway, `write` collects them, stores them with `store`, and
//! acknowledges them with the proof that `store` returns. `upkeep` trims what is done, samples the backlog and probes the
//! servers.
//!
//! Dependencies point downwards: `upkeep`, `write`, `read` → `group` → `metrics`, `trace` → `stream` → `store` →
//! `in_flight` → `entry` → `shared`. `likesctl` stands on top of this library; nothing here knows it.

pub mod config;
pub mod entry;
pub mod group;
mod in_flight;
mod metrics;
mod read;
pub mod store;
pub mod stream;
mod trace;
mod upkeep;
mod write;

use std::{io, net::SocketAddr, process, sync::Arc, time::Duration};

use deadpool_postgres::{BuildError, Pool};
use shared::{
    cluster_settings::{self, ClusterSettingsError},
    postgres::{self, Postgres},
    redis::{Connections, Redis, is_refusal},
    runtime::{
        admin::{self, Health},
        service::{Failure, Unreachable, wait_for},
    },
    settings::SettingError,
    telemetry::{Telemetry, spans::Tracing},
    wire::partition::PartitionCount,
};
use thiserror::Error;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    config::Settings,
    group::{
        control::{self, CommitTimes},
        membership::{Membership, NameTaken, Ownership},
    },
    in_flight::InFlight,
    metrics::Metrics,
    read::{
        partition_reader::{self, PartitionReader},
        supervisor::{ReadHealth, ReaderCrashed, Supervisor},
    },
    store::{
        gathering::BatchLimits,
        predictor::InsertPredictor,
        schema::SchemaError,
        session::{self, Pooling},
    },
    stream::{GroupError, Streams},
    trace::BatchTracing,
    upkeep::{
        backlog::{self, Backlog},
        probe, trim,
    },
    write::{acknowledger::Acknowledger, writer::Writer},
};

/// One for the writer, one for the probe.
const CONNECTIONS: usize = 2;

/// How long the last words to Redis may take, twice, when all else is done.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);

/// Batches in flight: one that is acknowledged, one that is written, one that is read.
const BATCHES_IN_FLIGHT: usize = 3;

/// Why the consumer ended other than by a signal.
#[derive(Debug, Error)]
pub enum ConsumerError {
    /// A setting can't be used.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// The address can't be had.
    #[error("CONSUMER_ADMIN_LISTEN: can't listen on '{address}'")]
    Listen {
        /// The setting's value.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Redis did not come up.
    #[error(transparent)]
    Redis(#[from] Unreachable<fred::error::Error>),
    /// Postgres did not come up.
    #[error(transparent)]
    Postgres(#[from] Unreachable<tokio_postgres::Error>),
    /// The schema is not ours.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// Other programs work on other settings.
    #[error(transparent)]
    Agreement(#[from] ClusterSettingsError),
    /// Another consumer has this one's name.
    #[error(transparent)]
    NameTaken(#[from] NameTaken),
    /// A group can't be made.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// deadpool refuses.
    #[error("the connection pool can't be made")]
    Pool(#[from] BuildError),
    /// A bug.
    #[error("{0} ended by itself: this is a bug; what was not acknowledged will be delivered again")]
    Crashed(&'static str),
    /// The batch in hand could not be stored in time.
    #[error(
        "not everything was stored within DRAIN_TIMEOUT, {0}: it stays pending and will be delivered again"
    )]
    Drain(humantime::FormattedDuration),
}

impl Failure for ConsumerError {
    fn is_over_a_setting(&self) -> bool {
        match self {
            Self::Setting(_) | Self::NameTaken(_) => true,
            Self::Agreement(error) => error.is_over_a_setting(),
            _ => false,
        }
    }
}

/// What readiness depends on.
struct Checks {
    redis: admin::Check,
    postgres: admin::Check,
    membership: admin::Check,
    reader: admin::Check,
    writer: admin::Check,
}

/// Runs the consumer until `shutdown`, and then until the batch in hand is stored and acknowledged.
pub async fn run(
    settings: Settings,
    telemetry: Telemetry,
    shutdown: CancellationToken,
) -> Result<(), ConsumerError> {
    let redis = Redis::new(&settings.redis)?;
    let postgres = Postgres::new(&settings.postgres, "likestream consumer")?;
    let address = settings.consumer_admin_listen;
    let listener =
        TcpListener::bind(address).await.map_err(|source| ConsumerError::Listen { address, source })?;
    let listening = listener.local_addr().map_err(|source| ConsumerError::Listen { address, source })?;
    let consumer = settings.consumer_name.clone().unwrap_or_else(unique_name);
    tracing::info!(admin_listen = %listening, consumer, "listening");
    let health = Health::default();
    let checks = Checks {
        redis: health.check("redis"),
        postgres: health.check("postgres"),
        membership: health.check("membership"),
        reader: health.check("reader"),
        writer: health.check("writer"),
    };
    let stop_admin = CancellationToken::new();
    let _admin_ends_with_this = stop_admin.clone().drop_guard();
    tokio::spawn(admin::serve(listener, health, telemetry.clone(), stop_admin));

    let connect = connect(&redis, &postgres, &settings);
    let Some((redis, partitions)) = shutdown.run_until_cancelled(connect).await.transpose()? else {
        return Ok(());
    };
    let pool = postgres.pool(CONNECTIONS, settings.transactions().connected())?;
    let keys = settings.streams.likes_stream.clone();
    let streams = Streams::new(redis.clone(), keys.clone(), settings.likes_group.clone(), consumer);
    streams.ensure_groups(partitions).await?;

    let metrics = Arc::new(Metrics::new(&telemetry.meter(), &keys));
    Metrics::observe_connections(&telemetry.meter(), pool.clone());
    let partitions = watch::Sender::new(partitions);
    let following = cluster_settings::watch(redis, keys, partitions.clone());
    let _following = AbortOnDropHandle::new(tokio::spawn(following));
    let observed = Observed { metrics, telemetry, checks };
    let ended = consume(&settings, &streams, &partitions, pool, observed, shutdown).await;
    let partitions = *partitions.borrow();
    if !matches!(timeout(SHUTDOWN_GRACE, streams.leave(partitions)).await, Ok(Ok(()))) {
        tracing::warn!("the consumer's name stays in the group, until others remove it");
    }
    ended
}

/// Redis first, then Postgres; the record of settings and the schema before anything is touched.
async fn connect(
    redis: &Redis,
    postgres: &Postgres,
    settings: &Settings,
) -> Result<(Connections, PartitionCount), ConsumerError> {
    let limit = settings.startup_timeout;
    let server = format!("Redis at {}", redis.address());
    let connections = wait_for(&server, "REDIS_URL", limit, is_refusal, || redis.connect()).await?;
    let partitions =
        cluster_settings::negotiate_within(limit, &server, &connections, &settings.streams).await??;
    cluster_settings::warn_of_eviction(&connections).await;

    let client =
        wait_for(postgres.address(), "DATABASE_URL", limit, postgres::is_refusal, || postgres.connect())
            .await?;
    if settings.postgres_pooling == Pooling::Session && session::shares_sessions(postgres, &client).await {
        return Err(session::wrong_setting().into());
    }
    let checked = timeout(limit, store::schema::check(&client)).await;
    checked.map_err(|_| {
        let waited = humantime::format_duration(limit);
        ConsumerError::Postgres(Unreachable::Silent { server: postgres.address(), waited, source: None })
    })??;
    Ok((connections, partitions))
}

/// What others see of it.
struct Observed {
    metrics: Arc<Metrics>,
    telemetry: Telemetry,
    checks: Checks,
}

async fn consume(
    settings: &Settings,
    streams: &Streams,
    partitions: &watch::Sender<PartitionCount>,
    pool: Pool,
    Observed { metrics, telemetry, checks }: Observed,
    shutdown: CancellationToken,
) -> Result<(), ConsumerError> {
    let fixed = settings.consumer_partitions.resolve()?.map(|fixed| fixed.to_string()).unwrap_or_default();
    let in_flight = Arc::new(InFlight::default());
    let commit_times = Arc::new(CommitTimes::default());
    let paused = watch::Sender::default();
    // Before anything is read.
    control::look(streams, &paused).await;
    let joining = Membership::join(
        streams.clone(),
        fixed,
        partitions.subscribe(),
        Arc::clone(&in_flight),
        paused.subscribe(),
        Arc::clone(&metrics),
        checks.membership,
    );
    let Some(membership) = shutdown.run_until_cancelled(joining).await.transpose()? else {
        return Ok(());
    };
    let ownership = membership.ownership();
    // By a signal, or because somebody else has our name.
    let stop = shutdown.child_token();
    let gone = CancellationToken::new();
    let beating = {
        let (stop, gone) = (stop.clone(), gone.clone());
        async move { membership.run(stop.clone(), gone).await.inspect_err(|_| stop.cancel()) }
    };
    let beating = AbortOnDropHandle::new(tokio::spawn(beating));

    let backlog = Arc::new(Backlog::default());
    backlog.observe(&telemetry.meter(), streams.group(), &ownership);
    let sampling = backlog::sample(streams.clone(), partitions.subscribe(), backlog);
    let mut sampling = AbortOnDropHandle::new(tokio::spawn(sampling));
    let _heeding = AbortOnDropHandle::new(tokio::spawn(control::run(
        streams.clone(),
        paused,
        Arc::clone(&commit_times),
    )));
    let probe = probe::run(streams.clone(), pool.clone(), checks.redis, checks.postgres);
    let mut probing = AbortOnDropHandle::new(tokio::spawn(probe));
    let stop_trimming = CancellationToken::new();
    let trimming = trim::run(
        streams.clone(),
        ownership.clone(),
        settings.stream_retention,
        Arc::clone(&metrics),
        stop_trimming.clone(),
    );
    let mut trimming = AbortOnDropHandle::new(tokio::spawn(trimming));

    let work = Work {
        settings,
        streams: streams.clone(),
        pool,
        in_flight,
        commit_times,
        ownership,
        metrics,
        tracing: telemetry.tracing(),
        reader: checks.reader,
        writer: checks.writer,
        stop: stop.clone(),
    };
    let deadline = async {
        stop.cancelled().await;
        sleep(settings.drain_timeout).await;
    };
    let ended = tokio::select! {
        done = work.run(*partitions.borrow()) => done,
        () = deadline => Err(ConsumerError::Drain(humantime::format_duration(settings.drain_timeout))),
        _ = &mut probing => Err(ConsumerError::Crashed("the probe")),
        _ = &mut sampling => Err(ConsumerError::Crashed("the sampling of the backlog")),
        _ = &mut trimming => return Err(ConsumerError::Crashed("trimming")),
    };
    // Whatever is still pending here is for the others now.
    stop_trimming.cancel();
    gone.cancel();
    let (trimmed, beaten) = tokio::join!(timeout(SHUTDOWN_GRACE, trimming), timeout(SHUTDOWN_GRACE, beating));
    if trimmed.is_err() || beaten.is_err() {
        tracing::warn!("Redis does not answer: others will notice by and by that this consumer is gone");
    }
    if let Ok(beaten) = beaten {
        beaten.map_err(|_| ConsumerError::Crashed("the heartbeat"))??;
    }
    ended?;
    trimmed.map_or(Ok(()), |trimmed| trimmed.map_err(|_| ConsumerError::Crashed("trimming")))
}

/// From Redis into Postgres.
struct Work<'a> {
    settings: &'a Settings,
    streams: Streams,
    pool: Pool,
    in_flight: Arc<InFlight>,
    commit_times: Arc<CommitTimes>,
    ownership: watch::Receiver<Ownership>,
    metrics: Arc<Metrics>,
    tracing: Tracing,
    reader: admin::Check,
    writer: admin::Check,
    stop: CancellationToken,
}

impl Work<'_> {
    /// Reads until stopped, and until all that was read is stored and acknowledged. The reader's end closes the channel,
    /// and the writer ends when that is empty.
    async fn run(self, partitions: PartitionCount) -> Result<(), ConsumerError> {
        let Self {
            settings,
            streams,
            pool,
            in_flight,
            commit_times,
            ownership,
            metrics,
            tracing,
            reader,
            writer,
            stop,
        } = self;
        let (entries, receiver) = mpsc::unbounded_channel();
        let rows = settings.batch_rows.get();
        writer.pass();
        let writer = Writer {
            pool,
            limits: BatchLimits { rows, linger: settings.batch_linger },
            transactions: settings.transactions(),
            predictor: InsertPredictor::default(),
            acknowledger: Acknowledger {
                streams: streams.clone(),
                in_flight: Arc::clone(&in_flight),
                commit_times,
                metrics: Arc::clone(&metrics),
                tracing: BatchTracing::new(tracing.clone(), &streams),
                log_rates: Arc::default(),
            },
            check: writer,
        };
        let writing = AbortOnDropHandle::new(tokio::spawn(writer.run(receiver)));

        let limits = partition_reader::ReadLimits {
            rows_in_flight: BATCHES_IN_FLIGHT * rows,
            poll_min: partition_reader::poll_min(settings.batch_linger),
            claim_min_idle: settings.claim_min_idle,
            max_deliveries: settings.max_deliveries,
            started: Instant::now(),
        };
        let (health, shutdown) = (Arc::new(ReadHealth::new(reader)), stop.clone());
        let owned = ownership.clone();
        let reader = move |partition| PartitionReader {
            partition,
            streams: streams.clone(),
            limits,
            in_flight: Arc::clone(&in_flight),
            entries: entries.clone(),
            ownership: owned.clone(),
            metrics: Arc::clone(&metrics),
            tracing: tracing.clone(),
            log_rates: partition_reader::LogRates::default(),
            health: Arc::clone(&health),
            shutdown: shutdown.clone(),
        };
        let stable_name = settings.consumer_name.is_some();
        let reader = Supervisor { reader, ownership, stable_name, shutdown: stop };
        let reading = AbortOnDropHandle::new(tokio::spawn(reader.run(partitions)));

        let read = async {
            let read = reading.await.map_err(|_| ConsumerError::Crashed("the reader"))?;
            read.map_err(|ReaderCrashed| ConsumerError::Crashed("a reader"))
        };
        let written = async { writing.await.map_err(|_| ConsumerError::Crashed("the writer")) };
        tokio::try_join!(read, written).map(drop)
    }
}

/// The host's name and a suffix that no other process has.
fn unique_name() -> String {
    let host = gethostname::gethostname();
    format!("{}-{}-{:08x}", host.to_string_lossy(), process::id(), rand::random::<u32>())
}
