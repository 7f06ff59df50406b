//! Life cycle of the service: listen, connect to Redis and Postgres, run the pipeline, leave the group.

use std::{io, net::SocketAddr, process, sync::Arc, time::Duration};

use shared::{
    cluster_settings::{self, ClusterSettingsError},
    postgres::{BuildError, ConnectError, Postgres},
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
use tokio::{net::TcpListener, sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    config::Settings,
    metrics::Metrics,
    pipeline::{Checks, Pipeline, PipelineError},
    store::{
        schema::{self, SchemaError},
        session::{self, Pooling},
    },
    stream::{GroupError, Streams},
    task,
};

/// Size of the connection pool: one connection for the writer, one for the readiness probe.
const CONNECTIONS: usize = 2;

/// Timeout for leaving the group. It delays the exit: all other tasks have ended by then.
const LEAVE_GRACE: Duration = Duration::from_secs(1);

/// Reason why the consumer ended without a signal.
#[derive(Debug, Error)]
pub(crate) enum ConsumerError {
    #[error(transparent)]
    Setting(#[from] SettingError),
    #[error("CONSUMER_ADMIN_LISTEN: cannot listen on {address}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error(transparent)]
    Redis(#[from] Unreachable<fred::error::Error>),
    #[error(transparent)]
    Postgres(#[from] Unreachable<ConnectError>),
    #[error(transparent)]
    Schema(#[from] SchemaError),
    #[error(transparent)]
    ClusterSettings(#[from] ClusterSettingsError),
    #[error(transparent)]
    Group(#[from] GroupError),
    #[error("cannot create the Postgres connection pool")]
    Pool(#[from] BuildError),
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
}

impl Failure for ConsumerError {
    fn is_over_a_setting(&self) -> bool {
        match self {
            Self::Setting(_) | Self::Pipeline(PipelineError::NameTaken(_)) => true,
            Self::ClusterSettings(error) => error.is_over_a_setting(),
            _ => false,
        }
    }
}

/// Runs the consumer until `shutdown`, then drains: entries that were read are stored and acknowledged.
pub(crate) async fn run(
    settings: Settings,
    telemetry: Telemetry,
    shutdown: CancellationToken,
) -> Result<(), ConsumerError> {
    let redis = Redis::new(&settings.redis)?;
    let postgres = Postgres::new(&settings.postgres, "likestream consumer")?;
    let static_assignment = settings.consumer_partitions.resolve()?;
    let (listener, address) = listen(settings.consumer_admin_listen).await?;
    let consumer = settings.consumer_name.clone().unwrap_or_else(unique_name);
    tracing::info!(admin_listen = %address, consumer, "listening");
    let health = Health::new(shutdown.clone());
    let checks = Checks::new(&health);
    let stop_admin = CancellationToken::new();
    let _admin_ends_with_this = stop_admin.clone().drop_guard();
    tokio::spawn(admin::serve(listener, health, telemetry.clone(), stop_admin));

    let connect = Box::pin(connect(&redis, &postgres, &settings));
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
    let _watching = task::spawn(Box::pin(cluster_settings::watch(redis, keys, partitions.clone())));
    let pipeline = Pipeline {
        settings,
        static_assignment,
        streams: streams.clone(),
        pool,
        partitions: partitions.subscribe(),
        metrics,
        telemetry,
        checks,
    };
    let ended = Box::pin(pipeline.run(shutdown)).await;
    let partitions = *partitions.borrow();
    if !matches!(timeout(LEAVE_GRACE, streams.leave(partitions)).await, Ok(Ok(()))) {
        tracing::warn!("could not remove this consumer from the group");
    }
    Ok(ended?)
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ConsumerError> {
    let failed = |source| ConsumerError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// Connects to Redis, then to Postgres. Checks the cluster settings and the schema version before anything is changed.
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
        wait_for(postgres.address(), "DATABASE_URL", limit, ConnectError::is_refusal, || postgres.connect())
            .await?;
    if settings.postgres_pooling == Pooling::Session && session::shares_sessions(postgres, &client).await {
        return Err(session::wrong_setting().into());
    }
    let checked = timeout(limit, schema::check(&*client)).await;
    checked.map_err(|_| {
        let waited = humantime::format_duration(limit);
        ConsumerError::Postgres(Unreachable::Silent {
            server: postgres.address().to_owned(),
            waited,
            source: None,
        })
    })??;
    Ok((connections, partitions))
}

/// Returns the host name with a suffix that is unique to this process.
fn unique_name() -> String {
    let host = gethostname::gethostname();
    format!("{}-{}-{:08x}", host.to_string_lossy(), process::id(), rand::random::<u32>())
}
