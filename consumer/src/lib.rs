//! The consumer service: entries from Redis Streams into Postgres, and `likesctl`.
//!
//! `reader` takes entries from `stream` and decodes them (`entry`), `writer` collects them (`batch`), stores them
//! (`copy`) and acknowledges them (`stream` again, with the proof from `copy`). What can't be stored is a
//! `dead_letter`. Beside them `trim` keeps Redis small and `probe` knows whether the servers are there.

mod backoff;
mod batch;
pub mod cli;
pub mod config;
mod copy;
mod dead_letter;
mod entry;
mod in_flight;
mod metrics;
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
    redis::{Redis, Use},
    service::{Unreachable, wait_for},
    telemetry::Telemetry,
};
use thiserror::Error;
use tokio::{net::TcpListener, sync::mpsc, time::sleep};
use tokio_postgres::NoTls;
use tokio_util::sync::CancellationToken;

use crate::{
    batch::Limits,
    config::Settings,
    in_flight::InFlight,
    metrics::Metrics,
    reader::{BLOCK, Reader},
    schema::SchemaError,
    stream::{GroupError, Streams},
    writer::Writer,
};

/// One for the writer, one for the probe.
const CONNECTIONS: usize = 2;

/// How many entries may lie between the reader and the writer. Their rows are bounded by what is in flight.
const ENTRIES_AHEAD: usize = 1024;

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
    #[error("the writer ended by itself: this is a bug; what was not acknowledged will be delivered again")]
    Writer,
    /// The batch in hand could not be stored in time.
    #[error(
        "not everything was stored within DRAIN_TIMEOUT, {0}: it stays pending and will be delivered again"
    )]
    Drain(humantime::FormattedDuration),
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
    let checks = [health.check("redis"), health.check("postgres"), health.check("writer")];
    let stop_admin = CancellationToken::new();
    let _admin_ends_with_this = stop_admin.clone().drop_guard();
    tokio::spawn(admin::serve(listener, health, telemetry.clone(), stop_admin));

    let connect = connect(&redis, &postgres, &settings);
    let Some((commands, reads)) = shutdown.run_until_cancelled(connect).await.transpose()? else {
        return Ok(());
    };
    let pool = pg::pool(postgres, CONNECTIONS, copy::SESSION)?;
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
    let commands = wait_for(server, "REDIS_URL", limit, || redis.connect(Use::Commands)).await?;
    let server = format!("Redis at {}", redis.address());
    let reads = wait_for(server, "REDIS_URL", limit, || redis.connect(Use::BlockingReads(BLOCK))).await?;
    agreement::settle(&commands, &settings.streams).await?;
    agreement::warn_of_eviction(&commands).await?;

    let (client, connection) =
        wait_for(pg::address(postgres), "DATABASE_URL", limit, || postgres.connect(NoTls)).await?;
    tokio::spawn(connection);
    schema::check(&client).await?;
    Ok((commands, reads))
}

async fn consume(
    settings: &Settings,
    streams: &Streams,
    reads: Client,
    pool: Pool,
    metrics: Arc<Metrics>,
    [redis_check, postgres_check, writer_check]: [admin::Check; 3],
    shutdown: CancellationToken,
) -> Result<(), ConsumerError> {
    let probe = tokio::spawn(probe::run(streams.clone(), pool.clone(), redis_check, postgres_check));
    let stop_trimming = CancellationToken::new();
    let trimming =
        trim::run(streams.clone(), settings.stream_retention, Arc::clone(&metrics), stop_trimming.clone());
    let trimming = tokio::spawn(trimming);

    let in_flight = Arc::new(InFlight::default());
    let (sender, receiver) = mpsc::channel(ENTRIES_AHEAD);
    let rows = settings.batch_rows.get();
    writer_check.pass();
    let writer = Writer {
        pool,
        streams: streams.clone(),
        limits: Limits { rows, linger: settings.batch_linger },
        write_timeout: settings.write_timeout,
        in_flight: Arc::clone(&in_flight),
        metrics: Arc::clone(&metrics),
        check: writer_check,
    };
    let mut writing = tokio::spawn(writer.run(receiver));
    let reader = Reader {
        client: reads,
        streams: streams.clone(),
        limits: reader::Limits {
            rows_in_flight: BATCHES_IN_FLIGHT * rows,
            claim_min_idle: settings.claim_min_idle,
        },
        in_flight,
        entries: sender,
        metrics,
        shutdown: shutdown.clone(),
    };
    let reading = tokio::spawn(reader.run());

    // The reader's end closes the channel, and the writer ends when that is empty.
    let deadline = async {
        shutdown.cancelled().await;
        sleep(settings.drain_timeout).await;
    };
    let ended = tokio::select! {
        ended = &mut writing => ended.map_err(|_| ConsumerError::Writer),
        () = deadline => Err(ConsumerError::Drain(humantime::format_duration(settings.drain_timeout))),
    };
    writing.abort();
    reading.abort();
    stop_trimming.cancel();
    let _ = trimming.await;
    probe.abort();
    ended
}

/// The host's name and a suffix that no other process has.
fn unique_name() -> String {
    let host = gethostname::gethostname();
    format!("{}-{}-{:08x}", host.to_string_lossy(), process::id(), rand::random::<u32>())
}
