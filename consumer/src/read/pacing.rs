//! Pacing of partition readers: poll interval, read size and claim rounds.

use std::time::Duration;

use tokio::time::Instant;

use crate::entry::EntryId;

/// The poll interval starts at a fraction of `BATCH_LINGER`, within these bounds, and doubles up to the maximum while no new
/// entries arrive. A full read is followed by the next read immediately.
const POLLS_PER_LINGER: u32 = 4;
const POLL_MIN: Duration = Duration::from_millis(4);
pub(super) const POLL_MAX: Duration = Duration::from_millis(64);

/// Maximum number of new entries per read. A reply should still be in the CPU cache when it is decoded.
const READ_COUNT_MAX: usize = 500;

/// The interval between two claim rounds is a fraction of `CLAIM_MIN_IDLE`, up to a maximum.
const CLAIM_ROUNDS_PER_MIN_IDLE: u32 = 4;
const CLAIM_INTERVAL_MAX: Duration = Duration::from_secs(2);

/// Returns the minimum poll interval. It grows with `BATCH_LINGER`: if batches linger, frequent reads gain nothing.
pub(crate) fn poll_min(linger: Duration) -> Duration {
    (linger / POLLS_PER_LINGER).clamp(POLL_MIN, POLL_MAX)
}

/// Adaptive interval between two reads that were not full.
pub(super) struct PollInterval {
    min: Duration,
    current: Duration,
}

impl PollInterval {
    pub(super) fn new(min: Duration) -> Self {
        Self { min, current: min }
    }

    /// Returns the time of the next read, given the number of entries of the last one. The time is a tick shared by all
    /// readers, so that their reads are sent together.
    pub(super) fn next_read(&mut self, started: Instant, entries: usize) -> Instant {
        self.current = if entries == 0 { (self.current * 2).min(POLL_MAX) } else { self.min };
        next_tick(started, Instant::now(), self.current)
    }
}

fn next_tick(started: Instant, now: Instant, period: Duration) -> Instant {
    let elapsed_us = (now - started).as_micros();
    let period_us = period.as_micros().max(1);
    let next_us = (elapsed_us / period_us + 1) * period_us;
    started + Duration::from_micros(u64::try_from(next_us).unwrap_or(u64::MAX))
}

/// Expected number of rows per entry, from the last reads. Rises immediately, so that the in-flight limit is not exceeded
/// for long, and falls slowly.
pub(super) struct RowsPerEntry(usize);

impl Default for RowsPerEntry {
    fn default() -> Self {
        Self(64)
    }
}

impl RowsPerEntry {
    /// Returns the number of entries to read: the share of one of `readers` in a permit for `rows` rows.
    pub(super) fn read_count(&self, rows: usize, readers: usize) -> usize {
        rows.div_ceil(self.0).div_ceil(readers.max(1)).min(READ_COUNT_MAX)
    }

    pub(super) fn observed(&mut self, entries: usize, rows: usize) {
        if let Some(per_entry) = rows.checked_div(entries) {
            self.0 = per_entry.max(self.0 * 3 / 4).max(1);
        }
    }
}

/// Schedule of claim rounds. A round visits the pending entries list page by page.
pub(super) struct ClaimRound {
    /// Start of the next page.
    pub(super) cursor: EntryId,
    interval: Duration,
    next: Instant,
}

impl ClaimRound {
    pub(super) fn new(min_idle: Duration) -> Self {
        let interval = (min_idle / CLAIM_ROUNDS_PER_MIN_IDLE).min(CLAIM_INTERVAL_MAX);
        Self { cursor: EntryId::default(), interval, next: Instant::now() }
    }

    pub(super) fn is_due(&self) -> bool {
        Instant::now() >= self.next
    }

    /// Makes the next page due immediately.
    pub(super) fn begin(&mut self) {
        self.next = Instant::now();
    }

    /// Moves to the next page. A zero cursor ends the round.
    pub(super) fn advance(&mut self, cursor: EntryId) {
        self.cursor = cursor;
        if cursor == EntryId::default() {
            self.next = Instant::now() + self.interval;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_readers_poll_on_the_same_ticks() {
        let started = Instant::now();
        for elapsed_us in [0, 3_999, 4_000, 4_001, 400 * 24 * 3_600_000_001] {
            let now = started + Duration::from_micros(elapsed_us);
            let next = next_tick(started, now, POLL_MIN);
            assert!((Duration::from_micros(1)..=POLL_MIN).contains(&(next - now)));
            assert_eq!((next - started).as_micros() % POLL_MIN.as_micros(), 0);
        }
    }

    #[test]
    fn reads_are_sized_by_the_rows_of_earlier_entries() {
        let mut expected = RowsPerEntry::default();
        assert_eq!(expected.read_count(6_400, 1), 100);
        assert_eq!(expected.read_count(6_400, 8), 13);
        expected.observed(10, 5_000);
        assert_eq!(expected.read_count(5_000, 1), 10);
        for _ in 0..40 {
            expected.observed(10, 10);
        }
        assert_eq!(expected.read_count(400, 1), 400);
        assert_eq!(expected.read_count(5_000, 1), READ_COUNT_MAX);
        expected.observed(0, 0);
        assert_eq!(expected.read_count(1, 1), 1);
    }
}
