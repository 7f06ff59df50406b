//! SIGTERM and SIGINT as a token.

use std::{io, process};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Returns a token that the first SIGTERM or SIGINT cancels. A second signal ends the process at once; unfinished entries are
/// redelivered later.
///
/// # Errors
/// When the handlers can't be installed.
pub fn on_signal() -> io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let shutdown = token.clone();
    tokio::spawn(async move {
        for signals_seen in 1.. {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if signals_seen > 1 {
                tracing::warn!(signal = name, "second signal, exiting without draining");
                process::exit(130);
            }
            shutdown.cancel();
            tracing::info!(signal = name, "shutdown requested");
        }
    });
    Ok(token)
}
