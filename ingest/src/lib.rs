//! The ingest service: likes come in over HTTP and go out into Redis Streams, grouped, and answered only when Redis
//! has them.
//!
//! `connections` accepts, over `tls` if that is wanted, `http` takes a request, `access` and `limits` say whose may come
//! in, `like_request` reads its body, `publish` groups and `append` appends, `backlog` says when it is too much, `problem`
//! says no, and `openapi` tells callers of it all.

mod backlog;
pub mod config;
mod edge;
pub mod http;
mod metrics;
mod publish;

use std::{io, net::SocketAddr, sync::Arc};

use clap::Parser;
use shared::{
    cluster_settings::{self, ClusterSettingsError},
    redis::{Connections, Redis, is_refusal},
    runtime::{
        admin::{self, Health},
        service::{Failure, Unreachable, wait_for},
    },
    settings::SettingError,
    telemetry::Telemetry,
    wire::partition::PartitionCount,
};
use thiserror::Error;
use tokio::{net::TcpListener, sync::watch, time::sleep};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

use crate::{
    backlog::Backlog,
    config::Settings,
    edge::{
        auth::Access,
        connections::{ConnectionLimits, Server},
        tls::Tls,
    },
    http::routes::RequestLimits,
    metrics::Metrics,
    publish::{append::AppendFactory, group_commit::Publisher},
};
pub use crate::{
    edge::auth::FetchError,
    http::routes::Keep,
    publish::group_commit::{Accepted, PublishError, RequestSpan},
};

/// Why ingest ended other than by a signal.
#[derive(Debug, Error)]
pub enum IngestError {
    /// A setting can't be used.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// An address can't be had.
    #[error("{setting}: can't listen on '{address}'")]
    Listen {
        /// The setting's name.
        setting: &'static str,
        /// Its value.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Redis did not come up.
    #[error(transparent)]
    Redis(#[from] Unreachable<fred::error::Error>),
    /// The keys of tokens did not come.
    #[error(transparent)]
    Keys(#[from] Unreachable<FetchError>),
    /// Other programs work on other settings.
    #[error(transparent)]
    Agreement(#[from] ClusterSettingsError),
    /// A bug.
    #[error("{0} ended by itself: this is a bug; likes without an answer may have been taken or not")]
    Crashed(&'static str),
    /// Some request would not end.
    #[error("requests were still in flight after DRAIN_TIMEOUT, {0}: they got no answer")]
    Drain(humantime::FormattedDuration),
}

impl Failure for IngestError {
    fn is_over_a_setting(&self) -> bool {
        match self {
            Self::Setting(_) => true,
            Self::Agreement(error) => error.is_over_a_setting(),
            _ => false,
        }
    }
}

/// Runs ingest until `shutdown`, and then until the requests in flight are answered.
pub async fn run(
    settings: Settings,
    telemetry: Telemetry,
    shutdown: CancellationToken,
) -> Result<(), IngestError> {
    let redis = Redis::new(&settings.redis)?;
    let tls = Tls::load(&settings.tls)?;
    let Some(access) = shutdown.run_until_cancelled(Access::new(&settings.access)).await.transpose()? else {
        return Ok(());
    };
    let (listener, listen) = listen_on("INGEST_LISTEN", settings.ingest_listen).await?;
    let (admin_listener, admin_listen) =
        listen_on("INGEST_ADMIN_LISTEN", settings.ingest_admin_listen).await?;
    tracing::info!(%listen, %admin_listen, "listening");
    if settings.access.is_off() && !listen.ip().is_loopback() {
        tracing::warn!(%listen, "anybody who can reach this address may write likes of any user: set INGEST_AUTH, or see to it that only a gateway can");
    }
    let health = Health::default();
    let redis_check = health.check("redis");
    let stop_admin = CancellationToken::new();
    let _admin_ends_with_this = stop_admin.clone().drop_guard();
    tokio::spawn(admin::serve(admin_listener, health, telemetry.clone(), stop_admin));

    let Some((redis, partitions, appends)) =
        shutdown.run_until_cancelled(connect(&redis, &settings)).await.transpose()?
    else {
        return Ok(());
    };
    let meter = telemetry.meter();
    let scheme = if tls.is_some() { "https" } else { "http" };
    let metrics = Arc::new(Metrics::new(&meter, scheme, &settings.streams.likes_stream));
    let backlog = Arc::new(Backlog::new(settings.ingest_backlog_limit));
    Metrics::observe_backlog(&meter, &backlog);
    let (keys, partitions) = (settings.streams.likes_stream.clone(), watch::Sender::new(partitions));
    let sampling = backlog::sample(
        redis.clone(),
        keys.clone(),
        partitions.subscribe(),
        Arc::clone(&backlog),
        redis_check,
    );
    let mut sampling = AbortOnDropHandle::new(tokio::spawn(sampling));
    let (publisher, appender) =
        Publisher::new(appends, &settings, Arc::clone(&metrics), telemetry.tracing(), partitions.subscribe());
    let mut appending = AbortOnDropHandle::new(tokio::spawn(appender.run()));
    let _following = AbortOnDropHandle::new(tokio::spawn(cluster_settings::watch(redis, keys, partitions)));
    let requests = TaskTracker::new();
    let service = http::routes::Service {
        keep: publisher,
        backlog,
        metrics: Arc::clone(&metrics),
        tracing: telemetry.tracing(),
        access,
        limits: RequestLimits::new(&settings),
        requests: requests.clone(),
    };
    let cors = http::routes::cors(&settings.ingest_cors_origins);
    let server = Server {
        router: http::routes::router(service, cors, settings.ingest_docs),
        limits: ConnectionLimits::new(&settings),
        tls,
        requests,
        metrics,
    };

    let deadline = shutdown.clone();
    let serving = server.run(listener, shutdown);
    let work = async {
        tokio::select! {
            () = serving => {}
            _ = &mut appending => return Err(IngestError::Crashed("the appender")),
        }
        // The connections were the only ones with a publisher: their end lets the appender finish what it holds.
        appending.await.map_err(|_| IngestError::Crashed("the appender"))
    };
    let deadline = async {
        deadline.cancelled().await;
        sleep(settings.drain_timeout).await;
    };
    tokio::select! {
        done = work => done,
        () = deadline => Err(IngestError::Drain(humantime::format_duration(settings.drain_timeout))),
        _ = &mut sampling => Err(IngestError::Crashed("the sampling of the backlog")),
    }
}

/// Serves callers as [`run`] does, with limits from the environment and another keeper of likes than Redis: for
/// comparisons.
/// Returns after `shutdown`, when the requests in flight are answered.
pub async fn serve_with<K: Keep>(
    listener: TcpListener,
    keep: K,
    telemetry: &Telemetry,
    shutdown: CancellationToken,
) {
    let defaults = Settings::parse_from(["ingest"]);
    let requests = TaskTracker::new();
    let metrics = Arc::new(Metrics::new(&telemetry.meter(), "http", &defaults.streams.likes_stream));
    let service = http::routes::Service {
        keep,
        backlog: Arc::new(Backlog::new(u64::MAX)),
        metrics: Arc::clone(&metrics),
        tracing: telemetry.tracing(),
        access: Access::open(),
        limits: RequestLimits::new(&defaults),
        requests: requests.clone(),
    };
    let server = Server {
        router: http::routes::router(service, None, false),
        limits: ConnectionLimits::new(&defaults),
        tls: None,
        requests,
        metrics,
    };
    server.run(listener, shutdown).await;
}

async fn listen_on(
    setting: &'static str,
    address: SocketAddr,
) -> Result<(TcpListener, SocketAddr), IngestError> {
    let failed = |source| IngestError::Listen { setting, address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

async fn connect(
    redis: &Redis,
    settings: &Settings,
) -> Result<(Connections, PartitionCount, AppendFactory), IngestError> {
    let server = format!("Redis at {}", redis.address());
    let limit = settings.startup_timeout;
    let redis = wait_for(&server, "REDIS_URL", limit, is_refusal, || redis.connect()).await?;
    let partitions = cluster_settings::negotiate_within(limit, &server, &redis, &settings.streams).await??;
    cluster_settings::warn_of_eviction(&redis).await;
    let timeout = settings.redis.redis_timeout;
    let appends = AppendFactory::new(redis.clone(), settings.redis_ack, timeout).await?;
    Ok((redis, partitions, appends))
}
