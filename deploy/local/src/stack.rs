//! The whole of likestream on this machine, in the order in which it starts and stops.

use std::{path::Path, time::Duration};

use local::{
    LocalError,
    postgres_server::{PostgresOptions, PostgresServer},
    process::Lifetime,
    program::{self, Program},
    redis_server::{RedisOptions, RedisServer},
};
use tempfile::TempDir;

const READY: Duration = Duration::from_secs(20);
const STOP: Duration = Duration::from_secs(40);

/// Where its parts should listen; nothing for any free port.
#[derive(Clone, Copy, Default)]
pub(crate) struct Ports {
    pub(crate) redis: Option<u16>,
    pub(crate) postgres: Option<u16>,
    pub(crate) ingest: u16,
    pub(crate) ingest_admin: u16,
    pub(crate) consumers_admin: [u16; 2],
}

/// All of it. Dropped, its parts end in this order.
pub(crate) struct Stack {
    pub(crate) ingest: Program,
    pub(crate) consumers: [Program; 2],
    pub(crate) redis: RedisServer,
    pub(crate) postgres: PostgresServer,
    pub(crate) logs: TempDir,
}

impl Stack {
    /// Starts it and waits until all of it is ready.
    pub(crate) fn start(ports: Ports, lifetime: Lifetime) -> Result<Self, LocalError> {
        let logs = tempfile::Builder::new().prefix("likestream-logs-").tempdir();
        let logs = logs.map_err(LocalError::io("no temporary folder can be made"))?;
        // A like that Redis has taken must survive a crash of Redis.
        let arguments = ["--appendonly", "yes"].map(str::to_owned).to_vec();
        let redis = RedisServer::start(RedisOptions { port: ports.redis, arguments }, lifetime)?;
        let options = PostgresOptions { port: ports.postgres, settings: Vec::new() };
        let postgres = PostgresServer::start(options, lifetime)?;
        let database_url = postgres.url("postgres");
        migrate(&database_url)?;

        let address = |port: u16| format!("127.0.0.1:{port}");
        let redis_url = || ("REDIS_URL", redis.url());
        let log = |name: &str| logs.path().join(format!("{name}.log"));
        let ingest_settings = [
            redis_url(),
            ("INGEST_LISTEN", address(ports.ingest)),
            ("INGEST_ADMIN_LISTEN", address(ports.ingest_admin)),
        ];
        let ingest = Program::start("ingest", &ingest_settings, &log("ingest"))?;
        let consumer = |number: usize| {
            let consumer_settings = [
                redis_url(),
                ("DATABASE_URL", database_url.clone()),
                ("CONSUMER_ADMIN_LISTEN", address(ports.consumers_admin[number])),
                // All programs and the load share one machine, which may be slow: fewer and bigger transactions.
                ("BATCH_LINGER", "150ms".to_owned()),
            ];
            Program::start("consumer", &consumer_settings, &log(&format!("consumer-{}", number + 1)))
        };
        let consumers = [consumer(0)?, consumer(1)?];
        for program in consumers.iter().chain([&ingest]) {
            program.wait_ready(READY)?;
        }
        Ok(Self { ingest, consumers, redis, postgres, logs })
    }

    /// SIGTERM to the programs, ingest first, and each has to end well; then the servers.
    pub(crate) fn stop(mut self) -> Result<(), LocalError> {
        for program in [&mut self.ingest].into_iter().chain(&mut self.consumers) {
            let status = program.terminate(STOP)?;
            if !status.success() {
                let last_words = program.log_text().lines().last().unwrap_or_default().to_owned();
                return Err(LocalError::Ended { program: format!("a program, with {status}"), last_words });
            }
        }
        Ok(())
    }
}

fn migrate(database_url: &str) -> Result<(), LocalError> {
    let mut command = program::command("likesctl", &[("DATABASE_URL", database_url.to_owned())])?;
    let output = command.arg("migrate").output();
    let output = output.map_err(|source| LocalError::Spawn { program: "likesctl".to_owned(), source })?;
    if output.status.success() {
        return Ok(());
    }
    let last_words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(LocalError::Ended { program: "likesctl migrate".to_owned(), last_words })
}

/// For people: what to look at when something went wrong.
pub(crate) fn last_lines(log: &Path, lines: usize) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
