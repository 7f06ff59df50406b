//! Machine and software versions of a measurement.

use std::{fs, io, process::Command, thread};

use serde::Serialize;
use tokio_postgres::Client;

use crate::{
    BenchError,
    servers::{POSTGRES_SETTINGS, REDIS_ARGUMENTS, Servers},
};

/// Environment on which absolute figures depend.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) memory_gib: u64,
    pub(crate) system: String,
    pub(crate) redis: String,
    pub(crate) postgres: String,
    pub(crate) redis_arguments: String,
    pub(crate) postgres_settings: String,
    pub(crate) commit: Option<String>,
}

impl Machine {
    pub(crate) fn summary(&self) -> String {
        let Self { processor, cores, memory_gib, system, redis, postgres, .. } = self;
        format!("{processor}, {cores} cores, {memory_gib} GiB, {system}, Redis {redis}, Postgres {postgres}")
    }

    pub(crate) async fn describe(servers: &Servers) -> Result<Self, BenchError> {
        let memory = proc_field("meminfo", "MemTotal")?;
        let memory_kib = memory.and_then(|memory| memory.strip_suffix(" kB")?.parse::<u64>().ok());
        let info = servers.redis.command(&["INFO", "server"])?;
        let field =
            |name: &str| info.lines().find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()));
        let settings = POSTGRES_SETTINGS.map(|(name, value)| format!("{name}={value}"));
        Ok(Self {
            processor: proc_field("cpuinfo", "model name")?.unwrap_or_else(|| "unknown".to_owned()),
            cores: thread::available_parallelism()?.get(),
            memory_gib: memory_kib.unwrap_or_default().div_ceil(1 << 20),
            system: field("os:").unwrap_or_default(),
            redis: field("redis_version:").unwrap_or_default(),
            postgres: postgres_version(&servers.sql).await?,
            redis_arguments: REDIS_ARGUMENTS.join(" "),
            postgres_settings: settings.join(" "),
            commit: commit(),
        })
    }
}

/// Value of the first `name: value` line in a file of `/proc`.
fn proc_field(file: &str, name: &str) -> io::Result<Option<String>> {
    let text = fs::read_to_string(format!("/proc/{file}"))?;
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    let value = fields.find(|(found, _)| found.trim() == name).map(|(_, value)| value.trim().to_owned());
    Ok(value)
}

async fn postgres_version(sql: &Client) -> Result<String, BenchError> {
    Ok(sql.query_one("SELECT current_setting('server_version')", &[]).await?.try_get(0)?)
}

/// Measured commit, in a Git checkout.
fn commit() -> Option<String> {
    let described =
        Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=12"]).output().ok()?;
    let commit = String::from_utf8(described.stdout).ok()?.trim().to_owned();
    (described.status.success() && !commit.is_empty()).then_some(commit)
}
