//! Life cycle of the service: listen, connect to Redis and Postgres, run the pipeline, leave the group.

use std::{io, net::SocketAddr, process, sync::Arc, time::Duration};

use shared::{
    cluster_settings::{self, ClusterSettingsError},
    postgres::{BuildError, ConnectError, Postgres},
    redis::{Connections, Redis},
    runtime::{
        admin::{self, Check, Health},
        service::{Failure, wait_until_available},
    },
    settings::SettingError,
    telemetry::Telemetry,
    wire::partition::PartitionCount,
};
use thiserror::Error;
use tokio::{net::TcpListener, sync::watch, time::timeout};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::{
    config::Settings,
    group::binding::{BoundDatabase, Relation, copy_warning},
    metrics::Metrics,
    pipeline::{Checks, Pipeline, PipelineError},
    store::{
        database::{self, DatabaseIdentity},
        schema::{self, SchemaError},
        session::{self, Pooling},
        table::{self, TableError, TableFault},
    },
    stream::Streams,
    task,
};

/// Size of the connection pool: one connection for the writer, one for the readiness probe, one for watching the database.
const CONNECTIONS: usize = 3;

/// Timeout for reading the schema version at start.
const SCHEMA_TIMEOUT: Duration = Duration::from_secs(5);

/// Timeout for leaving the group. It delays the exit: all other tasks have ended by then.
const LEAVE_GRACE: Duration = Duration::from_secs(1);

/// Reason why the consumer ended without a signal.
#[derive(Debug, Error)]
pub(crate) enum ConsumerError {
    #[error(transparent)]
    Setting(#[from] SettingError),
    #[error("CONSUMER_ADMIN_LISTEN: cannot listen on {address}")]
    Listen { address: SocketAddr, source: io::Error },
    /// The schema is too new for this program.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    #[error("the table must not be written to")]
    Table(#[source] TableFault),
    #[error(transparent)]
    ClusterSettings(#[from] ClusterSettingsError),
    #[error("cannot create the Postgres connection pool")]
    Pool(#[from] BuildError),
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
}

impl Failure for ConsumerError {
    fn is_over_a_setting(&self) -> bool {
        match self {
            Self::Setting(_)
            | Self::Schema(_)
            | Self::Table(_)
            | Self::Pipeline(PipelineError::NameTaken(_) | PipelineError::WrongDatabase(_)) => true,
            Self::ClusterSettings(error) => error.is_over_a_setting(),
            _ => false,
        }
    }
}

/// Reason why Postgres cannot be used yet.
#[derive(Debug, Error)]
enum PostgresError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Schema(#[from] SchemaError),
    #[error("the table must not be written to")]
    Table(#[source] TableFault),
    #[error("no reply within {}", humantime::format_duration(SCHEMA_TIMEOUT))]
    Silent,
    #[error(transparent)]
    Setting(#[from] SettingError),
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

    let start = Box::pin(start(&redis, &postgres, &settings, consumer, &checks));
    let Some(started) = shutdown.run_until_cancelled(start).await.transpose()? else { return Ok(()) };
    let Started { redis, partitions, streams, bound } = started;
    let pool = postgres.pool(CONNECTIONS, settings.transactions(bound.database.id).connected())?;
    let keys = settings.streams.likes_stream.clone();

    let metrics = Arc::new(Metrics::new(&telemetry.meter(), &keys));
    Metrics::observe_connections(&telemetry.meter(), pool.clone());
    let partitions = watch::Sender::new(partitions);
    let _watching = task::spawn(Box::pin(cluster_settings::watch(redis, keys, partitions.clone())));
    let pipeline = Pipeline {
        settings,
        static_assignment,
        streams: streams.clone(),
        pool,
        bound,
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

/// Everything that the pipeline needs of both servers.
struct Started {
    redis: Connections,
    partitions: PartitionCount,
    streams: Streams,
    bound: BoundDatabase,
}

/// Waits until Redis and Postgres can be used, however long that takes. Changes nothing before both have been checked.
async fn start(
    redis: &Redis,
    postgres: &Postgres,
    settings: &Settings,
    consumer: String,
    checks: &Checks,
) -> Result<Started, ConsumerError> {
    let (connections, partitions) = connect_to_redis(redis, settings, &checks.redis).await?;
    let database = wait_for_postgres(postgres, settings, &checks.postgres).await?;
    let (keys, group) = (settings.streams.likes_stream.clone(), settings.likes_group.clone());
    let streams = Streams::new(connections.clone(), keys, group, consumer);
    let server = format!("Redis at {}", redis.address());
    wait_until_available(&server, &checks.redis, async || streams.check_scripts().await).await;
    let bound = bind(&streams, database, &server, &checks.redis).await?;
    wait_until_available(&server, &checks.redis, async || streams.ensure_groups(partitions).await).await;
    Ok(Started { redis: connections, partitions, streams, bound })
}

/// Waits for Redis, and checks the cluster settings.
async fn connect_to_redis(
    redis: &Redis,
    settings: &Settings,
    check: &Check,
) -> Result<(Connections, PartitionCount), ConsumerError> {
    let server = format!("Redis at {}", redis.address());
    let connections = wait_until_available(&server, check, || redis.connect_or_refuse()).await?;
    let partitions =
        cluster_settings::negotiate_when_available(&server, check, &connections, &settings.streams).await?;
    cluster_settings::warn_of_eviction(&connections).await;
    Ok((connections, partitions))
}

/// Waits for Postgres, for the permission to read the schema, and for a schema that this program supports: a migration may be
/// running.
async fn wait_for_postgres(
    postgres: &Postgres,
    settings: &Settings,
    check: &Check,
) -> Result<DatabaseIdentity, ConsumerError> {
    wait_until_available(postgres.address(), check, async || match check_postgres(postgres, settings).await {
        Err(PostgresError::Schema(error @ SchemaError::TooNew { .. })) => Ok(Err(error.into())),
        Err(PostgresError::Setting(error)) => Ok(Err(error.into())),
        Err(PostgresError::Table(fault)) => Ok(Err(ConsumerError::Table(fault))),
        checked => checked.map(Ok),
    })
    .await
}

async fn check_postgres(postgres: &Postgres, settings: &Settings) -> Result<DatabaseIdentity, PostgresError> {
    let mut session = postgres.connect().await?;
    if settings.postgres_pooling == Pooling::Session && session::shares_sessions(postgres, &session).await {
        return Err(session::wrong_setting().into());
    }
    // A pooler may accept a connection before it has a free session.
    let checked = timeout(SCHEMA_TIMEOUT, check_database(&mut session, postgres.address())).await;
    checked.map_err(|_| PostgresError::Silent)?
}

/// Checks the schema version and that the table may be written to. Any other error of the table may end by itself, and each
/// transaction verifies the table again. Returns the identity of the database.
async fn check_database(client: &mut Client, address: &str) -> Result<DatabaseIdentity, PostgresError> {
    schema::check(&*client).await?;
    match table::inspect(&*client).await {
        Err(TableError::Fault(fault)) if fault != TableFault::Missing => Err(PostgresError::Table(fault)),
        _ => Ok(database::identity(client, address).await?),
    }
}

/// Binds the group to the database, before the first entry is read.
///
/// # Errors
/// When the group is bound to another database.
async fn bind(
    streams: &Streams,
    database: DatabaseIdentity,
    server: &str,
    check: &Check,
) -> Result<BoundDatabase, SettingError> {
    let bind = || streams.bind(&database, streams.consumer(), None);
    let binding = wait_until_available(server, check, bind).await;
    let mut bound = BoundDatabase { database, binding: binding.clone() };
    if bound.accept(streams.group(), binding)? == Relation::Copy {
        let warning = copy_warning(&bound.database, &bound.binding);
        tracing::warn!(warning, "database is a restored copy");
    }
    Ok(bound)
}

/// Returns the host name with a suffix that is unique to this process.
fn unique_name() -> String {
    let host = gethostname::gethostname();
    format!("{}-{}-{:08x}", host.to_string_lossy(), process::id(), rand::random::<u32>())
}
