//! Measured servers, and their state between two runs.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use bytes::Bytes;
use devstack::{
    StackError,
    backlog::{self, Keys},
    postgres_server::{self, PostgresOptions, PostgresServer},
    process::Lifetime,
    program::{self, Program},
    redis_server::{RedisOptions, RedisServer},
};
use futures_util::{StreamExt, TryStreamExt, stream};
use shared::{
    redis::{Connections, Redis, Retry},
    wire::{codec, partition::Partition},
};
use tempfile::TempDir;
use tokio::time::sleep;
use tokio_postgres::Client;

use crate::BenchError;

/// Settings of Postgres: the memory of a small production server, and no checkpoint during a run.
pub(crate) const POSTGRES_SETTINGS: [(&str, &str); 4] = [
    ("shared_buffers", "1GB"),
    ("max_wal_size", "16GB"),
    ("checkpoint_timeout", "1h"),
    ("track_commit_timestamp", "on"),
];

pub(crate) const REDIS_ARGUMENTS: [&str; 4] = ["--appendonly", "yes", "--auto-aof-rewrite-percentage", "0"];

const READY: Duration = Duration::from_secs(20);

/// Time between two checks of the backlog, and time without progress after which draining fails.
const DRAINED_POLL: Duration = Duration::from_millis(10);
const STALLED: Duration = Duration::from_mins(1);

/// Number of concurrent appends.
const APPENDS_IN_FLIGHT: usize = 512;

/// Redis, Postgres with the schema, and connections to both.
pub(crate) struct Servers {
    pub(crate) redis: RedisServer,
    pub(crate) postgres: PostgresServer,
    pub(crate) sql: Client,
    connections: Connections,
    keys: Keys,
    logs: TempDir,
}

impl Servers {
    pub(crate) async fn start() -> Result<Self, BenchError> {
        let arguments = REDIS_ARGUMENTS.map(str::to_owned).to_vec();
        let redis =
            RedisServer::start(RedisOptions { arguments, ..RedisOptions::default() }, Lifetime::Attached)?;
        let settings = POSTGRES_SETTINGS.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let postgres = PostgresServer::start(
            PostgresOptions { settings, ..PostgresOptions::default() },
            Lifetime::Attached,
        )?;
        let url = postgres.url("postgres");
        program::run("likesctl", &["migrate"], &[("DATABASE_URL", url.clone())])?;
        let sql = postgres_server::connect(&url).await?;
        let connections = Redis::at(&redis.url(), Duration::from_secs(30))?.connect().await?;
        let logs = tempfile::Builder::new().prefix("likestream-bench-").tempdir()?;
        Ok(Self { redis, postgres, sql, connections, keys: Keys::default(), logs })
    }

    pub(crate) fn database_url(&self) -> String {
        self.postgres.url("postgres")
    }

    /// Removes all likes and completes all writes to disk.
    pub(crate) async fn empty(&self) -> Result<(), BenchError> {
        self.empty_streams().await?;
        self.sql.batch_execute("TRUNCATE likes").await?;
        self.checkpoint().await
    }

    /// Completes the writes of earlier runs, so that they do not affect the next one.
    pub(crate) async fn checkpoint(&self) -> Result<(), BenchError> {
        Ok(self.sql.batch_execute("CHECKPOINT").await?)
    }

    /// Removes all entries and consumer groups.
    pub(crate) async fn empty_streams(&self) -> Result<(), BenchError> {
        for partition in self.keys.partitions() {
            let stream = self.keys.stream(partition);
            let keys = vec![stream.as_str().into(), self.keys.dead_letters(partition).into()];
            self.connections.run::<u64>(&stream, Retry::Idempotent, "DEL", keys).await?;
        }
        Ok(())
    }

    pub(crate) async fn append(&self, entries: Vec<(Partition, Bytes)>) -> Result<(), BenchError> {
        let appends = stream::iter(entries).map(async |(partition, payload)| {
            let stream = self.keys.stream(partition);
            let entry = vec![stream.as_str().into(), "*".into(), codec::FIELD.into(), payload.into()];
            self.connections.run::<String>(&stream, Retry::NonIdempotent, "XADD", entry).await.map(drop)
        });
        Ok(appends.buffer_unordered(APPENDS_IN_FLIGHT).try_collect::<()>().await?)
    }

    /// Waits until the backlog is empty.
    pub(crate) async fn drained(&self, consumers: &[Program]) -> Result<(), BenchError> {
        let mut least = u64::MAX;
        let mut progressed_at = Instant::now();
        loop {
            if let Some(last_output) = consumers.iter().find_map(Program::last_output_if_ended) {
                return Err(StackError::Ended { program: "consumer".to_owned(), last_output }.into());
            }
            let entries = backlog::entries(&self.connections, self.keys.streams()).await?;
            if entries == 0 {
                return Ok(());
            }
            if entries < least {
                least = entries;
                progressed_at = Instant::now();
            } else if progressed_at.elapsed() > STALLED {
                let logs = consumers.iter().map(Program::log_text);
                let last_lines = logs.map(|log| log.lines().last().unwrap_or_default().to_owned()).collect();
                return Err(BenchError::Stalled { entries, last_lines });
            }
            sleep(DRAINED_POLL).await;
        }
    }

    /// Starts consumers with a static assignment, so that no consumer waits for a rebalance.
    pub(crate) fn start_consumers(
        &self,
        count: u16,
        settings: &[(&'static str, &str)],
    ) -> Result<Vec<Program>, BenchError> {
        let consumers = (0..count).map(|number| {
            let mut all = vec![
                ("REDIS_URL", self.redis.url()),
                ("DATABASE_URL", self.database_url()),
                ("CONSUMER_ADMIN_LISTEN", "127.0.0.1:0".to_owned()),
                ("CONSUMER_PARTITIONS", format!("{number}/{count}")),
            ];
            all.extend(settings.iter().map(|(name, value)| (*name, (*value).to_owned())));
            Program::start("consumer", &all, &self.log(&format!("consumer-{number}.log")))
        });
        Ok(consumers.collect::<Result<_, _>>()?)
    }

    /// Starts ingest and waits until it is ready.
    pub(crate) fn start_ingest(&self, settings: &[(&'static str, &str)]) -> Result<Program, BenchError> {
        let mut all = vec![
            ("REDIS_URL", self.redis.url()),
            ("INGEST_LISTEN", "127.0.0.1:0".to_owned()),
            ("INGEST_ADMIN_LISTEN", "127.0.0.1:0".to_owned()),
            // No backpressure: the streams can grow as long as a run needs.
            ("INGEST_BACKLOG_LIMIT", "1000000000".to_owned()),
        ];
        all.extend(settings.iter().map(|(name, value)| (*name, (*value).to_owned())));
        let ingest = Program::start("ingest", &all, &self.log("ingest.log"))?;
        ingest.wait_ready(READY)?;
        Ok(ingest)
    }

    /// Starts the HTTP service of ingest with another sink: `discard` or `insert`.
    pub(crate) fn start_bench_server(&self, sink: &str) -> Result<Program, BenchError> {
        let settings = [("BENCH_SINK", sink.to_owned()), ("DATABASE_URL", self.database_url())];
        Ok(Program::start("bench-server", &settings, &self.log(&format!("{sink}.log")))?)
    }

    fn log(&self, name: &str) -> std::path::PathBuf {
        Path::new(self.logs.path()).join(name)
    }

    pub(crate) async fn rows(&self) -> Result<u64, BenchError> {
        let row = self.sql.query_one("SELECT count(*) FROM likes", &[]).await?;
        Ok(row.try_get::<_, i64>(0)?.unsigned_abs())
    }

    /// Checks the number of rows after a run.
    ///
    /// # Errors
    /// When it differs: the run is invalid.
    pub(crate) async fn check_rows(&self, expected: u64) -> Result<(), BenchError> {
        let rows = self.rows().await?;
        if rows == expected { Ok(()) } else { Err(BenchError::Rows { rows, expected }) }
    }

    /// Bytes of write-ahead log so far.
    pub(crate) async fn wal_bytes(&self) -> Result<f64, BenchError> {
        let sql = "SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::float8";
        Ok(self.sql.query_one(sql, &[]).await?.try_get(0)?)
    }

    /// Number of writing transactions so far, including this query.
    pub(crate) async fn transactions(&self) -> Result<f64, BenchError> {
        Ok(self.sql.query_one("SELECT txid_current()::float8", &[]).await?.try_get(0)?)
    }

    /// Memory in use by Redis, in bytes.
    pub(crate) fn redis_bytes(&self) -> Result<f64, BenchError> {
        let memory = self.redis.command(&["INFO", "memory"])?;
        let used = memory.lines().find_map(|line| line.strip_prefix("used_memory:")?.trim().parse().ok());
        used.ok_or(BenchError::Unknown("cannot read the memory use of Redis"))
    }
}

/// Shuts programs down gracefully.
///
/// # Errors
/// When a program does not shut down gracefully.
pub(crate) fn stop(programs: impl IntoIterator<Item = Program>) -> Result<(), BenchError> {
    for mut program in programs {
        program.stop()?;
    }
    Ok(())
}
