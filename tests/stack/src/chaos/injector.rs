//! Injection of faults into a running stack, and recovery from them.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use devstack::{StackError, link::Link, postgres_server::PostgresServer};
use shared::{redis::Connections, stderr::eprint_line};
use thiserror::Error;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::{
    chaos::{
        login::Login,
        loss::Lost,
        malformed::Malformed,
        plan::{Fault, FaultKind, Plan},
    },
    load::Load,
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
    #[error("consumers wrote {rows} rows after {change}; expected them to halt")]
    WrittenTo { change: &'static str, rows: i64 },
    #[error("consumers did not stop reading although all partitions are paused")]
    Unpaused,
    #[error("Redis lost {lost} entries, and consumers reported {reported}: {incidents}")]
    Misreported { lost: u64, reported: u64, incidents: String },
    #[error("likesctl printed no list of incidents")]
    Incidents(#[source] serde_json::Error),
    #[error(
        "a consumer of another database must exit with code 2, read nothing and store nothing; seen: {end}, {rows} likes stored, \
         in the group: {has_read}"
    )]
    OtherDatabase { end: String, rows: i64, has_read: bool },
}

/// Stack and the faults that were injected into it.
pub(crate) struct Injector {
    pub(crate) stack: Stack,
    pub(crate) standby: PostgresServer,
    /// Link between Redis and the consumers, unless Redis is a cluster.
    pub(crate) link: Option<Link>,
    pub(crate) redis: Connections,
    /// User of the consumers at Postgres.
    pub(crate) postgres_login: Login,
    /// Users of ingest and the consumers at Redis.
    pub(crate) redis_logins: Vec<Login>,
    pub(crate) runtime: Handle,
    pub(crate) stop: CancellationToken,
    pub(crate) malformed: Malformed,
    pub(crate) lost: Lost,
    pub(crate) load: Load,
    /// Number of faults of each kind.
    pub(crate) injected: BTreeMap<FaultKind, u32>,
}

impl Injector {
    /// Injects one fault after another until the given time. Blocks.
    ///
    /// # Errors
    /// When a program does not recover, or does not shut down gracefully.
    pub(crate) fn run(mut self, plan: Plan, until: Instant) -> Result<Self, InjectorError> {
        self.make_commits_wait_for_the_standby()?;
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
    pub(super) fn pause(&self, length: Duration) {
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
            FaultKind::FailOverPostgres => self.fail_over_postgres(fault)?,
            FaultKind::RestartRedis => self.restart_redis(fault)?,
            FaultKind::KillRedis => self.kill_redis(fault)?,
            FaultKind::FreezeRedis => self.freeze_redis(fault, |_| ())?,
            FaultKind::KillConsumerAtFrozenPostgres => self.kill_consumer_at_frozen_postgres(fault)?,
            FaultKind::KillConsumerAtFrozenRedis => self.kill_consumer_at_frozen_redis(fault)?,
            FaultKind::SlowLink => self.slow_link(fault),
            FaultKind::MoveSlot => self.move_slot(fault)?,
            FaultKind::CutRedisConnections => self.cut_redis_connections()?,
            FaultKind::CutPostgresConnections => self.cut_postgres_connections()?,
            FaultKind::FlushRedis => self.flush_redis(fault)?,
            FaultKind::OtherDatabase => self.start_consumer_of_another_database()?,
            FaultKind::FillRedis => self.fill_redis(fault)?,
            FaultKind::Malformed => self.append_malformed(fault),
            FaultKind::AddColumn => self.add_column(fault)?,
            FaultKind::RebuildKey => self.rebuild_key()?,
            FaultKind::DropKey => self.drop_key(fault)?,
            FaultKind::ChangeType => self.change_type(fault)?,
            FaultKind::RevokeRights => self.revoke_rights(fault)?,
            FaultKind::RotatePostgresPassword => self.rotate_postgres_password(fault)?,
            FaultKind::RotateRedisPasswords => self.rotate_redis_passwords(fault)?,
            FaultKind::SlowRows => self.slow_rows(fault)?,
            FaultKind::LockKey => self.lock_key(fault)?,
        }
        Ok(())
    }
}
