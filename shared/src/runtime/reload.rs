//! SIGHUP as a request to reload files.

use std::{future::pending, io};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// Receives requests to reload files. Each clone receives every request.
#[derive(Clone, Debug)]
pub struct ReloadRequests(watch::Receiver<()>);

/// Handles SIGHUP, which no longer ends the process. Each one is a request to reload files.
///
/// # Errors
/// When the handler can't be installed.
pub fn on_signal() -> io::Result<ReloadRequests> {
    let mut hangup = signal(SignalKind::hangup())?;
    let (requests, received) = ReloadRequests::new();
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            tracing::info!(signal = "SIGHUP", "reload requested");
            requests.send_replace(());
        }
    });
    Ok(received)
}

impl ReloadRequests {
    /// Returns a sender of requests, and their receiver.
    pub fn new() -> (watch::Sender<()>, Self) {
        let (requests, received) = watch::channel(());
        (requests, Self(received))
    }

    /// Waits for the next request. Returns at once if one has arrived since the last call. Several such requests count as
    /// one.
    pub async fn requested(&mut self) {
        if self.0.changed().await.is_err() {
            pending::<()>().await;
        }
    }
}
