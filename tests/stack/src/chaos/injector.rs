//! Injection of faults into a running stack, and recovery from them.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use devstack::{StackError, backlog::Keys, postgres_server};
use fred::prelude::Value;
use shared::{redis::Connections, stderr::eprint_line};
use thiserror::Error;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::{
    chaos::{
        malformed::Malformed,
        plan::{Fault, FaultKind, Plan},
    },
    stack::Stack,
};

/// Time limit for all programs to be ready after the last fault.
const RECOVERY_LIMIT: Duration = Duration::from_mins(1);

const PAUSE_SLICE: Duration = Duration::from_millis(100);

/// A fault could not be injected, or the stack did not recover from it.
#[derive(Debug, Error)]
pub(crate) enum InjectorError {
    #[error("the stack did not recover after a fault")]
    Stack(#[from] StackError),
    #[error("Redis rejected a command of the fault injector")]
    Redis(#[from] fred::error::Error),
    #[error("Postgres rejected a command of the fault injector")]
    Postgres(#[from] tokio_postgres::Error),
}

/// Stack and the faults that were injected into it.
pub(crate) struct Injector {
    pub(crate) stack: Stack,
    pub(crate) redis: Connections,
    pub(crate) runtime: Handle,
    pub(crate) stop: CancellationToken,
    pub(crate) malformed: Malformed,
    /// Number of faults of each kind.
    pub(crate) injected: BTreeMap<FaultKind, u32>,
}

impl Injector {
    /// Injects one fault after another until the given time. Blocks.
    ///
    /// # Errors
    /// When a program does not recover, or does not shut down gracefully.
    pub(crate) fn run(mut self, plan: Plan, until: Instant) -> Result<Self, InjectorError> {
        let started = Instant::now();
        for fault in plan {
            self.pause(fault.after);
            if Instant::now() >= until || self.stop.is_cancelled() {
                break;
            }
            eprint_line(format_args!("{:>7.1} s  {}", started.elapsed().as_secs_f64(), fault.kind));
            self.inject(fault)?;
            *self.injected.entry(fault.kind).or_default() += 1;
        }
        for program in self.stack.consumers.iter().chain([&self.stack.ingest]) {
            program.wait_ready(RECOVERY_LIMIT)?;
        }
        Ok(self)
    }

    /// Sleeps for a duration, or until the run is stopped.
    fn pause(&self, length: Duration) {
        let until = Instant::now() + length;
        while Instant::now() < until && !self.stop.is_cancelled() {
            thread::sleep(PAUSE_SLICE.min(until.saturating_duration_since(Instant::now())));
        }
    }

    fn inject(&mut self, fault: Fault) -> Result<(), InjectorError> {
        match fault.kind {
            FaultKind::KillConsumer => self.kill_consumer(fault)?,
            FaultKind::KillIngest => self.kill_ingest()?,
            FaultKind::RollOutConsumers => self.roll_out_consumers()?,
            FaultKind::RollOutIngest => self.roll_out_ingest()?,
            FaultKind::RestartPostgres => self.restart_postgres(fault)?,
            FaultKind::KillPostgres => self.kill_postgres(fault)?,
            FaultKind::FreezePostgres => self.freeze_postgres(fault),
            FaultKind::RestartRedis => self.restart_redis(fault)?,
            FaultKind::KillRedis => self.kill_redis(fault)?,
            FaultKind::FreezeRedis => self.freeze_redis(fault, |_| ())?,
            FaultKind::KillConsumerAtFrozenPostgres => self.kill_consumer_at_frozen_postgres(fault)?,
            FaultKind::KillConsumerAtFrozenRedis => self.kill_consumer_at_frozen_redis(fault)?,
            FaultKind::MoveSlot => self.move_slot(fault)?,
            FaultKind::CutRedisConnections => self.cut_redis_connections()?,
            FaultKind::CutPostgresConnections => self.cut_postgres_connections()?,
            FaultKind::FillRedis => self.fill_redis(fault)?,
            FaultKind::Malformed => self.append_malformed(fault),
        }
        Ok(())
    }

    /// Index of the consumer that a fault affects.
    fn consumer_of(&self, fault: Fault) -> usize {
        fault.target % self.stack.consumers.len()
    }

    fn kill_consumer(&mut self, fault: Fault) -> Result<(), StackError> {
        let consumer = self.consumer_of(fault);
        self.stack.consumers[consumer].kill();
        self.pause(fault.outage);
        self.stack.replace_consumer(consumer)
    }

    fn kill_ingest(&mut self) -> Result<(), StackError> {
        self.stack.ingest.kill();
        self.stack.replace_ingest()
    }

    fn roll_out_consumers(&mut self) -> Result<(), StackError> {
        for consumer in 0..self.stack.consumers.len() {
            self.stack.consumers[consumer].stop()?;
            self.stack.replace_consumer(consumer)?;
        }
        Ok(())
    }

    fn roll_out_ingest(&mut self) -> Result<(), StackError> {
        self.stack.ingest.stop()?;
        self.stack.replace_ingest()
    }

    fn restart_postgres(&mut self, fault: Fault) -> Result<(), StackError> {
        self.stack.postgres.stop();
        self.pause(fault.outage);
        self.stack.postgres.start_again()
    }

    fn kill_postgres(&mut self, fault: Fault) -> Result<(), StackError> {
        self.stack.postgres.kill();
        self.pause(fault.outage);
        self.stack.postgres.start_again()
    }

    fn freeze_postgres(&self, fault: Fault) {
        self.stack.postgres.pause();
        self.pause(fault.outage);
        self.stack.postgres.resume();
    }

    fn restart_redis(&mut self, fault: Fault) -> Result<(), StackError> {
        let server = self.stack.redis.server_of(&stream_of(fault))?;
        server.stop();
        let port = server.port();
        self.start_redis_again(port, fault)
    }

    fn kill_redis(&mut self, fault: Fault) -> Result<(), StackError> {
        let server = self.stack.redis.server_of(&stream_of(fault))?;
        server.kill();
        let port = server.port();
        self.start_redis_again(port, fault)
    }

    /// Starts a server after the outage and waits until Redis is healthy.
    fn start_redis_again(&mut self, port: u16, fault: Fault) -> Result<(), StackError> {
        self.pause(fault.outage);
        self.stack.redis.server_at(port)?.start_again()?;
        self.stack.redis.wait_healthy()
    }

    /// Freezes the server of a partition and calls `before_resume` just before it resumes.
    fn freeze_redis(
        &mut self,
        fault: Fault,
        before_resume: impl FnOnce(&mut Self),
    ) -> Result<(), StackError> {
        let server = self.stack.redis.server_of(&stream_of(fault))?;
        server.pause();
        let port = server.port();
        self.pause(fault.outage);
        before_resume(self);
        self.stack.redis.server_at(port)?.resume();
        self.stack.redis.wait_healthy()
    }

    fn kill_consumer_at_frozen_postgres(&mut self, fault: Fault) -> Result<(), StackError> {
        let consumer = self.consumer_of(fault);
        self.stack.postgres.pause();
        self.pause(fault.outage);
        self.stack.consumers[consumer].kill();
        self.stack.postgres.resume();
        self.stack.replace_consumer(consumer)
    }

    fn kill_consumer_at_frozen_redis(&mut self, fault: Fault) -> Result<(), StackError> {
        let consumer = self.consumer_of(fault);
        self.freeze_redis(fault, |injector| injector.stack.consumers[consumer].kill())?;
        self.stack.replace_consumer(consumer)
    }

    fn move_slot(&self, fault: Fault) -> Result<(), StackError> {
        self.stack.redis.move_slot(&stream_of(fault), fault.outage / 4)
    }

    fn cut_redis_connections(&self) -> Result<(), fred::error::Error> {
        self.redis_command("CLIENT", &["KILL", "TYPE", "normal", "SKIPME", "yes"])
    }

    fn cut_postgres_connections(&self) -> Result<(), tokio_postgres::Error> {
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE application_name LIKE 'likestream%' AND pid <> pg_backend_pid()";
        let url = self.stack.postgres.url("postgres");
        self.runtime
            .block_on(async { postgres_server::connect(&url).await?.execute(sql, &[]).await.map(drop) })
    }

    fn fill_redis(&self, fault: Fault) -> Result<(), fred::error::Error> {
        self.redis_command("CONFIG", &["SET", "maxmemory", "1"])?;
        self.pause(fault.outage);
        self.redis_command("CONFIG", &["SET", "maxmemory", "0"])
    }

    fn append_malformed(&mut self, fault: Fault) {
        let keys = Keys::default();
        let Self { runtime, redis, malformed, .. } = self;
        runtime.block_on(async {
            for _ in 0..fault.malformed {
                malformed.append(redis, &keys).await;
            }
        });
    }

    /// Sends a command to all servers.
    fn redis_command(&self, name: &'static str, arguments: &[&str]) -> Result<(), fred::error::Error> {
        for server in self.redis.servers() {
            let arguments = arguments.iter().map(|argument| Value::from(*argument)).collect();
            self.runtime.block_on(server.send::<Value>(name, arguments))?;
        }
        Ok(())
    }
}

/// Stream of the partition that a fault affects.
fn stream_of(fault: Fault) -> String {
    let streams: Vec<String> = Keys::default().streams().collect();
    streams[fault.target % streams.len()].clone()
}
