//! The consumer service: entries from Redis Streams into Postgres, and `likesctl`.
//!
//! `reader` takes entries from `stream` and decodes them (`entry`), `writer` collects them (`batch`), stores them
//! (`copy`) and acknowledges them (`stream` again, with the proof from `copy`). What can't be stored is a
//! `dead_letter`. Beside them `trim` keeps Redis small and `probe` knows whether the servers are there.

mod backoff;
mod batch;
mod bisection;
pub mod cli;
pub mod config;
mod copy;
mod dead_letter;
mod departed;
mod entry;
mod in_flight;
mod isolate;
mod metrics;
mod pooling;
mod probe;
mod reader;
pub mod schema;
mod stream;
mod trim;
mod writer;

use std::{io, net::SocketAddr, process, sync::Arc};

use deadpool_postgres::{BuildError, Pool};
use fred::prelude::Client;
use shared::{
    admin::{self, Health},
    agreement::{self, AgreementError},
    cli::SettingError,
    pg,
    redis::{Redis, Use, is_refusal},
    service::{Failure, Unreachable, wait_for},
    telemetry::Telemetry,
};
use thiserror::Error;
use tokio::{net::TcpListener, sync::mpsc, time::sleep};
use tokio_postgres::NoTls;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    batch::Limits,
    config::Settings,
    in_flight::InFlight,
    metrics::Metrics,
    pooling::Pooling,
    reader::{BLOCK, Reader},
    schema::SchemaError,
    stream::{GroupError, Streams},
    writer::Writer,
};

/// One for the writer, one for the probe.
const CONNECTIONS: usize = 2;

/// Names without pending entries go when they were idle for this many times `CLAIM_MIN_IDLE`.
const DEPARTED_CLAIM_MIN_IDLES: u32 = 10;

/// Batches in flight: one that is written, one that is read.
const BATCHES_IN_FLIGHT: usize = 2;

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
    Agreement(#[from] AgreementError),
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
            Self::Setting(_) => true,
            Self::Agreement(error) => error.is_over_a_setting(),
            _ => false,
        }
    }
}

/// What readiness depends on.
struct Checks {
    redis: admin::Check,
    postgres: admin::Check,
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
    let postgres = pg::config(&settings.postgres, "likestream consumer")?;
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
        reader: health.check("reader"),
        writer: health.check("writer"),
    };
    let stop_admin = CancellationToken::new();
    let _admin_ends_with_this = stop_admin.clone().drop_guard();
    tokio::spawn(admin::serve(listener, health, telemetry.clone(), stop_admin));

    let connect = connect(&redis, &postgres, &settings);
    let Some((commands, reads)) = shutdown.run_until_cancelled(connect).await.transpose()? else {
        return Ok(());
    };
    let pool = pg::pool(postgres, CONNECTIONS, settings.transactions().connected())?;
    let streams = Streams::new(commands, &settings.streams, settings.likes_group.clone(), consumer);
    streams.ensure_groups().await?;

    let metrics = Arc::new(Metrics::new(&telemetry.meter()));
    let ended = consume(&settings, &streams, reads, pool, metrics, checks, shutdown).await;
    if let Err(error) = streams.leave().await {
        tracing::warn!(%error, "the consumer's name stays in the group");
    }
    ended
}

/// Redis first, then Postgres; the record of settings and the schema before anything is touched.
async fn connect(
    redis: &Redis,
    postgres: &tokio_postgres::Config,
    settings: &Settings,
) -> Result<(Client, Client), ConsumerError> {
    let limit = settings.startup_timeout;
    let server = format!("Redis at {}", redis.address());
    let commands = wait_for(server, "REDIS_URL", limit, is_refusal, || redis.connect(Use::Commands)).await?;
    let server = format!("Redis at {}", redis.address());
    let reads =
        wait_for(server, "REDIS_URL", limit, is_refusal, || redis.connect(Use::BlockingReads(BLOCK))).await?;
    agreement::settle(&commands, &settings.streams).await?;
    agreement::warn_of_eviction(&commands).await;

    let (client, connection) =
        wait_for(pg::address(postgres), "DATABASE_URL", limit, pg::is_refusal, || postgres.connect(NoTls))
            .await?;
    tokio::spawn(connection);
    if settings.postgres_pooling == Pooling::Session && pooling::shares_sessions(postgres, &client).await {
        return Err(pooling::wrong_setting().into());
    }
    schema::check(&client).await?;
    Ok((commands, reads))
}

async fn consume(
    settings: &Settings,
    streams: &Streams,
    reads: Client,
    pool: Pool,
    metrics: Arc<Metrics>,
    checks: Checks,
    shutdown: CancellationToken,
) -> Result<(), ConsumerError> {
    let probe = probe::run(streams.clone(), pool.clone(), checks.redis, checks.postgres);
    let mut probing = AbortOnDropHandle::new(tokio::spawn(probe));
    let departed = departed::run(streams.clone(), settings.claim_min_idle * DEPARTED_CLAIM_MIN_IDLES);
    let mut removing_departed = AbortOnDropHandle::new(tokio::spawn(departed));
    let stop_trimming = CancellationToken::new();
    let trimming =
        trim::run(streams.clone(), settings.stream_retention, Arc::clone(&metrics), stop_trimming.clone());
    let mut trimming = AbortOnDropHandle::new(tokio::spawn(trimming));

    let in_flight = Arc::new(InFlight::default());
    let (sender, receiver) = mpsc::unbounded_channel();
    let rows = settings.batch_rows.get();
    checks.writer.pass();
    let writer = Writer {
        pool,
        streams: streams.clone(),
        limits: Limits { rows, linger: settings.batch_linger },
        transactions: settings.transactions(),
        in_flight: Arc::clone(&in_flight),
        metrics: Arc::clone(&metrics),
        check: checks.writer,
    };
    let mut writing = AbortOnDropHandle::new(tokio::spawn(writer.run(receiver)));
    let reader = Reader {
        client: reads,
        streams: streams.clone(),
        limits: reader::Limits {
            rows_in_flight: BATCHES_IN_FLIGHT * rows,
            claim_min_idle: settings.claim_min_idle,
            max_deliveries: settings.max_deliveries,
        },
        in_flight,
        entries: sender,
        metrics,
        check: checks.reader,
        shutdown: shutdown.clone(),
    };
    let reading = AbortOnDropHandle::new(tokio::spawn(reader.run()));

    // The reader's end closes the channel, and the writer ends when that is empty.
    let work = async {
        reading.await.map_err(|_| ConsumerError::Crashed("the reader"))?;
        (&mut writing).await.map_err(|_| ConsumerError::Crashed("the writer"))
    };
    let deadline = async {
        shutdown.cancelled().await;
        sleep(settings.drain_timeout).await;
    };
    tokio::select! {
        done = work => done?,
        () = deadline => return Err(ConsumerError::Drain(humantime::format_duration(settings.drain_timeout))),
        _ = &mut probing => return Err(ConsumerError::Crashed("the probe")),
        _ = &mut removing_departed => return Err(ConsumerError::Crashed("the removal of names")),
        _ = &mut trimming => return Err(ConsumerError::Crashed("trimming")),
    }
    stop_trimming.cancel();
    trimming.await.map_err(|_| ConsumerError::Crashed("trimming"))
}

/// The host's name and a suffix that no other process has.
fn unique_name() -> String {
    let host = gethostname::gethostname();
    format!("{}-{}-{:08x}", host.to_string_lossy(), process::id(), rand::random::<u32>())
}
