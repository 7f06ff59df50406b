//! In-flight entries: read by this process and not yet settled. The in-flight limit bounds memory, and an entry that is in
//! flight is not processed twice.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use shared::wire::partition::Partition;
use tokio::{sync::watch, time::Instant};

use crate::entry::{Entry, EntryId, Position};

/// Set of in-flight entries. Partition readers admit entries; the acknowledger releases them.
#[derive(Default)]
pub(crate) struct InFlight {
    state: watch::Sender<State>,
}

#[derive(Default)]
struct State {
    entries: HashSet<Position>,
    rows: usize,
    entries_of: HashMap<Partition, usize>,
    /// Number of read permits held. Entries that are being read under a permit are not in flight yet.
    reading: usize,
    /// Start of the current pause; `None` while the writer can write.
    paused_since: Option<Instant>,
    /// Whether the exclusive permit is held or awaited.
    exclusive: bool,
    /// Partitions with settled entries that could not be acknowledged, because the Redis server was replaced.
    to_redeliver: HashSet<Partition>,
}

impl State {
    fn admit(&mut self, at: Position, rows: usize) -> bool {
        let new = self.entries.insert(at);
        if new {
            self.rows += rows.max(1);
            *self.entries_of.entry(at.partition).or_default() += 1;
        }
        new
    }

    fn available(&self, limit: usize) -> usize {
        if self.paused_since.is_some() || self.exclusive { 0 } else { limit.saturating_sub(self.rows) }
    }
}

/// RAII read permit.
pub(crate) struct ReadPermit<'a> {
    in_flight: &'a InFlight,
    /// Number of rows left below the in-flight limit when the permit was granted.
    pub(crate) rows: usize,
}

impl Drop for ReadPermit<'_> {
    fn drop(&mut self) {
        self.in_flight.state.send_modify(|state| state.reading -= 1);
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
    /// Admits an entry unless it is already in flight. Returns whether it was admitted. The entry counts towards the limit
    /// until it is released; an entry without rows counts as one row.
    pub(crate) fn admit(&self, at: Position, rows: usize) -> bool {
        let mut new = false;
        self.state.send_if_modified(|state| {
            new = state.admit(at, rows);
            // Waiters need no notification: more rows in flight never end a wait.
            false
        });
        new
    }

    /// Admits entries and removes those that are already in flight from `entries`.
    pub(crate) fn admit_new(&self, entries: &mut Vec<Entry>) {
        self.state.send_if_modified(|state| {
            entries.retain(|entry| state.admit(entry.at, entry.likes.len()));
            false
        });
    }

    pub(crate) fn contains(&self, at: Position) -> bool {
        self.state.borrow().entries.contains(&at)
    }

    /// Returns whether an entry with this id is in flight, in any incarnation of the server.
    pub(crate) fn contains_id(&self, partition: Partition, id: EntryId) -> bool {
        self.state.borrow().entries.iter().any(|at| at.partition == partition && at.id == id)
    }

    /// Returns whether none of these entries is in flight.
    pub(crate) fn contains_none(&self, entries: &[Position]) -> bool {
        let state = self.state.borrow();
        entries.iter().all(|at| !state.entries.contains(at))
    }

    /// Releases entries, given with their number of rows: they are settled, or stay pending for redelivery.
    pub(crate) fn release(&self, entries: impl IntoIterator<Item = (Position, usize)>) {
        self.state.send_modify(|state| {
            for (at, rows) in entries {
                if state.entries.remove(&at) {
                    state.rows -= rows.max(1);
                    if let Some(count) = state.entries_of.get_mut(&at.partition) {
                        *count -= 1;
                    }
                }
            }
        });
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

    /// Returns the time since [`InFlight::pause`]; zero when reading is not paused.
    pub(crate) fn paused_for(&self) -> Duration {
        self.state.borrow().paused_since.map(|since| since.elapsed()).unwrap_or_default()
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.state.borrow().paused_since.is_some()
    }

    /// Grants read permits again.
    pub(crate) fn resume(&self) {
        self.state.send_if_modified(|state| state.paused_since.take().is_some());
    }

    /// Waits for a read permit: fewer than `limit` rows in flight, reading not paused, exclusive permit free.
    pub(crate) async fn read_permit(&self, limit: usize) -> ReadPermit<'_> {
        loop {
            let mut rows = 0;
            self.state.send_if_modified(|state| {
                rows = state.available(limit);
                state.reading += usize::from(rows > 0);
                false
            });
            if rows > 0 {
                return ReadPermit { in_flight: self, rows };
            }
            self.when(|state| state.available(limit) > 0).await;
        }
    }

    /// Waits until no entry of the partition is in flight, the exclusive permit is free, and reading is not paused.
    pub(crate) async fn drained(&self, partition: Partition) {
        self.when(|state| {
            let none = state.entries_of.get(&partition).is_none_or(|count| *count == 0);
            none && state.paused_since.is_none() && !state.exclusive
        })
        .await;
    }

    /// Acquires the exclusive permit: blocks new read permits, then waits as [`InFlight::empty`] does.
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
        self.empty().await;
        permit
    }

    /// Waits until no entry is in flight, no read permit is held, and reading is not paused.
    pub(crate) async fn empty(&self) {
        self.when(|state| state.entries.is_empty() && state.reading == 0 && state.paused_since.is_none())
            .await;
    }

    /// Waits until none of these entries is in flight.
    pub(crate) async fn settled(&self, entries: &[Position]) {
        self.when(|state| entries.iter().all(|at| !state.entries.contains(at))).await;
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

    fn permit(in_flight: &InFlight, limit: usize) -> Option<usize> {
        in_flight.read_permit(limit).now_or_never().map(|permit| permit.rows)
    }

    #[test]
    fn rows_are_bounded_and_an_entry_is_admitted_once() {
        let in_flight = InFlight::default();
        assert!(in_flight.admit(position(1), 5));
        assert!(!in_flight.admit(position(1), 5));
        assert!(in_flight.admit(position(2), 0));
        assert_eq!(permit(&in_flight, 10), Some(4));
        assert_eq!(permit(&in_flight, 6), None);

        in_flight.release([(position(1), 5), (position(1), 5)]);
        assert_eq!(permit(&in_flight, 6), Some(5));
        let mut drained = Box::pin(in_flight.drained(position(2).partition));
        assert_eq!(drained.as_mut().now_or_never(), None);
        in_flight.release([(position(2), 0)]);
        assert_eq!(drained.as_mut().now_or_never(), Some(()));
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
        let reading = in_flight.read_permit(10).now_or_never().unwrap();
        in_flight.admit(position(1), 1);
        let mut exclusive = Box::pin(in_flight.exclusive_permit());
        assert!(exclusive.as_mut().now_or_never().is_none(), "an entry is in flight");
        assert_eq!(permit(&in_flight, 10), None);
        in_flight.release([(position(1), 1)]);
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
