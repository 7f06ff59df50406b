//! Exponential backoff: delays between retries that double, with a cap and jitter.

use std::time::Duration;

use rand::RngExt;

/// The delays of one run of failures. After a success the caller creates a new one.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
    cap: Duration,
}

impl Backoff {
    /// For transient errors: 50 ms to 5 s.
    pub fn retry() -> Self {
        Self { next: Duration::from_millis(50), cap: Duration::from_secs(5) }
    }

    /// For a server that everything else depends on: 25 ms to 500 ms.
    pub fn server() -> Self {
        Self { next: Duration::from_millis(25), cap: Duration::from_millis(500) }
    }

    /// For halting errors, which an operator has to fix: 1 s to 15 s.
    pub fn halt() -> Self {
        Self { next: Duration::from_secs(1), cap: Duration::from_secs(15) }
    }

    /// For connections to a server: 50 ms to 1 s.
    pub fn reconnect() -> Self {
        Self { next: Duration::from_millis(50), cap: Duration::from_secs(1) }
    }

    /// Returns the delay before the next attempt: a random one between half of the step and all of it, so that consumers do
    /// not retry all at once.
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
    fn delays_double_up_to_the_cap_with_jitter() {
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
