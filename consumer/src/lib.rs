//! The consumer service: entries from Redis Streams into Postgres.
//!
//! An entry's way: `group` says which partitions are this consumer's, `read` takes entries from `stream` and decodes them
//! (`entry`), `in_flight` bounds how many rows are underway, `write` collects them, stores them with `store`, and
//! acknowledges them with the proof that `store` returns. `upkeep` trims acknowledged entries, samples the backlog and
//! probes the servers. `pipeline` assembles all of these and ends them in order; `service` connects to the servers first.
//!
//! Dependencies point downwards: `service` → `pipeline` → `upkeep`, `write`, `read` → `group` → `trace` → `metrics` →
//! `stream` → `store` → `in_flight` → `entry` → `shared`. `likesctl` stands on top of this library; nothing here knows it.

pub mod config;
pub mod entry;
pub mod group;
mod in_flight;
mod metrics;
mod pipeline;
mod read;
mod service;
pub mod store;
pub mod stream;
mod task;
#[cfg(test)]
mod testing;
mod trace;
mod upkeep;
mod write;

use std::process::ExitCode;

use crate::config::Settings;

/// Worker threads: one batch is written at a time, and Postgres does the work. A second thread would only be woken in turn
/// with the first.
const THREADS: usize = 1;

/// Runs the `consumer` program. A plain function: `main.rs` compiles none of the pipeline again.
pub fn main() -> ExitCode {
    let settings: Settings = shared::settings::parse();
    let telemetry = settings.telemetry().clone();
    shared::runtime::service::run("consumer", &telemetry, THREADS, |telemetry, shutdown| {
        Box::pin(service::run(settings, telemetry, shutdown))
    })
}
