//! The lifecycle of a service: telemetry, signals, run, flush, exit code.

use std::{error::Error, fmt, future::Future, io, process::ExitCode, time::Duration};

use tokio::{
    runtime::Builder,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    backoff::Backoff,
    error_chain::one_line,
    runtime::{
        admin::Check,
        reload::{self, ReloadRequests},
        shutdown,
    },
    settings,
    stderr::eprint_line,
    telemetry::{Telemetry, TelemetryArgs},
};

/// Delay between two attempts to reach a server at start.
const START_RETRY: Duration = Duration::from_millis(250);

/// Error of a service.
pub trait Failure: Error + 'static {
    /// Whether a setting has to be corrected, so that a restart does not help.
    fn is_over_a_setting(&self) -> bool;
}

/// Signals to a service.
pub struct Signals {
    /// Cancelled by SIGTERM and SIGINT.
    pub shutdown: CancellationToken,
    /// One request per SIGHUP. A service without files to reload ignores them.
    pub reload: ReloadRequests,
}

/// Runs a service on `threads` worker threads until it ends. An error is printed in one line; the exit code is then 1, or
/// [`settings::EXIT_USAGE`] where a setting has to be corrected.
pub fn run<F, R, E>(program: &'static str, telemetry: &TelemetryArgs, threads: usize, service: F) -> ExitCode
where
    F: FnOnce(Telemetry, Signals) -> R,
    R: Future<Output = Result<(), E>>,
    E: Failure,
{
    let telemetry = Telemetry::start(program, telemetry).unwrap_or_else(|error| settings::refuse(&error));
    let failed = |error: io::Error| (one_line(&error), false);
    let runtime = Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    let ended = runtime.map_err(failed).and_then(|runtime| {
        let ended = runtime.block_on(async {
            let reload = reload::on_signal().map_err(failed)?;
            let shutdown = shutdown::on_signal().map_err(failed)?;
            let ended = service(telemetry.clone(), Signals { shutdown, reload }).await;
            ended.map_err(|error| (one_line(&error), error.is_over_a_setting()))
        });
        // Tasks that are blocked in a system call must not delay the exit.
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

/// A server could not be reached at start. The text names the server, the cause and the setting to check.
#[derive(Debug)]
pub enum Unreachable<E: Error + 'static> {
    /// Every attempt failed.
    Away {
        /// Name and address.
        server: String,
        /// The setting to check.
        setting: &'static str,
        /// Time limit.
        waited: humantime::FormattedDuration,
        /// The last failure.
        source: E,
    },
    /// The last attempt got no reply.
    Silent {
        /// Name and address.
        server: String,
        /// Time limit.
        waited: humantime::FormattedDuration,
        /// The last failure before that.
        source: Option<E>,
    },
    /// The server rejected the connection, and would reject it again.
    Refused {
        /// Name and address.
        server: String,
        /// The setting to check.
        setting: &'static str,
        /// The rejection.
        source: E,
    },
}

impl<E: Error + 'static> fmt::Display for Unreachable<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Away { server, setting, waited, source } => {
                let cause = one_line(source);
                write!(f, "cannot reach {server} within {waited}: {cause}; start it or check {setting}")
            }
            Self::Silent { server, waited, source } => {
                write!(f, "no reply from {server} within {waited}")?;
                // A last error that only repeats the silence says nothing.
                let cause = source
                    .as_ref()
                    .map(|source| one_line(source))
                    .filter(|cause| !cause.starts_with("no reply") || cause.contains(": "));
                if let Some(cause) = cause {
                    write!(f, ", last error: {cause}")?;
                }
                f.write_str("; check the server and the network")
            }
            Self::Refused { server, setting, source } => {
                write!(f, "cannot connect to {server}: {}; check {setting}", one_line(source))
            }
        }
    }
}

/// Without a source: the text contains the cause, followed by the advice.
impl<E: Error + 'static> Error for Unreachable<E> {}

/// Retries `attempt` until it succeeds, however long that takes: a service may start before its servers, or before an operator
/// has prepared them. The last failure is the reason of `check`; a failure is logged when it differs from the one before.
/// `server` is its name and address. An attempt must end by itself.
pub async fn wait_until_available<T, E, F, R>(server: &str, check: &Check, mut attempt: F) -> T
where
    F: FnMut() -> R,
    R: Future<Output = Result<T, E>>,
    E: Error + 'static,
{
    let mut backoff = Backoff::retry();
    let mut reported = None;
    loop {
        let failure = match attempt().await {
            Ok(value) => {
                if reported.is_some() {
                    tracing::info!(server, "server is available");
                }
                return value;
            }
            Err(error) => one_line(&error),
        };
        check.fail(failure.as_str());
        if reported.as_deref() != Some(&*failure) {
            tracing::warn!(server, error = failure, "server is unavailable at start, retrying");
        }
        reported = Some(failure);
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

/// Retries `attempt` until it succeeds, at most for `limit`: a command may start before its servers. The wait is logged
/// once. `server` is its name and address, `setting` the one to check; `is_refusal` recognises a failure that a retry does
/// not fix.
///
/// # Errors
/// The last failure at the end of `limit`, or a refusal at once.
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
    let deadline = Instant::now() + limit;
    let mut last = None;
    loop {
        let source = match timeout_at(deadline, attempt()).await {
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
        // An attempt that is cut short would be reported as a silent server.
        if Instant::now() + 2 * START_RETRY > deadline {
            let waited = humantime::format_duration(limit);
            return Err(Unreachable::Away { server: server.to_string(), setting, waited, source });
        }
        if last.is_none() {
            tracing::info!(%server, error = one_line(&source), "server is unavailable at start, retrying");
        }
        last = Some(source);
        tokio::time::sleep(START_RETRY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> io::Error {
        io::Error::from_raw_os_error(111)
    }

    #[test]
    fn unreachable_servers_are_named_with_cause_and_advice() {
        let (server, setting) = ("Redis at host:6379".to_owned(), "REDIS_URL");
        let waited = || humantime::format_duration(Duration::from_secs(30));
        let away = Unreachable::Away { server: server.clone(), setting, waited: waited(), source: refused() };
        assert_eq!(
            one_line(&away),
            "cannot reach Redis at host:6379 within 30s: Connection refused (os error 111); \
             start it or check REDIS_URL"
        );
        let denied = Unreachable::Refused { server: server.clone(), setting, source: refused() };
        assert_eq!(
            one_line(&denied),
            "cannot connect to Redis at host:6379: Connection refused (os error 111); check REDIS_URL"
        );
        let silent =
            |source| one_line(&Unreachable::Silent { server: server.clone(), waited: waited(), source });
        assert_eq!(
            silent(None),
            "no reply from Redis at host:6379 within 30s; check the server and the network"
        );
        assert_eq!(
            silent(Some(refused())),
            "no reply from Redis at host:6379 within 30s, last error: Connection refused (os error 111); \
             check the server and the network"
        );
    }
}
