//! Waits between attempts: doubling, capped, jittered.

use std::time::Duration;

use rand::RngExt;

/// The waits of one run of failures. A success starts anew with a new one.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
    cap: Duration,
}

impl Backoff {
    /// For what mends itself.
    pub fn retry() -> Self {
        Self { next: Duration::from_millis(50), cap: Duration::from_secs(5) }
    }

    /// For a server on which all else waits, too.
    pub fn server() -> Self {
        Self { next: Duration::from_millis(25), cap: Duration::from_millis(500) }
    }

    /// For what somebody has to mend.
    pub fn halt() -> Self {
        Self { next: Duration::from_secs(1), cap: Duration::from_secs(15) }
    }

    /// Waits between two attempts to connect to a server.
    pub fn reconnect() -> Self {
        Self { next: Duration::from_millis(50), cap: Duration::from_secs(1) }
    }

    /// How long to wait before the next attempt: between half of the step and all of it, so that many consumers
    /// don't come back all at once.
    pub fn next_delay(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(self.cap);
        step.mul_f64(rand::rng().random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap_and_vary() {
        for mut backoff in [Backoff::retry(), Backoff::server(), Backoff::reconnect(), Backoff::halt()] {
            let (mut step, cap) = (backoff.next, backoff.cap);
            for _ in 0..20 {
                let delay = backoff.next_delay();
                assert!((step / 2..=step).contains(&delay), "{delay:?} of {step:?}");
                step = (step * 2).min(cap);
            }
            assert_eq!(step, cap);
        }
    }
}
