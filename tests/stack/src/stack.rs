//! All servers and programs of a stack, with the order in which they start and stop.

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

/// Time limit for a program to become ready.
pub(crate) const READY: Duration = Duration::from_mins(1);

#[derive(Default)]
pub(crate) struct StackOptions {
    /// Ports of the processes; none or 0 means any free port.
    pub(crate) redis_port: Option<u16>,
    pub(crate) postgres_port: Option<u16>,
    pub(crate) ingest_port: u16,
    pub(crate) ingest_admin_port: u16,
    /// One port per consumer.
    pub(crate) consumer_admin_ports: Vec<u16>,
    pub(crate) redis: Deployment,
    /// Additional arguments of `redis-server`.
    pub(crate) redis_arguments: Vec<String>,
    /// Settings of Postgres, and files for its data folder.
    pub(crate) postgres_settings: Vec<(String, String)>,
    pub(crate) postgres_files: Vec<(String, String)>,
    /// Additional settings of ingest and of the consumers, which override the defaults.
    pub(crate) ingest_settings: Vec<(&'static str, String)>,
    pub(crate) consumer_settings: Vec<(&'static str, String)>,
}

/// Running stack. Dropped, its processes end in the order of the fields.
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
    /// Starts all processes and waits until they are ready.
    pub(crate) fn start(options: StackOptions, lifetime: Lifetime) -> Result<Self, StackError> {
        let logs = tempfile::Builder::new().prefix("likestream-logs-").tempdir();
        let logs = logs.map_err(StackError::io("cannot create a temporary folder"))?;
        // An accepted like must survive a crash of Redis.
        let mut arguments = ["--appendonly", "yes"].map(str::to_owned).to_vec();
        arguments.extend(options.redis_arguments);
        let redis = RedisOptions { port: options.redis_port, arguments, ..RedisOptions::default() };
        let redis = StackRedis::start(options.redis, redis, lifetime)?;
        let StackOptions { postgres_port: port, postgres_settings: settings, postgres_files: files, .. } =
            options;
        let postgres = PostgresServer::start(PostgresOptions { port, settings, files }, lifetime)?;
        program::run("likesctl", &["migrate"], &[("DATABASE_URL", postgres.url("postgres"))])?;

        let ports = [options.ingest_port, options.ingest_admin_port];
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
        let defaults = vec![
            ("REDIS_URL", self.redis.url()),
            ("DATABASE_URL", self.postgres.url("postgres")),
            ("CONSUMER_ADMIN_LISTEN", loopback(admin_port)),
            // All programs and the load share one machine, so use fewer and larger transactions.
            ("BATCH_LINGER", "150ms".to_owned()),
        ];
        let settings = overridden(defaults, &self.consumer_settings);
        Program::start("consumer", &settings, &log(self.logs.path(), number))
    }

    /// Replaces a consumer that has exited.
    pub(crate) fn replace_consumer(&mut self, number: usize) -> Result<(), StackError> {
        let consumer = self.start_consumer(number, 0)?;
        self.consumers[number] = consumer;
        Ok(())
    }

    /// Restarts the consumers one after another with further settings.
    pub(crate) fn restart_consumers(
        &mut self,
        settings: impl IntoIterator<Item = (&'static str, String)>,
    ) -> Result<(), StackError> {
        self.consumer_settings.extend(settings);
        for number in 0..self.consumers.len() {
            self.consumers[number].stop()?;
            self.replace_consumer(number)?;
        }
        Ok(())
    }

    /// Restarts ingest with further settings.
    pub(crate) fn restart_ingest(
        &mut self,
        settings: impl IntoIterator<Item = (&'static str, String)>,
    ) -> Result<(), StackError> {
        self.ingest_settings.extend(settings);
        self.ingest.stop()?;
        self.replace_ingest()
    }

    /// Replaces an ingest that has exited. The new one uses the same ports.
    pub(crate) fn replace_ingest(&mut self) -> Result<(), StackError> {
        let ports = [self.ingest.listen().port(), self.ingest.admin().port()];
        self.ingest = start_ingest(&self.redis.url(), ports, &self.ingest_settings, self.logs.path())?;
        Ok(())
    }

    /// Returns the error of a process that has exited unexpectedly, with the last line of its log.
    pub(crate) fn ended_part(&self) -> Option<StackError> {
        let programs = [("ingest", &self.ingest)].into_iter();
        let programs = programs.chain(self.consumers.iter().map(|consumer| ("a consumer", consumer)));
        let redis = self.redis.servers().iter().map(|server| ("redis-server", server.last_output_if_ended()));
        let servers = redis.chain([("postgres", self.postgres.last_output_if_ended())]);
        let parts = servers.chain(programs.map(|(name, program)| (name, program.last_output_if_ended())));
        let mut ended = parts.filter_map(|(name, output)| Some((name.to_owned(), output?)));
        ended.next().map(|(program, last_output)| StackError::Ended { program, last_output })
    }

    /// Leaves all processes running when this value is dropped.
    pub(crate) fn detach(self) {
        let Self { ingest, consumers, redis, postgres, logs, .. } = self;
        consumers.into_iter().chain([ingest]).for_each(Program::detach);
        redis.detach();
        postgres.detach();
        let _ = logs.keep();
    }

    /// Shuts the programs down gracefully, ingest first, and then the servers.
    ///
    /// # Errors
    /// When a program does not shut down gracefully.
    pub(crate) fn stop(mut self) -> Result<(), StackError> {
        for program in [&mut self.ingest].into_iter().chain(&mut self.consumers) {
            program.stop()?;
        }
        Ok(())
    }
}

fn start_ingest(
    redis_url: &str,
    [port, admin_port]: [u16; 2],
    overrides: &[(&'static str, String)],
    logs: &Path,
) -> Result<Program, StackError> {
    let defaults = vec![
        ("REDIS_URL", redis_url.to_owned()),
        ("INGEST_LISTEN", loopback(port)),
        ("INGEST_ADMIN_LISTEN", loopback(admin_port)),
    ];
    let settings = overridden(defaults, overrides);
    Program::start("ingest", &settings, &logs.join("ingest.log"))
}

/// Returns the defaults with overrides. `DATABASE_URL_FILE` overrides `DATABASE_URL`, since programs refuse to have both.
fn overridden(
    mut defaults: Vec<(&'static str, String)>,
    overrides: &[(&'static str, String)],
) -> Vec<(&'static str, String)> {
    let is_in_file = |name| overrides.iter().any(|(other, _)| other.strip_suffix("_FILE") == Some(name));
    defaults.retain(|(name, _)| !is_in_file(name));
    defaults.extend(overrides.iter().cloned());
    defaults
}

pub(crate) fn loopback(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

/// Log file of a consumer, whose number is 0-based here and 1-based in the name.
fn log(logs: &Path, consumer: usize) -> PathBuf {
    logs.join(format!("consumer-{}.log", consumer + 1))
}
