//! The `consumer` program.

use std::process::ExitCode;

use consumer::config::Settings;
use shared::{runtime::service, settings};

/// There is one batch at a time, and its work is Postgres's: another thread would only have to be woken.
const THREADS: usize = 1;

fn main() -> ExitCode {
    let settings: Settings = settings::parse();
    let telemetry = settings.telemetry().clone();
    service::run("consumer", &telemetry, THREADS, |telemetry, shutdown| {
        consumer::run(settings, telemetry, shutdown)
    })
}
