//! In-flight entries: read by this process and not yet settled. The in-flight limits bound memory, and an entry that is in
//! flight is not processed twice.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::Duration,
};

use shared::wire::partition::Partition;
use tokio::{sync::watch, time::Instant};

use crate::entry::Position;

/// Maximum number of entries that are remembered as stored although their acknowledgement failed.
const MAX_STORED: usize = 10_000;

/// In-flight limits. Reading stops when one of them is reached. An entry that exceeds a limit by itself is processed alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InFlightLimits {
    pub(crate) rows: usize,
    /// Encoded bytes. Decoding and writing take a multiple of them.
    pub(crate) bytes: usize,
}

impl InFlightLimits {
    /// For entries that must not wait.
    pub(crate) const NONE: Self = Self { rows: usize::MAX, bytes: usize::MAX };
}

/// Share of the limits that an entry takes.
#[derive(Clone, Copy, Debug)]
struct Weight {
    rows: usize,
    bytes: usize,
}

/// Set of in-flight entries. Partition readers admit entries; the acknowledger releases them.
#[derive(Default)]
pub(crate) struct InFlight {
    state: watch::Sender<State>,
}

#[derive(Default)]
struct State {
    entries: HashMap<Position, Weight>,
    rows: usize,
    bytes: usize,
    /// Bytes that are being read under permits.
    reserved: usize,
    entries_of: HashMap<Partition, usize>,
    /// Number of read permits held. Entries that are being read under a permit are not in flight yet.
    reading: usize,
    /// Start of the current pause; `None` while the writer can write.
    paused_since: Option<Instant>,
    /// Start of the current stall: Postgres answers, and takes none of the rows; `None` while it takes some.
    stalled_since: Option<Instant>,
    /// Entries whose rows Postgres does not take, while it takes others. Nothing waits for them: they may stay for long.
    held: HashSet<Position>,
    /// Latest entries that are stored and may still be pending, because their acknowledgement failed, oldest first.
    stored: VecDeque<Position>,
    /// Whether the exclusive permit is held or awaited.
    exclusive: bool,
    /// Partitions with settled entries that could not be acknowledged, because the Redis server was replaced.
    to_redeliver: HashSet<Partition>,
}

impl State {
    /// Returns whether no entry in flight is being processed: all are held.
    fn is_idle(&self) -> bool {
        self.entries.len() == self.held.len()
    }

    fn processes_any(&self, entries: &[Position]) -> bool {
        entries.iter().any(|at| self.entries.contains_key(at) && !self.held.contains(at))
    }

    fn admit(&mut self, at: Position, bytes: usize) -> bool {
        let is_new = !self.entries.contains_key(&at);
        if is_new {
            self.entries.insert(at, Weight { rows: 1, bytes });
            self.rows += 1;
            self.bytes += bytes;
            *self.entries_of.entry(at.partition).or_default() += 1;
        }
        is_new
    }

    /// Returns whether an entry may be decoded. One that exceeds a limit by itself is processed beside held entries only, and
    /// as long as these are below the limits.
    fn has_room(&self, limits: InFlightLimits, bytes: usize) -> bool {
        let fits = self.rows < limits.rows && self.bytes.saturating_add(bytes) <= limits.bytes;
        let is_beside_held = self.is_idle() && self.rows < limits.rows && self.bytes < limits.bytes;
        fits || self.entries.is_empty() || is_beside_held
    }

    /// Returns what may be read; `None` while a limit is reached or no permit is granted.
    fn available(&self, limits: InFlightLimits) -> Option<InFlightLimits> {
        if self.paused_since.is_some() || self.exclusive {
            return None;
        }
        let rows = limits.rows.saturating_sub(self.rows);
        let bytes = limits.bytes.saturating_sub(self.bytes + self.reserved);
        (rows > 0 && bytes > 0).then_some(InFlightLimits { rows, bytes })
    }
}

/// RAII read permit.
pub(crate) struct ReadPermit<'a> {
    in_flight: &'a InFlight,
    /// What was left below the in-flight limits when the permit was granted.
    pub(crate) left: InFlightLimits,
    reserved: usize,
}

impl ReadPermit<'_> {
    /// Sets the number of bytes that are being read, or have been read and are not admitted yet. They count until the permit
    /// is dropped.
    pub(crate) fn reserve(&mut self, bytes: usize) {
        self.in_flight.state.send_if_modified(|state| {
            state.reserved = state.reserved - self.reserved + bytes;
            bytes < self.reserved
        });
        self.reserved = bytes;
    }
}

impl Drop for ReadPermit<'_> {
    fn drop(&mut self) {
        self.in_flight.state.send_modify(|state| {
            state.reading -= 1;
            state.reserved -= self.reserved;
        });
    }
}

/// RAII permit that blocks all read permits, for an entry that is tried alone.
pub(crate) struct ExclusivePermit<'a>(&'a InFlight);

impl Drop for ExclusivePermit<'_> {
    fn drop(&mut self) {
        self.0.state.send_modify(|state| state.exclusive = false);
    }
}

impl InFlight {
    /// Admits an entry, regardless of the limits, unless it is already in flight. Returns whether it was admitted. The entry
    /// counts towards the limits until it is released; before it is decoded it counts as one row.
    pub(crate) fn admit(&self, at: Position, bytes: usize) -> bool {
        let mut is_new = false;
        self.state.send_if_modified(|state| {
            is_new = state.admit(at, bytes);
            // Waiters need no notification: more entries in flight never end a wait.
            false
        });
        is_new
    }

    /// Waits until the limits allow an entry to be decoded, and admits it as [`InFlight::admit`] does. Returns `false` at once
    /// if it is already in flight.
    pub(crate) async fn admit_within(&self, limits: InFlightLimits, at: Position, bytes: usize) -> bool {
        loop {
            let mut admitted = None;
            self.state.send_if_modified(|state| {
                if state.entries.contains_key(&at) || state.has_room(limits, bytes) {
                    admitted = Some(state.admit(at, bytes));
                }
                false
            });
            if let Some(admitted) = admitted {
                return admitted;
            }
            self.when(|state| state.has_room(limits, bytes)).await;
        }
    }

    /// Sets the number of rows of an admitted entry. An entry without rows counts as one row.
    pub(crate) fn decoded(&self, at: Position, rows: usize) {
        self.state.send_if_modified(|state| {
            if let Some(weight) = state.entries.get_mut(&at) {
                state.rows = state.rows - weight.rows + rows.max(1);
                weight.rows = rows.max(1);
            }
            false
        });
    }

    pub(crate) fn contains(&self, at: Position) -> bool {
        self.state.borrow().entries.contains_key(&at)
    }

    /// Returns whether any of these entries is in flight and not held.
    pub(crate) fn processes_any(&self, entries: &[Position]) -> bool {
        self.state.borrow().processes_any(entries)
    }

    /// Releases entries: they are settled, or stay pending for redelivery.
    pub(crate) fn release(&self, entries: impl IntoIterator<Item = Position>) {
        self.state.send_modify(|state| {
            for at in entries {
                if let Some(weight) = state.entries.remove(&at) {
                    state.held.remove(&at);
                    state.rows -= weight.rows;
                    state.bytes -= weight.bytes;
                    if let Some(count) = state.entries_of.get_mut(&at.partition) {
                        *count -= 1;
                    }
                }
            }
        });
    }

    /// Remembers entries that are stored and may still be pending.
    pub(crate) fn stored(&self, entries: impl IntoIterator<Item = Position>) {
        self.state.send_if_modified(|state| {
            state.stored.extend(entries);
            let excess = state.stored.len().saturating_sub(MAX_STORED);
            state.stored.drain(..excess);
            false
        });
    }

    /// Returns which of these entries this process has stored, although their acknowledgement failed.
    pub(crate) fn stored_of(&self, entries: &[Position]) -> HashSet<Position> {
        let state = self.state.borrow();
        if entries.is_empty() || state.stored.is_empty() {
            return HashSet::new();
        }
        let entries: HashSet<&Position> = entries.iter().collect();
        state.stored.iter().filter(|at| entries.contains(at)).copied().collect()
    }

    /// Makes the readers of these partitions recover the pending entries of this consumer.
    pub(crate) fn redeliver(&self, partitions: HashSet<Partition>) {
        self.state.send_if_modified(|state| {
            state.to_redeliver.extend(partitions);
            false
        });
    }

    /// Returns whether [`InFlight::redeliver`] was called for the partition since the last call.
    pub(crate) fn take_redelivery(&self, partition: Partition) -> bool {
        let mut taken = false;
        if self.state.borrow().to_redeliver.contains(&partition) {
            self.state.send_if_modified(|state| {
                taken = state.to_redeliver.remove(&partition);
                false
            });
        }
        taken
    }

    /// Stops granting read permits until [`InFlight::resume`].
    pub(crate) fn pause(&self) {
        self.state.send_modify(|state| {
            state.paused_since.get_or_insert_with(Instant::now);
        });
    }

    /// Sets whether Postgres answers and takes none of the rows.
    pub(crate) fn set_stalled(&self, is_stalled: bool) {
        self.state.send_if_modified(|state| {
            state.stalled_since = is_stalled.then(|| state.stalled_since.unwrap_or_else(Instant::now));
            false
        });
    }

    pub(crate) fn is_stalled(&self) -> bool {
        self.state.borrow().stalled_since.is_some()
    }

    /// Returns the time for which no row could be stored: reading is paused, or Postgres takes none of the rows.
    pub(crate) fn stuck_for(&self) -> Duration {
        let state = self.state.borrow();
        let since = [state.paused_since, state.stalled_since].into_iter().flatten().min();
        since.map(|since| since.elapsed()).unwrap_or_default()
    }

    /// Returns whether these entries reach a limit by themselves, so that nothing is read.
    pub(crate) fn is_filled_by(
        &self,
        entries: impl IntoIterator<Item = Position>,
        limits: InFlightLimits,
    ) -> bool {
        let state = self.state.borrow();
        let weights = entries.into_iter().filter_map(|at| state.entries.get(&at));
        let (rows, bytes) =
            weights.fold((0, 0), |(rows, bytes), weight| (rows + weight.rows, bytes + weight.bytes));
        rows >= limits.rows || bytes >= limits.bytes
    }

    /// Replaces the set of held entries, whose rows Postgres does not take.
    pub(crate) fn set_held(&self, held: impl Iterator<Item = Position>) {
        self.state.send_if_modified(|state| {
            let held = held.filter(|at| state.entries.contains_key(at)).collect();
            let is_changed = state.held != held;
            state.held = held;
            is_changed
        });
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.state.borrow().paused_since.is_some()
    }

    /// Grants read permits again.
    pub(crate) fn resume(&self) {
        self.state.send_if_modified(|state| state.paused_since.take().is_some());
    }

    /// Waits for a read permit: less in flight than the limits, reading not paused, exclusive permit free.
    pub(crate) async fn read_permit(&self, limits: InFlightLimits) -> ReadPermit<'_> {
        loop {
            let mut available = None;
            self.state.send_if_modified(|state| {
                available = state.available(limits);
                state.reading += usize::from(available.is_some());
                false
            });
            if let Some(left) = available {
                return ReadPermit { in_flight: self, left, reserved: 0 };
            }
            self.when(|state| state.available(limits).is_some()).await;
        }
    }

    /// Waits until no entry of the partition is in flight but held ones, the exclusive permit is free, and reading is not
    /// paused.
    pub(crate) async fn drained(&self, partition: Partition) {
        self.when(|state| {
            let in_flight = state.entries_of.get(&partition).copied().unwrap_or_default();
            let held = state.held.iter().filter(|at| at.partition == partition).count();
            in_flight == held && state.paused_since.is_none() && !state.exclusive
        })
        .await;
    }

    /// Acquires the exclusive permit: blocks new read permits, then waits as [`InFlight::idle`] does.
    pub(crate) async fn exclusive_permit(&self) -> ExclusivePermit<'_> {
        let mut changes = self.state.subscribe();
        loop {
            let acquired =
                self.state.send_if_modified(|state| !std::mem::replace(&mut state.exclusive, true));
            if acquired {
                break;
            }
            // Never fails: `self` owns the sender.
            let _ = changes.wait_for(|state| !state.exclusive).await;
        }
        let permit = ExclusivePermit(self);
        self.idle().await;
        permit
    }

    /// Waits until no entry is in flight but held ones, no read permit is taken, and reading is not paused.
    pub(crate) async fn idle(&self) {
        self.when(|state| state.is_idle() && state.reading == 0 && state.paused_since.is_none()).await;
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.state.borrow().entries.is_empty()
    }

    /// Waits until each of these entries is settled or held.
    pub(crate) async fn settled_or_held(&self, entries: &[Position]) {
        self.when(|state| !state.processes_any(entries)).await;
    }

    /// Waits until reading is paused.
    pub(crate) async fn paused(&self) {
        self.when(|state| state.paused_since.is_some()).await;
    }

    async fn when(&self, is_so: impl FnMut(&State) -> bool) {
        // Never fails: `self` owns the sender.
        let _ = self.state.subscribe().wait_for(is_so).await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::testing::position;

    const LIMITS: InFlightLimits = InFlightLimits { rows: 10, bytes: 1_000 };

    #[test]
    fn nothing_waits_for_held_entries() {
        let in_flight = InFlight::default();
        in_flight.admit(position(1), 400);
        in_flight.admit(position(2), 400);
        in_flight.set_held([position(1), position(3)].into_iter());
        let partition = position(1).partition;
        assert!(in_flight.drained(partition).now_or_never().is_none(), "entry 2 is processed");
        assert!(in_flight.settled_or_held(&[position(1)]).now_or_never().is_some());
        assert!(in_flight.processes_any(&[position(1), position(2)]));
        in_flight.release([position(2)]);
        assert!(in_flight.drained(partition).now_or_never().is_some());
        assert!(in_flight.exclusive_permit().now_or_never().is_some());
        in_flight.release([position(1)]);
        in_flight.admit(position(1), 400);
        assert!(in_flight.processes_any(&[position(1)]), "released, and delivered again");
    }

    #[test]
    fn the_latest_stored_entries_are_remembered() {
        let in_flight = InFlight::default();
        let last = MAX_STORED as u64 + 1;
        in_flight.stored((1..=last).map(position));
        let found = in_flight.stored_of(&[position(1), position(2), position(last), position(last + 1)]);
        assert_eq!(found, [position(2), position(last)].into());
    }

    #[test]
    fn an_entry_above_the_limits_is_processed_beside_held_entries_until_these_reach_them() {
        let in_flight = InFlight::default();
        let admitted = |seq, bytes| in_flight.admit_within(LIMITS, position(seq), bytes).now_or_never();
        assert_eq!(admitted(1, 400), Some(true));
        assert_eq!(admitted(2, 2_000), None, "entry 1 is processed");
        in_flight.set_held([position(1)].into_iter());
        assert_eq!(admitted(2, 2_000), Some(true));
        in_flight.set_held([position(1), position(2)].into_iter());
        assert_eq!(admitted(3, 2_000), None, "held entries have reached the limit");
    }

    fn permit(in_flight: &InFlight, rows: usize) -> Option<usize> {
        let permit = in_flight.read_permit(InFlightLimits { rows, ..LIMITS }).now_or_never();
        permit.map(|permit| permit.left.rows)
    }

    fn admitted(in_flight: &InFlight, seq: u64, bytes: usize) -> Option<bool> {
        in_flight.admit_within(LIMITS, position(seq), bytes).now_or_never()
    }

    #[test]
    fn rows_are_bounded_and_an_entry_is_admitted_once() {
        let in_flight = InFlight::default();
        assert!(in_flight.admit(position(1), 100));
        assert!(!in_flight.admit(position(1), 100));
        in_flight.decoded(position(1), 5);
        assert!(in_flight.admit(position(2), 100));
        in_flight.decoded(position(2), 0);
        assert_eq!(permit(&in_flight, 10), Some(4));
        assert_eq!(permit(&in_flight, 6), None);

        in_flight.release([position(1), position(1)]);
        assert_eq!(permit(&in_flight, 6), Some(5));
        let mut drained = Box::pin(in_flight.drained(position(2).partition));
        assert_eq!(drained.as_mut().now_or_never(), None);
        in_flight.release([position(2)]);
        assert_eq!(drained.as_mut().now_or_never(), Some(()));
    }

    #[test]
    fn bytes_are_bounded_and_a_large_entry_is_decoded_alone() {
        let in_flight = InFlight::default();
        assert_eq!(admitted(&in_flight, 1, 600), Some(true));
        assert_eq!(admitted(&in_flight, 1, 600), Some(false), "already in flight");
        assert_eq!(admitted(&in_flight, 2, 401), None);
        assert_eq!(admitted(&in_flight, 3, 400), Some(true));
        assert_eq!(permit(&in_flight, 10), None, "nothing more is read");
        in_flight.release([position(1), position(3)]);
        assert_eq!(admitted(&in_flight, 4, 1_000_000), Some(true));
        assert_eq!(admitted(&in_flight, 2, 1), None);
        in_flight.release([position(4)]);
        assert_eq!(admitted(&in_flight, 2, 1), Some(true));
        in_flight.decoded(position(2), 10);
        assert_eq!(admitted(&in_flight, 5, 1), None, "the rows of decoded entries count, too");
    }

    #[test]
    fn bytes_that_are_being_read_count() {
        let in_flight = InFlight::default();
        let mut reading = in_flight.read_permit(LIMITS).now_or_never().unwrap();
        assert_eq!(reading.left.bytes, 1_000);
        reading.reserve(400);
        assert_eq!(in_flight.read_permit(LIMITS).now_or_never().unwrap().left.bytes, 600);
        reading.reserve(1_000);
        assert_eq!(permit(&in_flight, 10), None);
        reading.reserve(2_000);
        drop(reading);
        assert_eq!(permit(&in_flight, 10), Some(10));
    }

    #[test]
    fn no_permit_is_granted_while_the_writer_is_paused() {
        let in_flight = InFlight::default();
        in_flight.pause();
        assert_eq!(permit(&in_flight, 10), None);
        in_flight.resume();
        assert_eq!(permit(&in_flight, 10), Some(10));
    }

    #[test]
    fn no_read_permit_is_granted_during_an_exclusive_permit() {
        let in_flight = InFlight::default();
        let reading = in_flight.read_permit(LIMITS).now_or_never().unwrap();
        in_flight.admit(position(1), 1);
        let mut exclusive = Box::pin(in_flight.exclusive_permit());
        assert!(exclusive.as_mut().now_or_never().is_none(), "an entry is in flight");
        assert_eq!(permit(&in_flight, 10), None);
        in_flight.release([position(1)]);
        assert!(exclusive.as_mut().now_or_never().is_none(), "a read permit is held");
        drop(reading);
        let guard = exclusive.as_mut().now_or_never().unwrap();

        let mut another = Box::pin(in_flight.exclusive_permit());
        assert!(another.as_mut().now_or_never().is_none(), "one at a time");
        drop(guard);
        let guard = another.as_mut().now_or_never().unwrap();
        assert_eq!(permit(&in_flight, 10), None);
        drop(guard);
        assert_eq!(permit(&in_flight, 10), Some(10));

        let mut abandoned = Box::pin(in_flight.exclusive_permit());
        assert!(abandoned.as_mut().now_or_never().is_some());
        drop(abandoned);
        assert_eq!(permit(&in_flight, 10), Some(10));
    }
}
