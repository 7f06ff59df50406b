//! Whether anything happens on a connection.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::ConnectionLimits;

/// What happens on one connection, whichever version of HTTP it speaks.
pub(super) struct Activity {
    idle_timeout: Duration,
    state: Mutex<State>,
}

struct State {
    requests_in_flight: u32,
    /// When it is idle for too long, if there is none in flight.
    idle_at: Instant,
}

impl Activity {
    /// Of a connection that was just accepted: its first request has less time than the others.
    pub(super) fn new(limits: &ConnectionLimits) -> Self {
        let idle_at = Instant::now() + limits.head_timeout;
        let state = Mutex::new(State { requests_in_flight: 0, idle_at });
        Self { idle_timeout: limits.idle_timeout, state }
    }

    /// A request has come; its answer is known when the guard is dropped.
    pub(super) fn request(self: &Arc<Self>) -> InFlight {
        self.state().requests_in_flight += 1;
        InFlight(Arc::clone(self))
    }

    /// When it is to be looked at again, if it isn't idle for too long now.
    pub(super) fn idle_at(&self) -> Instant {
        let state = self.state();
        if state.requests_in_flight > 0 { Instant::now() + self.idle_timeout } else { state.idle_at }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request whose answer is not known yet.
pub(super) struct InFlight(Arc<Activity>);

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.requests_in_flight -= 1;
        state.idle_at = Instant::now() + self.0.idle_timeout;
    }
}
