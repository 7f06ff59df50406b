//! The life of a service: telemetry, signals, run, flush, exit code.

use std::{error::Error, fmt, future::Future, io, process::ExitCode, time::Duration};

use tokio::{
    runtime::Builder,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    error_chain::one_line,
    runtime::shutdown,
    settings,
    stderr::eprint_line,
    telemetry::{Telemetry, TelemetryArgs},
};

/// Between two attempts to reach a server at start.
const START_RETRY: Duration = Duration::from_millis(250);

/// Why a service failed.
pub trait Failure: Error + 'static {
    /// Whether it is over a setting, so that starting it again would not help.
    fn is_over_a_setting(&self) -> bool;
}

/// Runs a program's service on so many threads until it ends by itself or by SIGTERM or SIGINT, which cancel the token. An error
/// ends the process with one line, and with code 1, or [`settings::EXIT_USAGE`] where a setting has to be corrected.
pub fn run<F, R, E>(program: &'static str, telemetry: &TelemetryArgs, threads: usize, service: F) -> ExitCode
where
    F: FnOnce(Telemetry, CancellationToken) -> R,
    R: Future<Output = Result<(), E>>,
    E: Failure,
{
    let telemetry = Telemetry::start(program, telemetry).unwrap_or_else(|error| settings::refuse(&error));
    let failed = |error: io::Error| (one_line(&error), false);
    let runtime = Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    let ended = runtime.map_err(failed).and_then(|runtime| {
        let ended = runtime.block_on(async {
            let shutdown = shutdown::on_signal().map_err(failed)?;
            let ended = service(telemetry.clone(), shutdown).await;
            ended.map_err(|error| (one_line(&error), error.is_over_a_setting()))
        });
        // Tasks that are still blocked in a system call must not hold up the end.
        runtime.shutdown_background();
        ended
    });
    telemetry.flush();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err((line, true)) => settings::refuse(&line),
        Err((line, false)) => {
            eprint_line(format_args!("error: {line}"));
            ExitCode::FAILURE
        }
    }
}

/// A server did not come up in time, or does not let us in.
#[derive(Debug, thiserror::Error)]
pub enum Unreachable<E: Error + 'static> {
    /// It can't be reached.
    #[error("{server} was not reachable for {waited}: start it or correct {setting}")]
    Away {
        /// Its name and address.
        server: String,
        /// What it might be over.
        setting: &'static str,
        /// `STARTUP_TIMEOUT`.
        waited: humantime::FormattedDuration,
        /// The last failure.
        source: E,
    },
    /// It accepts connections and says nothing.
    #[error("{server} accepts connections and did not answer for {waited}: see what is wrong with it")]
    Silent {
        /// Its name and address.
        server: String,
        /// `STARTUP_TIMEOUT`.
        waited: humantime::FormattedDuration,
        /// The last failure before that, if there was one.
        source: Option<E>,
    },
    /// It says no.
    #[error("{server} refuses: correct {setting}")]
    Refused {
        /// Its name and address.
        server: String,
        /// What it is over.
        setting: &'static str,
        /// What it said.
        source: E,
    },
}

/// Tries until it works, for as long as `limit`: at the start of a whole system nobody comes first. Waiting is
/// logged once. `server` names it with its address, `setting` is what to correct; `is_refusal` tells an answer that
/// waiting will not change.
///
/// # Errors
/// The last failure, when the time is over, or a refusal at once.
pub async fn wait_for<T, E, F, R>(
    server: impl fmt::Display,
    setting: &'static str,
    limit: Duration,
    is_refusal: impl Fn(&E) -> bool,
    mut attempt: F,
) -> Result<T, Unreachable<E>>
where
    F: FnMut() -> R,
    R: Future<Output = Result<T, E>>,
    E: Error + 'static,
{
    let give_up_at = Instant::now() + limit;
    let mut last = None;
    loop {
        let source = match timeout_at(give_up_at, attempt()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(source)) if is_refusal(&source) => {
                return Err(Unreachable::Refused { server: server.to_string(), setting, source });
            }
            Ok(Err(source)) => source,
            Err(_) => {
                let waited = humantime::format_duration(limit);
                return Err(Unreachable::Silent { server: server.to_string(), waited, source: last });
            }
        };
        // The next attempt should have some time, too: one that is cut short would seem to find a silent server.
        if Instant::now() + 2 * START_RETRY > give_up_at {
            let waited = humantime::format_duration(limit);
            return Err(Unreachable::Away { server: server.to_string(), setting, waited, source });
        }
        if last.is_none() {
            tracing::info!(%server, error = one_line(&source), "waiting for it to come up");
        }
        last = Some(source);
        tokio::time::sleep(START_RETRY).await;
    }
}
