//! The HTTP service of ingest with another sink, for comparison.

use std::{io, net::SocketAddr, process::ExitCode, sync::Arc};

use clap::{Parser, ValueEnum};
use ingest::{Accepted, LikeSink, PublishError, Published, RequestSpan, config::default_threads};
use mimalloc::MiMalloc;
use shared::{
    error_chain::one_line,
    postgres::{BuildError, Pool, Postgres},
    runtime::{
        admin::{self, Health},
        service::{self, Failure},
    },
    settings::{self, SettingError, args::PostgresArgs},
    telemetry::{Telemetry, TelemetryArgs},
    wire::{
        like::Like,
        partition::{Partition, PartitionCount},
    },
};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Statement of the simple design.
const INSERT: &str =
    "INSERT INTO likes (user_id, post_id, created_at) VALUES ($1, $2, now()) ON CONFLICT DO NOTHING";

/// Serve POST /likes with the HTTP service of ingest, without Redis
#[derive(Parser, Debug)]
#[command(name = "bench-server")]
struct Settings {
    /// Sink of accepted likes
    #[arg(long, env = "BENCH_SINK")]
    sink: Sink,

    /// Number of connections to Postgres
    #[arg(long, env = "BENCH_CONNECTIONS", default_value = "32")]
    connections: usize,

    #[command(flatten)]
    postgres: PostgresArgs,

    #[command(flatten)]
    telemetry: TelemetryArgs,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum Sink {
    /// Discard the like and respond immediately
    Discard,
    /// Store the like with one INSERT, in one transaction, through a connection pool
    Insert,
}

impl settings::Settings for Settings {
    fn check(&self) -> Result<(), SettingError> {
        Ok(())
    }
}

#[derive(Debug, Error)]
enum BenchServerError {
    #[error(transparent)]
    Setting(#[from] SettingError),
    #[error("cannot listen on a port")]
    Listen(#[from] io::Error),
    #[error("cannot create the connection pool")]
    Pool(#[from] BuildError),
}

impl Failure for BenchServerError {
    fn is_over_a_setting(&self) -> bool {
        matches!(self, Self::Setting(_))
    }
}

/// Sink that discards likes.
struct Discard {
    entry_id: Arc<str>,
}

impl LikeSink for Discard {
    async fn publish(&self, like: Like, _span: RequestSpan) -> Result<Accepted, PublishError> {
        Ok(Accepted { entry_id: Arc::clone(&self.entry_id), partition: partition(like) })
    }

    async fn publish_batch(&self, _likes: Vec<Like>, _span: RequestSpan) -> Result<(), PublishError> {
        Ok(())
    }
}

/// Sink of the simple design.
struct InsertEach {
    pool: Pool,
    entry_id: Arc<str>,
}

impl LikeSink for InsertEach {
    async fn publish(&self, like: Like, _span: RequestSpan) -> Result<Accepted, PublishError> {
        let unavailable = |error: &(dyn std::error::Error + 'static)| {
            tracing::warn!(error = one_line(error), "not inserted");
            PublishError::Unavailable("_OTHER", Published::Unknown)
        };
        let connection = self.pool.get().await.map_err(|error| unavailable(&error))?;
        let insert = connection.prepare_cached(INSERT).await.map_err(|error| unavailable(&error))?;
        let inserted = connection.execute(&insert, &[&like.user_id(), &like.post_id()]).await;
        inserted.map_err(|error| unavailable(&error))?;
        Ok(Accepted { entry_id: Arc::clone(&self.entry_id), partition: partition(like) })
    }

    async fn publish_batch(&self, likes: Vec<Like>, _span: RequestSpan) -> Result<(), PublishError> {
        for like in likes {
            self.publish(like, None).await?;
        }
        Ok(())
    }
}

fn partition(like: Like) -> Partition {
    PartitionCount::DEFAULT.of_user(like.user_id())
}

/// Same allocator as in ingest.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    let settings: Settings = settings::parse();
    let telemetry = settings.telemetry.clone();
    service::run("bench-server", &telemetry, default_threads(), |telemetry, signals| {
        run(settings, telemetry, signals.shutdown)
    })
}

async fn run(
    settings: Settings,
    telemetry: Telemetry,
    shutdown: CancellationToken,
) -> Result<(), BenchServerError> {
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    let listener = TcpListener::bind(loopback).await?;
    let admin_listener = TcpListener::bind(loopback).await?;
    let listen = listener.local_addr()?;
    let admin_listen = admin_listener.local_addr()?;
    tracing::info!(%listen, %admin_listen, "listening");
    tokio::spawn(admin::serve(admin_listener, Health::default(), telemetry.clone(), shutdown.clone()));
    // As long as a real entry id.
    let entry_id: Arc<str> = "1700000000000-0".into();
    match settings.sink {
        Sink::Discard => ingest::serve_with(listener, Discard { entry_id }, &telemetry, shutdown).await,
        Sink::Insert => {
            let postgres = Postgres::new(&settings.postgres, "likestream bench")?;
            let pool = postgres.pool(settings.connections, String::new())?;
            ingest::serve_with(listener, InsertEach { pool, entry_id }, &telemetry, shutdown).await;
        }
    }
    Ok(())
}
