//! A rate limit for log lines about frequent events.

use std::{
    mem,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Minimum interval between two lines.
const INTERVAL: Duration = Duration::from_secs(1);

/// Permits one line per interval, with the number of events since the last one.
#[derive(Default)]
pub struct LogRate(Mutex<State>);

#[derive(Default)]
struct State {
    unlogged: u64,
    logged_at: Option<Instant>,
}

impl LogRate {
    /// Counts events. If a line is due, returns the number of events since the last line, including these. Events after the last
    /// line of a burst appear in the first line of the next one; metrics count all events at once.
    pub fn record(&self, count: usize) -> Option<u64> {
        self.record_at(Instant::now(), count)
    }

    fn record_at(&self, now: Instant, count: usize) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.unlogged = state.unlogged.saturating_add(count as u64);
        if count == 0 || state.logged_at.is_some_and(|at| now.saturating_duration_since(at) < INTERVAL) {
            return None;
        }
        state.logged_at = Some(now);
        Some(mem::take(&mut state.unlogged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suppressed_events_are_counted_in_the_next_line() {
        let (rate, now) = (LogRate::default(), Instant::now());
        assert_eq!(rate.record_at(now, 0), None);
        assert_eq!(rate.record_at(now, 2), Some(2));
        assert_eq!(rate.record_at(now, 3), None);
        assert_eq!(rate.record_at(now + INTERVAL, 0), None);
        assert_eq!(rate.record_at(now + INTERVAL, 1), Some(4));
    }
}
