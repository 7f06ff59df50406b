//! Life cycle of ingest: start, serve, graceful shutdown.

use std::{io, net::SocketAddr, pin::pin, process::ExitCode, sync::Arc, time::Duration};

use clap::Parser;
use shared::{
    cluster_settings::{self, ClusterSettingsError},
    redis::{Connections, Redis},
    runtime::{
        admin::{self, Check, Health},
        service::{self, Failure, Signals, wait_until_available},
    },
    settings::{self, SettingError},
    telemetry::{Telemetry, spans::Tracing},
    wire::partition::PartitionCount,
};
use thiserror::Error;
use tokio::{net::TcpListener, sync::watch, time::sleep};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::{AbortOnDropHandle, TaskTracker},
};

use crate::{
    backlog::{self, Backlog},
    config::Settings,
    edge::{
        auth::{Authenticator, SetupError},
        connections::Server,
        tls::Tls,
    },
    http::{
        problem::Kind,
        router::{cors, router},
        service::Service,
    },
    metrics::Metrics,
    publish::{
        append::RedisStreams,
        group_commit::{GroupCommit, Publisher},
        sink::LikeSink,
        starting::StartingSink,
    },
};

/// Error that ends ingest.
#[derive(Debug, Error)]
enum IngestError {
    #[error(transparent)]
    Setting(#[from] SettingError),
    #[error("{setting}: cannot listen on {address}")]
    Listen { setting: &'static str, address: SocketAddr, source: io::Error },
    #[error(transparent)]
    Auth(#[from] SetupError),
    /// The settings differ from the cluster settings in Redis.
    #[error(transparent)]
    ClusterSettings(#[from] ClusterSettingsError),
    /// A task ended before shutdown.
    #[error(
        "{0} stopped unexpectedly: this is a bug; likes without a response may or may not be in the stream"
    )]
    Crashed(&'static str),
    #[error("graceful shutdown exceeded DRAIN_TIMEOUT ({0}); requests in flight got no response")]
    Drain(humantime::FormattedDuration),
}

impl Failure for IngestError {
    fn is_over_a_setting(&self) -> bool {
        match self {
            Self::Setting(_) => true,
            Self::Auth(error) => error.is_over_a_setting(),
            Self::ClusterSettings(error) => error.is_over_a_setting(),
            _ => false,
        }
    }
}

/// Runs the whole program: settings, telemetry, runtime, service. Not generic, so that it is compiled with this library.
pub fn main() -> ExitCode {
    let settings: Settings = settings::parse();
    let telemetry = settings.telemetry().clone();
    let threads = settings.threads();
    service::run("ingest", &telemetry, threads, |telemetry, signals| run(settings, telemetry, signals))
}

/// Serves until `shutdown`, then drains the requests in flight.
async fn run(
    settings: Settings,
    telemetry: Telemetry,
    Signals { shutdown, reload }: Signals,
) -> Result<(), IngestError> {
    let redis = Redis::new(&settings.redis)?;
    let tls = Tls::load(&settings.tls, &reload)?;
    let auth = shutdown.run_until_cancelled(Authenticator::new(&settings.auth, &reload)).await;
    let Some(auth) = auth.transpose()? else { return Ok(()) };
    let (listener, redis_check, _admin) = listen(&settings, &telemetry, shutdown.clone()).await?;

    let scheme = if tls.is_some() { "https" } else { "http" };
    let metrics = Arc::new(metrics(&telemetry, &settings, scheme));
    let backlog = Arc::new(Backlog::new(settings.ingest_backlog_limit));
    Metrics::observe_backlog(&telemetry.meter(), &backlog);
    let sink = StartingSink::default();
    let requests = TaskTracker::new();
    let service = Service {
        sink: sink.clone(),
        backlog: Arc::clone(&backlog),
        metrics: Arc::clone(&metrics),
        tracing: telemetry.tracing(),
        auth,
        limits: settings.request_limits(),
        requests: requests.clone(),
    };
    let server = Server {
        router: router(service, cors(&settings.ingest_cors_origins), settings.ingest_docs),
        limits: settings.connection_limits(),
        tls,
        requests,
        metrics: Arc::clone(&metrics),
    };
    let start = async {
        let connected = connect(&redis, &settings, &redis_check).await?;
        let (publisher, tasks) =
            start_tasks(connected, &settings, telemetry.tracing(), &metrics, &backlog, redis_check);
        sink.open(publisher);
        Ok(tasks)
    };
    serve(server, listener, start, settings.drain_timeout, shutdown).await
}

/// Serves HTTP as the program does, with limits from the environment and a sink other than Redis. Benchmarks use it for
/// comparison. Returns after `shutdown`, when the requests in flight have their responses.
pub async fn serve_with<S: LikeSink>(
    listener: TcpListener,
    sink: S,
    telemetry: &Telemetry,
    shutdown: CancellationToken,
) {
    let defaults = Settings::parse_from(["ingest"]);
    let requests = TaskTracker::new();
    let metrics = Arc::new(metrics(telemetry, &defaults, "http"));
    let service = Service {
        sink,
        backlog: Arc::new(Backlog::new(u64::MAX)),
        metrics: Arc::clone(&metrics),
        tracing: telemetry.tracing(),
        auth: Authenticator::off(),
        limits: defaults.request_limits(),
        requests: requests.clone(),
    };
    let server = Server {
        router: router(service, None, false),
        limits: defaults.connection_limits(),
        tls: None,
        requests,
        metrics,
    };
    server.run(listener, shutdown).await;
}

fn metrics(telemetry: &Telemetry, settings: &Settings, scheme: &'static str) -> Metrics {
    let codes = Kind::ALL.iter().map(|kind| kind.code());
    Metrics::new(&telemetry.meter(), scheme, &settings.streams.likes_stream, codes)
}

/// Binds the public port and the admin port, and serves the admin port until the guard is dropped.
async fn listen(
    settings: &Settings,
    telemetry: &Telemetry,
    shutdown: CancellationToken,
) -> Result<(TcpListener, Check, DropGuard), IngestError> {
    let (listener, listen) = bind("INGEST_LISTEN", settings.ingest_listen).await?;
    let (admin_listener, admin_listen) = bind("INGEST_ADMIN_LISTEN", settings.ingest_admin_listen).await?;
    tracing::info!(%listen, %admin_listen, "listening");
    if settings.auth.is_off() && !listen.ip().is_loopback() {
        tracing::warn!(%listen, "authentication is off on a non-loopback address, set INGEST_AUTH or allow only a gateway");
    }
    let health = Health::new(shutdown);
    let redis_check = health.start_check("redis");
    let stop_admin = CancellationToken::new();
    let admin_guard = stop_admin.clone().drop_guard();
    tokio::spawn(admin::serve(admin_listener, health, telemetry.clone(), stop_admin));
    Ok((listener, redis_check, admin_guard))
}

async fn bind(setting: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), IngestError> {
    let failed = |source| IngestError::Listen { setting, address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

struct Connected {
    redis: Connections,
    partitions: PartitionCount,
    streams: RedisStreams,
}

/// Connects to Redis, however long that takes, and checks the cluster settings.
async fn connect(redis: &Redis, settings: &Settings, check: &Check) -> Result<Connected, IngestError> {
    let server = format!("Redis at {}", redis.address());
    let redis = wait_until_available(&server, check, || redis.connect_or_refuse()).await?;
    let partitions =
        cluster_settings::negotiate_when_available(&server, check, &redis, &settings.streams).await?;
    cluster_settings::warn_of_eviction(&redis).await;
    let timeout = settings.redis.redis_timeout;
    let choose = async || RedisStreams::new(redis.clone(), settings.redis_ack, timeout).await;
    let streams = wait_until_available(&server, check, choose).await?;
    Ok(Connected { redis, partitions, streams })
}

/// Background tasks.
struct Tasks {
    group_commit: AbortOnDropHandle<()>,
    backlog: AbortOnDropHandle<()>,
    _cluster_settings: AbortOnDropHandle<()>,
}

fn start_tasks(
    connected: Connected,
    settings: &Settings,
    tracing: Tracing,
    metrics: &Arc<Metrics>,
    backlog: &Arc<Backlog>,
    redis_check: Check,
) -> (Publisher, Tasks) {
    let Connected { redis, partitions, streams } = connected;
    let keys = settings.streams.likes_stream.clone();
    let partitions = watch::Sender::new(partitions);
    let limits = settings.group_commit_limits(streams.entry_timeout(settings.redis.redis_timeout));
    let (publisher, group_commit) = GroupCommit::new(
        move |stream| streams.open(stream),
        keys.clone(),
        partitions.subscribe(),
        limits,
        Arc::clone(metrics),
        tracing,
    );
    let sample = backlog::sample(
        redis.clone(),
        keys.clone(),
        partitions.subscribe(),
        Arc::clone(backlog),
        redis_check,
    );
    let tasks = Tasks {
        group_commit: AbortOnDropHandle::new(tokio::spawn(group_commit.run())),
        backlog: AbortOnDropHandle::new(tokio::spawn(sample)),
        _cluster_settings: AbortOnDropHandle::new(tokio::spawn(cluster_settings::watch(
            redis, keys, partitions,
        ))),
    };
    (publisher, tasks)
}

/// Serves until `shutdown`, then drains for at most `drain_timeout`. Likes are accepted once `start` has reached Redis.
async fn serve(
    server: Server,
    listener: TcpListener,
    start: impl Future<Output = Result<Tasks, IngestError>>,
    drain_timeout: Duration,
    shutdown: CancellationToken,
) -> Result<(), IngestError> {
    let deadline = shutdown.clone();
    let work = async {
        let mut serving = pin!(server.run(listener, shutdown));
        let mut tasks = tokio::select! {
            () = &mut serving => return Ok(()),
            started = start => started?,
        };
        tokio::select! {
            () = serving => {}
            _ = &mut tasks.group_commit => return Err(IngestError::Crashed("group commit")),
            _ = &mut tasks.backlog => return Err(IngestError::Crashed("backlog sampling")),
        }
        // The connections owned the publisher. Now that they have ended, group commit completes the queued likes and ends.
        tasks.group_commit.await.map_err(|_| IngestError::Crashed("group commit"))
    };
    let deadline = async {
        deadline.cancelled().await;
        sleep(drain_timeout).await;
    };
    tokio::select! {
        done = work => done,
        () = deadline => Err(IngestError::Drain(humantime::format_duration(drain_timeout))),
    }
}
