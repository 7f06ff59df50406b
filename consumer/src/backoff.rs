//! Waits between attempts: doubling, capped, jittered.

use std::time::Duration;

use rand::RngExt;

const FIRST: Duration = Duration::from_millis(50);
const CAP: Duration = Duration::from_secs(5);

/// The waits of one run of failures. A success starts anew with a default one.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// How long to wait before the next attempt: between half of the step and all of it, so that many consumers
    /// don't come back all at once.
    pub(crate) fn next_delay(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(CAP);
        step.mul_f64(rand::rng().random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap_and_vary() {
        let mut backoff = Backoff::default();
        let mut step = FIRST;
        for _ in 0..20 {
            let delay = backoff.next_delay();
            assert!((step / 2..=step).contains(&delay), "{delay:?} of {step:?}");
            step = (step * 2).min(CAP);
        }
        assert_eq!(step, CAP);
    }
}
