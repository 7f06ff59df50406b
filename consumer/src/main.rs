//! The `consumer` program.

use std::process::ExitCode;

use consumer::config::Settings;
use shared::{cli, service};

fn main() -> ExitCode {
    let settings: Settings = cli::parse();
    let telemetry = settings.telemetry().clone();
    service::run(&telemetry, |telemetry, shutdown| consumer::run(settings, telemetry, shutdown))
}
