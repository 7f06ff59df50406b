//! The `ingest` program.

use std::process::ExitCode;

use ingest::config::Settings;
use shared::{cli, service};

fn main() -> ExitCode {
    let settings: Settings = cli::parse();
    let telemetry = settings.telemetry().clone();
    service::run(&telemetry, |telemetry, shutdown| ingest::run(settings, telemetry, shutdown))
}
