//! Departure policy: when the next entries leave for Redis.

use std::mem;

/// Next step for the partitions that are due: those with queued likes and no entry in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Departure {
    /// Nothing is due.
    Idle,
    /// Nothing is in flight: depart when no more requests arrive.
    WhenQuiet,
    /// Entries are in flight: start the hold timer, and wait for replies or the timer.
    StartHold,
    /// Entries are in flight and the hold timer is running: keep waiting.
    Hold,
    /// The hold timer has elapsed: depart although entries are in flight.
    Now,
}

/// Decides when the next departure leaves, so that entries of all partitions share a network round trip to Redis. A departure
/// waits for the replies to the previous one, at most until the hold timer elapses.
#[derive(Default)]
pub(super) struct DeparturePolicy {
    /// Whether the last decision was to wait for replies.
    holding: bool,
}

impl DeparturePolicy {
    /// Returns the next step. `hold_elapsed` is the state of the timer that [`Departure::StartHold`] starts. If a hold ends
    /// before its timer, the next hold reuses the running timer: resetting it with every departure would be expensive.
    pub(super) fn next(&mut self, is_due: bool, is_in_flight: bool, hold_elapsed: bool) -> Departure {
        let was_holding = mem::replace(&mut self.holding, is_due && is_in_flight);
        match (is_due, is_in_flight) {
            (false, _) => Departure::Idle,
            (true, false) => Departure::WhenQuiet,
            (true, true) if !hold_elapsed => Departure::Hold,
            (true, true) if was_holding => Departure::Now,
            (true, true) => Departure::StartHold,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lone_like_departs_immediately() {
        let mut policy = DeparturePolicy::default();
        assert_eq!(policy.next(false, false, true), Departure::Idle);
        assert_eq!(policy.next(true, false, true), Departure::WhenQuiet);
    }

    #[test]
    fn likes_wait_for_the_replies_in_flight() {
        let mut policy = DeparturePolicy::default();
        assert_eq!(policy.next(false, true, true), Departure::Idle);
        assert_eq!(policy.next(true, true, true), Departure::StartHold);
        assert_eq!(policy.next(true, true, false), Departure::Hold);
        assert_eq!(policy.next(true, false, false), Departure::WhenQuiet);
    }

    #[test]
    fn likes_depart_after_the_hold_despite_missing_replies() {
        let mut policy = DeparturePolicy::default();
        assert_eq!(policy.next(true, true, true), Departure::StartHold);
        assert_eq!(policy.next(true, true, true), Departure::Now);
        assert_eq!(policy.next(false, true, true), Departure::Idle);
        assert_eq!(policy.next(true, true, true), Departure::StartHold);
    }

    #[test]
    fn a_timer_that_elapsed_with_nothing_due_is_ignored() {
        let mut policy = DeparturePolicy::default();
        assert_eq!(policy.next(true, true, true), Departure::StartHold);
        assert_eq!(policy.next(false, true, false), Departure::Idle);
        assert_eq!(policy.next(true, true, true), Departure::StartHold);
    }

    #[test]
    fn a_running_timer_is_reused_for_the_next_hold() {
        let mut policy = DeparturePolicy::default();
        assert_eq!(policy.next(true, true, true), Departure::StartHold);
        assert_eq!(policy.next(true, false, false), Departure::WhenQuiet);
        assert_eq!(policy.next(true, true, false), Departure::Hold);
        assert_eq!(policy.next(true, true, true), Departure::Now);
    }
}
