//! The `ingest` program.

use std::process::ExitCode;

use ingest::config::Settings;
use mimalloc::MiMalloc;
use shared::{runtime::service, settings};

/// What one thread allocates here another one frees, and glibc's own allocator has locks for that.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    let settings: Settings = settings::parse();
    let telemetry = settings.telemetry().clone();
    let threads = settings.threads();
    service::run("ingest", &telemetry, threads, |telemetry, shutdown| {
        ingest::run(settings, telemetry, shutdown)
    })
}
