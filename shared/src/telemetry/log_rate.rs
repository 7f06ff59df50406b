//! Log lines about what can happen very often.

use std::{
    mem,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// The shortest time between two lines.
const INTERVAL: Duration = Duration::from_secs(1);

/// Lets one line through an interval, with the number of what it stands for.
#[derive(Default)]
pub struct LogRate(Mutex<State>);

#[derive(Default)]
struct State {
    unlogged: u64,
    logged_at: Option<Instant>,
}

impl LogRate {
    /// So many happened. If it is time for a line: how many did since the last one, these included. What happens after the last
    /// line of a flood is told by the next one; all of it is in the metrics.
    pub fn record(&self, count: usize) -> Option<u64> {
        self.note_at(Instant::now(), count)
    }

    fn note_at(&self, now: Instant, count: usize) -> Option<u64> {
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
    fn what_is_left_out_is_told_by_the_next_line() {
        let (rate, now) = (LogRate::default(), Instant::now());
        assert_eq!(rate.note_at(now, 0), None);
        assert_eq!(rate.note_at(now, 2), Some(2));
        assert_eq!(rate.note_at(now, 3), None);
        assert_eq!(rate.note_at(now + INTERVAL, 0), None);
        assert_eq!(rate.note_at(now + INTERVAL, 1), Some(4));
    }
}
