//! CPU time of processes.

use std::{fs, io};

use devstack::{postgres_server::PostgresServer, program::Program, redis_server::RedisServer};

/// Unit of the times in `/proc/<pid>/stat`: `USER_HZ`, which is 100 on all architectures with the generic ABI of Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU time in seconds of a process and of its running and ended children.
pub(crate) fn cpu_seconds(pid: i32) -> io::Result<f64> {
    let times = ticks(pid)?;
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    // A child that ends in between is counted with its parent on the next call.
    let children = children.split_whitespace().filter_map(|child| ticks(child.parse().ok()?).ok());
    let children: i64 = children.map(|[user, system, ..]| user + system).sum();
    Ok((times.iter().sum::<i64>() + children) as f64 / TICKS_PER_SECOND)
}

/// User and system time of a process, and of the children that it has waited for.
///
/// Source: `proc_pid_stat(5)`, fields 14 to 17.
fn ticks(pid: i32) -> io::Result<[i64; 4]> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
    let times: Vec<i64> = fields.skip(11).take(4).filter_map(|ticks| ticks.parse().ok()).collect();
    times.try_into().map_err(|_| io::Error::other("unexpected content of /proc/<pid>/stat"))
}

/// CPU time in seconds of each part of the pipeline.
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
    ) -> io::Result<Self> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_grows_while_a_process_works() {
        let pid = std::process::id().cast_signed();
        let before = cpu_seconds(pid).unwrap();
        while cpu_seconds(pid).unwrap() < before + 0.05 {}
    }
}
