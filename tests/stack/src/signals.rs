//! Termination signals.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Exit code after a termination signal.
pub const EXIT_INTERRUPTED: u8 = 130;

/// SIGINT, SIGTERM and SIGHUP.
pub struct Interrupts([Signal; 3]);

impl Interrupts {
    /// Installs the handlers. Needs a Tokio runtime.
    pub fn install() -> io::Result<Self> {
        let [interrupt, terminate, hangup] =
            [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
        Ok(Self([interrupt?, terminate?, hangup?]))
    }

    /// Waits for any of the signals.
    pub async fn recv(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
