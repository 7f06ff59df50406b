//! The whole of likestream on this machine, in the order in which it starts and stops.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use devstack::{
    StackError,
    postgres_server::{PostgresOptions, PostgresServer},
    process::Lifetime,
    program::{self, Program},
    redis_server::RedisOptions,
};
use tempfile::TempDir;

use crate::stack_redis::{Deployment, StackRedis};

/// How long a program may take to be ready.
pub(crate) const READY: Duration = Duration::from_mins(1);
const STOP: Duration = Duration::from_secs(40);

/// How it should be.
#[derive(Default)]
pub(crate) struct StackOptions {
    /// Where its parts should listen; nothing or 0 for any free port.
    pub(crate) redis_port: Option<u16>,
    pub(crate) postgres_port: Option<u16>,
    pub(crate) ingest_port: u16,
    pub(crate) ingest_admin_port: u16,
    /// One a consumer.
    pub(crate) consumer_admin_ports: Vec<u16>,
    /// How Redis is run.
    pub(crate) redis: Deployment,
    /// More arguments for `redis-server`.
    pub(crate) redis_arguments: Vec<String>,
    /// More settings of ingest and of the consumers; later ones win.
    pub(crate) ingest_settings: Vec<(&'static str, String)>,
    pub(crate) consumer_settings: Vec<(&'static str, String)>,
}

/// All of it. Dropped, its parts end in this order.
pub(crate) struct Stack {
    pub(crate) ingest: Program,
    pub(crate) consumers: Vec<Program>,
    pub(crate) redis: StackRedis,
    pub(crate) postgres: PostgresServer,
    pub(crate) logs: TempDir,
    ingest_settings: Vec<(&'static str, String)>,
    consumer_settings: Vec<(&'static str, String)>,
}

impl Stack {
    /// Starts it and waits until all of it is ready.
    pub(crate) fn start(options: StackOptions, lifetime: Lifetime) -> Result<Self, StackError> {
        let logs = tempfile::Builder::new().prefix("likestream-logs-").tempdir();
        let logs = logs.map_err(StackError::io("no temporary folder can be made"))?;
        // A like that Redis has taken must survive a crash of Redis.
        let mut arguments = ["--appendonly", "yes"].map(str::to_owned).to_vec();
        arguments.extend(options.redis_arguments);
        let redis = RedisOptions { port: options.redis_port, arguments, ..RedisOptions::default() };
        let redis = StackRedis::start(options.redis, redis, lifetime)?;
        let postgres = PostgresOptions { port: options.postgres_port, ..PostgresOptions::default() };
        let postgres = PostgresServer::start(postgres, lifetime)?;
        program::run("likesctl", &["migrate"], &[("DATABASE_URL", postgres.url("postgres"))])?;

        let ports = (options.ingest_port, options.ingest_admin_port);
        let StackOptions { ingest_settings, consumer_settings, consumer_admin_ports, .. } = options;
        let ingest = start_ingest(&redis.url(), ports, &ingest_settings, logs.path())?;
        let consumers = Vec::new();
        let mut stack = Self { ingest, consumers, redis, postgres, logs, ingest_settings, consumer_settings };
        for (number, port) in consumer_admin_ports.into_iter().enumerate() {
            let consumer = stack.start_consumer(number, port)?;
            stack.consumers.push(consumer);
        }
        for program in stack.consumers.iter().chain([&stack.ingest]) {
            if let Err(error) = program.wait_ready(READY) {
                return Err(stack.ended_part().unwrap_or(error));
            }
        }
        Ok(stack)
    }

    fn start_consumer(&self, number: usize, admin_port: u16) -> Result<Program, StackError> {
        let mut settings = vec![
            ("REDIS_URL", self.redis.url()),
            ("DATABASE_URL", self.postgres.url("postgres")),
            ("CONSUMER_ADMIN_LISTEN", loopback(admin_port)),
            // All programs and the load share one machine, which may be slow: fewer and bigger transactions.
            ("BATCH_LINGER", "150ms".to_owned()),
        ];
        settings.extend(self.consumer_settings.iter().cloned());
        Program::start("consumer", &settings, &log(self.logs.path(), number))
    }

    /// Starts a consumer in the place of one that has ended.
    pub(crate) fn replace_consumer(&mut self, number: usize) -> Result<(), StackError> {
        let consumer = self.start_consumer(number, 0)?;
        if let Some(place) = self.consumers.get_mut(number) {
            *place = consumer;
        }
        Ok(())
    }

    /// Starts ingest in the place of one that has ended, where its callers know it.
    pub(crate) fn replace_ingest(&mut self) -> Result<(), StackError> {
        let ports = (self.ingest.listen().port(), self.ingest.admin().port());
        self.ingest = start_ingest(&self.redis.url(), ports, &self.ingest_settings, self.logs.path())?;
        Ok(())
    }

    /// A part that has ended by itself, with its last words.
    pub(crate) fn ended_part(&self) -> Option<StackError> {
        let programs = [("ingest", &self.ingest)].into_iter();
        let programs = programs.chain(self.consumers.iter().map(|consumer| ("a consumer", consumer)));
        let redis = self.redis.servers().iter().map(|server| ("redis-server", server.last_words_if_ended()));
        let servers = redis.chain([("postgres", self.postgres.last_words_if_ended())]);
        let parts = servers.chain(programs.map(|(name, p)| (name, p.last_words_if_ended())));
        let mut ended = parts.filter_map(|(name, words)| Some((name.to_owned(), words?)));
        ended.next().map(|(program, last_words)| StackError::Ended { program, last_words })
    }

    /// Lets all of it live on after this value.
    pub(crate) fn let_go(self) {
        let Self { ingest, consumers, redis, postgres, logs, .. } = self;
        consumers.into_iter().chain([ingest]).for_each(Program::detach);
        redis.detach();
        postgres.detach();
        let _ = logs.keep();
    }

    /// SIGTERM to the programs, ingest first, and each has to end well; then the servers.
    pub(crate) fn stop(mut self) -> Result<(), StackError> {
        for program in [&mut self.ingest].into_iter().chain(&mut self.consumers) {
            end_well(program)?;
        }
        Ok(())
    }
}

/// SIGTERM, after which a program has to end in time and with exit code 0.
pub(crate) fn end_well(program: &mut Program) -> Result<(), StackError> {
    let status = program.terminate(STOP)?;
    if status.success() {
        return Ok(());
    }
    let last_words = program.log_text().lines().last().unwrap_or_default().to_owned();
    Err(StackError::Ended { program: format!("a program, with {status}"), last_words })
}

fn start_ingest(
    redis_url: &str,
    ports: (u16, u16),
    more: &[(&'static str, String)],
    logs: &Path,
) -> Result<Program, StackError> {
    let mut settings = vec![
        ("REDIS_URL", redis_url.to_owned()),
        ("INGEST_LISTEN", loopback(ports.0)),
        ("INGEST_ADMIN_LISTEN", loopback(ports.1)),
    ];
    settings.extend(more.iter().cloned());
    Program::start("ingest", &settings, &logs.join("ingest.log"))
}

pub(crate) fn loopback(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

/// Where a consumer writes its log; they are counted from 0 here and from 1 there.
fn log(logs: &Path, consumer: usize) -> PathBuf {
    logs.join(format!("consumer-{}.log", consumer + 1))
}
