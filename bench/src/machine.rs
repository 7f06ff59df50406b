//! Machine and software versions of the figures.

use std::{process::Command, thread};

use procfs::{CpuInfo, Current, Meminfo};
use serde::Serialize;
use tokio_postgres::Client;

use crate::{
    BenchError,
    servers::{POSTGRES_SETTINGS, REDIS_ARGUMENTS, Servers},
};

/// Environment that absolute figures depend on.
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
        let processors = CpuInfo::current()?;
        let memory_bytes = Meminfo::current()?.mem_total;
        let info = servers.redis.command(&["INFO", "server"])?;
        let field =
            |name: &str| info.lines().find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()));
        let settings = POSTGRES_SETTINGS.map(|(name, value)| format!("{name}={value}"));
        Ok(Self {
            processor: processors.model_name(0).unwrap_or("unknown").to_owned(),
            cores: thread::available_parallelism()?.get(),
            memory_gib: memory_bytes.div_ceil(1 << 30),
            system: field("os:").unwrap_or_default(),
            redis: field("redis_version:").unwrap_or_default(),
            postgres: postgres_version(&servers.sql).await?,
            redis_arguments: REDIS_ARGUMENTS.join(" "),
            postgres_settings: settings.join(" "),
            commit: commit(),
        })
    }
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
