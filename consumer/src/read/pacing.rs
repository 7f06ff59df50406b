//! Pacing of partition readers: poll interval, read size and claim rounds.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    entry::{EntryId, RawEntry},
    in_flight::InFlightLimits,
    stream::Page,
};

/// The poll interval starts at a fraction of `BATCH_LINGER`, within these bounds, and doubles up to the maximum while no new
/// entries arrive. A full read is followed by the next read immediately.
const POLLS_PER_LINGER: u32 = 4;
const POLL_MIN: Duration = Duration::from_millis(4);
pub(super) const POLL_MAX: Duration = Duration::from_millis(64);

/// Maximum number of new entries per read. A reply should still be in the CPU cache when it is decoded.
const READ_COUNT_MAX: u64 = 500;

/// Number of small entries that are read without regard to their bytes: a large one may follow.
const UNMEASURED: u64 = 8;

/// Parts of the time limit of a command: a reply that takes longer is slow, one that takes less is quick.
const SLOW_REPLY: u32 = 4;
const QUICK_REPLY: u32 = 8;

/// Maximum time limit of a read of one entry.
const PATIENCE_MAX: Duration = Duration::from_mins(1);

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

/// Size of the pages in which a partition is read.
///
/// A page must fit the in-flight limits, so the size follows from the rows and bytes of earlier entries. Its reply must also
/// arrive long before the time limit of a command, which would close the connection that all partitions share: the maximum
/// number of entries is halved after slow or lost replies, and doubles while replies are full and quick.
pub(super) struct PageSize {
    /// Expected rows and bytes per entry. They rise immediately, so that the in-flight limits are not exceeded for long, and
    /// fall slowly. The bytes are unknown before the first entry.
    rows_per_entry: usize,
    bytes_per_entry: Option<usize>,
    max: u64,
    /// Whether the last page was full. Otherwise a few entries are asked for: Redis need not measure them.
    was_full: bool,
    /// Time limit of a command.
    timeout: Duration,
    /// Time limit of a read of one entry that does not arrive within `timeout`, on a connection of its own.
    patience: Option<Duration>,
}

impl PageSize {
    pub(super) fn new(timeout: Duration) -> Self {
        let max = READ_COUNT_MAX;
        Self { rows_per_entry: 64, bytes_per_entry: None, max, was_full: false, timeout, patience: None }
    }

    /// Returns the page for one of `readers` with a permit for what is left below the in-flight limits.
    pub(super) fn page(&self, left: InFlightLimits, readers: usize) -> Page {
        let readers = readers.max(1);
        let by_rows = left.rows.div_ceil(self.rows_per_entry).div_ceil(readers);
        let bytes = left.bytes / readers;
        let by_bytes = self.bytes_per_entry.map_or(usize::MAX, |per_entry| bytes / per_entry);
        let count = (by_rows.min(by_bytes) as u64).min(self.max).max(1);
        let unmeasured = if self.bytes_per_entry.is_some() { UNMEASURED.min(count) } else { 1 };
        Page { count, bytes: bytes as u64, unmeasured, patience: self.patience }
    }

    /// Returns the page for a read of new entries.
    pub(super) fn page_of_new(&self, left: InFlightLimits, readers: usize) -> Page {
        let page = self.page(left, readers);
        if self.was_full { page } else { page.at_most(UNMEASURED) }
    }

    /// Returns the number of bytes that a page is expected to have at most.
    pub(super) fn expected_bytes(&self, page: Page) -> usize {
        let most = usize::try_from(page.bytes).unwrap_or(usize::MAX);
        let count = usize::try_from(page.count).unwrap_or(usize::MAX);
        self.bytes_per_entry.map_or(most, |per_entry| count.saturating_mul(per_entry))
    }

    /// Records the reply to a read of this page.
    pub(super) fn arrived(&mut self, page: Page, entries: &[RawEntry], took: Duration) {
        self.was_full = entries.len() as u64 >= page.count;
        let bytes: usize = entries.iter().map(RawEntry::bytes).sum();
        if let Some(per_entry) = bytes.checked_div(entries.len()) {
            self.bytes_per_entry = Some(per_entry.max(self.bytes_per_entry.unwrap_or(0) * 3 / 4).max(1));
        }
        if took > self.timeout / SLOW_REPLY {
            self.max = (self.max / 2).max(1);
        } else {
            self.patience = None;
            if self.was_full && took < self.timeout / QUICK_REPLY {
                self.max = (self.max * 2).min(READ_COUNT_MAX);
            }
        }
    }

    /// Records the number of rows of decoded entries.
    pub(super) fn decoded(&mut self, entries: usize, rows: usize) {
        if let Some(per_entry) = rows.checked_div(entries) {
            self.rows_per_entry = per_entry.max(self.rows_per_entry * 3 / 4).max(1);
        }
    }

    /// Records a lost reply. If a single entry did not arrive in time, the next read gets more time.
    pub(super) fn lost(&mut self, is_unanswered: bool) {
        if self.max == 1 && is_unanswered {
            let longer = self.patience.unwrap_or(self.timeout) * 2;
            self.patience = Some(longer.min(PATIENCE_MAX.max(self.timeout)));
        }
        self.max = (self.max / 2).max(1);
    }

    /// Returns the time limit of the next read if that of one entry has been extended.
    pub(super) fn patience(&self) -> Option<Duration> {
        self.patience
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
    use bytes::Bytes;

    use super::*;
    use crate::testing::position;

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

    const TIMEOUT: Duration = Duration::from_secs(2);
    const QUICK: Duration = Duration::from_millis(1);
    const LEFT: InFlightLimits = InFlightLimits { rows: 6_400, bytes: 1 << 20 };

    /// Records a full page of entries of this size.
    fn fill(size: &mut PageSize, bytes: usize, took: Duration) {
        let page = size.page(LEFT, 1);
        let payload = Bytes::from(vec![0; bytes]);
        let fields = Some(vec![(Bytes::new(), payload)]);
        let entry = |seq| RawEntry { at: position(seq), fields: fields.clone() };
        let entries: Vec<RawEntry> = (0..page.count).map(entry).collect();
        size.arrived(page, &entries, took);
    }

    #[test]
    fn pages_are_sized_by_the_rows_of_earlier_entries() {
        let mut size = PageSize::new(TIMEOUT);
        assert_eq!(size.page(LEFT, 1).count, 100);
        assert_eq!(size.page(LEFT, 8).count, 13);
        size.decoded(10, 5_000);
        assert_eq!(size.page(InFlightLimits { rows: 5_000, ..LEFT }, 1).count, 10);
        for _ in 0..40 {
            size.decoded(10, 10);
        }
        assert_eq!(size.page(InFlightLimits { rows: 400, ..LEFT }, 1).count, 400);
        assert_eq!(size.page(LEFT, 1).count, READ_COUNT_MAX);
        size.decoded(0, 0);
        assert_eq!(size.page(InFlightLimits { rows: 1, ..LEFT }, 1).count, 1);
    }

    #[test]
    fn many_new_entries_are_read_only_after_a_full_page() {
        let mut size = PageSize::new(TIMEOUT);
        assert_eq!(size.page_of_new(LEFT, 1).count, 8);
        fill(&mut size, 10, QUICK);
        assert_eq!(size.page_of_new(LEFT, 1).count, 100);
        size.arrived(size.page_of_new(LEFT, 1), &[], QUICK);
        assert_eq!(size.page_of_new(LEFT, 1).count, 8);
    }

    #[test]
    fn pages_are_sized_by_the_bytes_of_earlier_entries() {
        let mut size = PageSize::new(TIMEOUT);
        let first = size.page(LEFT, 16);
        assert_eq!((first.bytes, first.unmeasured), (64 << 10, 1), "nothing is known of the first entries");
        assert_eq!(size.expected_bytes(first), 64 << 10);
        fill(&mut size, 10, QUICK);
        assert_eq!(size.page(LEFT, 1).unmeasured, 8);
        fill(&mut size, 128 << 10, QUICK);
        assert_eq!(size.page(LEFT, 1).count, 8);
        assert_eq!(size.page(LEFT, 4).unmeasured, 2);
        assert_eq!(size.page(LEFT, 16).count, 1, "a reader reads its share");
        assert_eq!(size.expected_bytes(size.page(LEFT, 1)), 1 << 20);
    }

    #[test]
    fn pages_shrink_after_slow_and_lost_replies_and_grow_again() {
        let mut size = PageSize::new(TIMEOUT);
        let counts = [(); 4].map(|()| {
            fill(&mut size, 10, TIMEOUT / 3);
            size.page(LEFT, 1).count
        });
        assert_eq!(counts, [100, 100, 62, 31], "at first limited by the rows");
        size.lost(true);
        assert_eq!(size.page(LEFT, 1).count, 15);
        fill(&mut size, 10, TIMEOUT / 6);
        assert_eq!(size.page(LEFT, 1).count, 15, "neither slow nor quick");
        fill(&mut size, 10, QUICK);
        assert_eq!(size.page(LEFT, 1).count, 30);
    }

    #[test]
    fn a_single_entry_that_does_not_arrive_gets_more_time() {
        let mut size = PageSize::new(TIMEOUT);
        (0..8).for_each(|_| size.lost(true));
        assert_eq!(size.patience(), None, "several entries did not arrive");
        size.lost(false);
        assert_eq!(size.patience(), None, "the connection was lost for another reason");
        size.lost(true);
        assert_eq!(size.patience(), Some(TIMEOUT * 2));
        size.lost(true);
        fill(&mut size, 10, TIMEOUT * 3);
        assert_eq!(size.patience(), Some(TIMEOUT * 4), "the next entry may be as large");
        for _ in 0..10 {
            size.lost(true);
        }
        assert_eq!(size.page(LEFT, 1).patience, Some(PATIENCE_MAX));
        fill(&mut size, 10, QUICK);
        assert_eq!(size.page(LEFT, 1).patience, None);
    }
}
