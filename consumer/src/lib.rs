//! The consumer service: moves entries from Redis Streams into Postgres.
//!
//! Path of an entry: `group` assigns partitions to this consumer. `read` reads entries through `stream` and decodes them
//! (`entry`). `in_flight` limits the rows that are read and not yet settled. `write` gathers entries into batches, stores
//! each batch through `store`, and acknowledges it with the proof of commit that `store` returns. `upkeep` trims
//! acknowledged entries, samples the backlog and probes both servers. `pipeline` assembles these modules and stops them in
//! order. `service` connects to the servers first.
//!
//! Dependencies point downwards: `service` → `pipeline` → `upkeep`, `write`, `read` → `group` → `trace` → `metrics` →
//! `stream` → `store` → `in_flight` → `entry` → `shared`. `likesctl` uses this library; this library does not know
//! `likesctl`.

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

/// Number of worker threads. One is enough: the consumer writes one batch at a time, and Postgres does most of the work. A
/// second thread would only add wake-ups.
const THREADS: usize = 1;

/// Runs the `consumer` program. The function is not generic, so `main.rs` does not compile the pipeline a second time.
pub fn main() -> ExitCode {
    let settings: Settings = shared::settings::parse();
    let telemetry = settings.telemetry().clone();
    shared::runtime::service::run("consumer", &telemetry, THREADS, |telemetry, signals| {
        Box::pin(service::run(settings, telemetry, signals.shutdown))
    })
}
