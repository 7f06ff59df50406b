//! Does harm to a running stack, and mends it.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use devstack::StackError;
use fred::prelude::Value;
use shared::{redis::Connections, wire::partition::Partition};
use thiserror::Error;
use tokio::runtime::Handle;
use tokio_postgres::NoTls;
use tokio_util::sync::CancellationToken;

use crate::{
    backlog::Keys,
    chaos::{
        malformed::Malformed,
        plan::{Fault, Kind, Plan},
    },
    progress::say,
    stack::{self, Stack},
};

/// After a fault all programs have to be ready again within this time.
const RECOVERY: Duration = Duration::from_mins(1);

const SLICE: Duration = Duration::from_millis(100);

/// What should have been well was not.
#[derive(Debug, Error)]
pub(crate) enum InjectorError {
    #[error("the stack did not stand it")]
    Stack(#[from] StackError),
    #[error("Redis did not take an order of the test")]
    Redis(#[from] fred::error::Error),
    #[error("Postgres did not take an order of the test")]
    Postgres(#[from] tokio_postgres::Error),
}

/// The stream of the partition that a fault is about.
fn key_of(fault: Fault) -> String {
    let keys = Keys::default();
    let partitions: Vec<Partition> = keys.partitions().collect();
    keys.stream(partitions[fault.which % partitions.len()])
}

/// A stack, and what is done to it.
pub(crate) struct Injector {
    pub(crate) stack: Stack,
    pub(crate) redis: Connections,
    pub(crate) runtime: Handle,
    pub(crate) stop: CancellationToken,
    pub(crate) malformed: Malformed,
    /// How often each kind of fault was injected.
    pub(crate) injected: BTreeMap<Kind, u32>,
}

impl Injector {
    /// One fault after the other until the time is up. Blocks.
    ///
    /// # Errors
    /// When a program does not recover, or does not end well when it is asked to.
    pub(crate) fn run(mut self, plan: Plan, until: Instant) -> Result<Self, InjectorError> {
        let started = Instant::now();
        for fault in plan {
            self.pause(fault.after);
            if Instant::now() >= until || self.stop.is_cancelled() {
                break;
            }
            say(&format!("{:>7.1} s  {}", started.elapsed().as_secs_f64(), fault.kind));
            self.inject(fault)?;
            *self.injected.entry(fault.kind).or_default() += 1;
        }
        for program in self.stack.consumers.iter().chain([&self.stack.ingest]) {
            program.wait_ready(RECOVERY)?;
        }
        Ok(self)
    }

    /// Sleeps, but not beyond the end of all.
    fn pause(&self, length: Duration) {
        let until = Instant::now() + length;
        while Instant::now() < until && !self.stop.is_cancelled() {
            thread::sleep(SLICE.min(until.saturating_duration_since(Instant::now())));
        }
    }

    fn inject(&mut self, fault: Fault) -> Result<(), InjectorError> {
        let consumer = fault.which % self.stack.consumers.len();
        match fault.kind {
            Kind::KillConsumer => {
                self.stack.consumers[consumer].kill();
                self.pause(fault.outage);
                self.stack.replace_consumer(consumer)?;
            }
            Kind::KillIngest => {
                self.stack.ingest.kill();
                self.stack.replace_ingest()?;
            }
            Kind::RollOutConsumers => {
                for consumer in 0..self.stack.consumers.len() {
                    stack::end_well(&mut self.stack.consumers[consumer])?;
                    self.stack.replace_consumer(consumer)?;
                }
            }
            Kind::RollOutIngest => {
                stack::end_well(&mut self.stack.ingest)?;
                self.stack.replace_ingest()?;
            }
            Kind::RestartPostgres | Kind::KillPostgres => {
                if fault.kind == Kind::KillPostgres {
                    self.stack.postgres.kill();
                } else {
                    self.stack.postgres.stop();
                }
                self.pause(fault.outage);
                self.stack.postgres.start_again()?;
            }
            Kind::RestartRedis | Kind::KillRedis => {
                self.at_redis(fault, |injector, key| {
                    let server = injector.stack.redis.server_of(key)?;
                    if fault.kind == Kind::KillRedis {
                        server.kill();
                    } else {
                        server.stop();
                    }
                    let port = server.port();
                    injector.pause(fault.outage);
                    injector.stack.redis.server_at(port)?.start_again()
                })?;
            }
            Kind::FreezePostgres => {
                self.stack.postgres.pause();
                self.pause(fault.outage);
                self.stack.postgres.resume();
            }
            Kind::FreezeRedis => self.freeze_redis(fault, |_| Ok(()))?,
            Kind::KillConsumerAtFrozenPostgres => {
                self.stack.postgres.pause();
                self.pause(fault.outage);
                self.stack.consumers[consumer].kill();
                self.stack.postgres.resume();
                self.stack.replace_consumer(consumer)?;
            }
            Kind::KillConsumerAtFrozenRedis => {
                self.freeze_redis(fault, |injector| {
                    injector.stack.consumers[consumer].kill();
                    Ok(())
                })?;
                self.stack.replace_consumer(consumer)?;
            }
            Kind::MoveSlot => self.stack.redis.move_slot(&key_of(fault), fault.outage / 4)?,
            Kind::CutRedisConnections => {
                self.redis_command("CLIENT", &["KILL", "TYPE", "normal", "SKIPME", "yes"])?;
            }
            Kind::CutPostgresConnections => self.runtime.block_on(self.cut_postgres_connections())?,
            Kind::FillRedis => {
                self.redis_command("CONFIG", &["SET", "maxmemory", "1"])?;
                self.pause(fault.outage);
                self.redis_command("CONFIG", &["SET", "maxmemory", "0"])?;
            }
            Kind::Malformed => {
                let keys = Keys::default();
                let (runtime, redis) = (self.runtime.clone(), self.redis.clone());
                runtime.block_on(async {
                    for _ in 0..fault.malformed {
                        self.malformed.append(&redis, &keys).await;
                    }
                });
            }
        }
        Ok(())
    }

    /// Does something to the server of a partition, and waits until Redis is well again.
    fn at_redis(
        &mut self,
        fault: Fault,
        harm: impl FnOnce(&mut Self, &str) -> Result<(), StackError>,
    ) -> Result<(), StackError> {
        harm(self, &key_of(fault))?;
        self.stack.redis.wait_well()
    }

    /// Freezes the server of a partition for a while, and does something more just before it goes on.
    fn freeze_redis(
        &mut self,
        fault: Fault,
        more: impl FnOnce(&mut Self) -> Result<(), StackError>,
    ) -> Result<(), StackError> {
        self.at_redis(fault, |injector, key| {
            let server = injector.stack.redis.server_of(key)?;
            server.pause();
            let port = server.port();
            injector.pause(fault.outage);
            more(injector)?;
            injector.stack.redis.server_at(port)?.resume();
            Ok(())
        })
    }

    fn redis_command(&self, name: &'static str, arguments: &[&str]) -> Result<(), fred::error::Error> {
        for server in self.redis.servers() {
            let arguments = arguments.iter().map(|argument| Value::from(*argument)).collect();
            self.runtime.block_on(server.send::<Value>(name, arguments))?;
        }
        Ok(())
    }

    async fn cut_postgres_connections(&self) -> Result<(), tokio_postgres::Error> {
        let url = self.stack.postgres.url("postgres");
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await?;
        tokio::spawn(connection);
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE application_name LIKE 'likestream%' AND pid <> pg_backend_pid()";
        client.execute(sql, &[]).await.map(drop)
    }
}
