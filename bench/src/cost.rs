//! Processor time of processes.

use std::fs;

use devstack::{postgres_server::PostgresServer, program::Program, redis_server::RedisServer};
use procfs::{ProcError, process::Process};

/// Processor time in seconds of a process and of its running and ended children.
pub(crate) fn cpu_seconds(pid: i32) -> Result<f64, ProcError> {
    let stat = Process::new(pid)?.stat()?;
    let gone_children = stat.cutime.max(0).unsigned_abs() + stat.cstime.max(0).unsigned_abs();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    // A child that ends meanwhile is counted with its parent the next time.
    let children =
        children.split_whitespace().filter_map(|pid| Process::new(pid.parse().ok()?).ok()?.stat().ok());
    let children: u64 = children.map(|stat| stat.utime + stat.stime).sum();
    let ticks = stat.utime + stat.stime + gone_children + children;
    Ok(ticks as f64 / procfs::ticks_per_second() as f64)
}

/// Processor time in seconds of the parts of the pipeline.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cpu {
    pub(crate) http_server: f64,
    pub(crate) redis: f64,
    pub(crate) consumers: f64,
    pub(crate) postgres: f64,
}

impl Cpu {
    /// Reads the times so far. `http_server` is the process that accepts likes.
    pub(crate) fn now(
        http_server: Option<&Program>,
        redis: &RedisServer,
        consumers: &[Program],
        postgres: &PostgresServer,
    ) -> Result<Self, ProcError> {
        Ok(Self {
            http_server: http_server.map(|program| cpu_seconds(program.pid())).transpose()?.unwrap_or(0.0),
            redis: cpu_seconds(redis.pid())?,
            consumers: consumers.iter().map(|consumer| cpu_seconds(consumer.pid())).sum::<Result<_, _>>()?,
            postgres: cpu_seconds(postgres.pid())?,
        })
    }

    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            http_server: self.http_server - before.http_server,
            redis: self.redis - before.redis,
            consumers: self.consumers - before.consumers,
            postgres: self.postgres - before.postgres,
        }
    }
}
