//! Entries that this process has read and not yet settled: the bound on its memory, and its guard against working
//! on one entry twice.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use shared::wire::partition::Partition;
use tokio::{sync::watch, time::Instant};

use crate::entry::{Entry, Position};

/// Shared by the partition readers, which admit entries, and the writer, which releases them.
#[derive(Default)]
pub(crate) struct InFlight {
    state: watch::Sender<State>,
}

#[derive(Default)]
struct State {
    entries: HashSet<Position>,
    rows: usize,
    entries_of: HashMap<Partition, usize>,
    /// Number of read permits: the entries that their holders read are not in flight yet.
    reading: usize,
    /// Since when the writer has not been able to write.
    paused_since: Option<Instant>,
    /// Whether there is an exclusive permit, or one is waited for.
    exclusive: bool,
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

/// RAII permit to read.
pub(crate) struct ReadPermit<'a> {
    in_flight: &'a InFlight,
    /// Number of rows that may still come in flight.
    pub(crate) rows: usize,
}

impl Drop for ReadPermit<'_> {
    fn drop(&mut self) {
        self.in_flight.state.send_modify(|state| state.reading -= 1);
    }
}

/// RAII permit that keeps all others from reading.
pub(crate) struct ExclusivePermit<'a>(&'a InFlight);

impl Drop for ExclusivePermit<'_> {
    fn drop(&mut self) {
        self.0.state.send_modify(|state| state.exclusive = false);
    }
}

impl InFlight {
    /// Admits an entry unless it is in flight already, and returns whether it was admitted. It counts until it is released;
    /// an entry without rows counts as one row.
    pub(crate) fn admit(&self, at: Position, rows: usize) -> bool {
        let mut new = false;
        self.state.send_if_modified(|state| {
            new = state.admit(at, rows);
            // No wait ends by an increase.
            false
        });
        new
    }

    /// Admits entries, and removes those that are in flight already.
    pub(crate) fn admit_new(&self, entries: &mut Vec<Entry>) {
        self.state.send_if_modified(|state| {
            entries.retain(|entry| state.admit(entry.at, entry.likes.len()));
            false
        });
    }

    /// Returns whether the entry is in flight.
    pub(crate) fn contains(&self, at: Position) -> bool {
        self.state.borrow().entries.contains(&at)
    }

    /// Releases entries, each with its number of rows, that are settled or left to the group.
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

    /// Grants no more read permits until [`InFlight::resume`].
    pub(crate) fn pause(&self) {
        self.state.send_modify(|state| {
            state.paused_since.get_or_insert_with(Instant::now);
        });
    }

    /// Returns for how long there have been no permits because of [`InFlight::pause`].
    pub(crate) fn paused_for(&self) -> Duration {
        self.state.borrow().paused_since.map(|since| since.elapsed()).unwrap_or_default()
    }

    /// Grants read permits again.
    pub(crate) fn resume(&self) {
        self.state.send_if_modified(|state| state.paused_since.take().is_some());
    }

    /// Waits until fewer than `limit` rows are in flight, reading is not paused, and the exclusive permit is free.
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

    /// Waits until no entry of a partition is in flight, there is no exclusive permit, and the writer is not paused.
    pub(crate) async fn drained(&self, partition: Partition) {
        self.when(|state| {
            let none = state.entries_of.get(&partition).is_none_or(|count| *count == 0);
            none && state.paused_since.is_none() && !state.exclusive
        })
        .await;
    }

    /// Waits until no entry is in flight and no read permit is held. No read permit is granted from the start of this wait.
    pub(crate) async fn exclusive_permit(&self) -> ExclusivePermit<'_> {
        let mut changes = self.state.subscribe();
        loop {
            let is_ours = self.state.send_if_modified(|state| !std::mem::replace(&mut state.exclusive, true));
            if is_ours {
                break;
            }
            // The sender is ours: it is not gone.
            let _ = changes.wait_for(|state| !state.exclusive).await;
        }
        let permit = ExclusivePermit(self);
        self.empty().await;
        permit
    }

    /// Waits until no entry is in flight, no read permit is held, and the writer is not paused.
    pub(crate) async fn empty(&self) {
        self.when(|state| state.entries.is_empty() && state.reading == 0 && state.paused_since.is_none())
            .await;
    }

    async fn when(&self, is_so: impl FnMut(&State) -> bool) {
        // The sender is ours: it is not gone.
        let _ = self.state.subscribe().wait_for(is_so).await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use shared::wire::partition::PartitionCount;

    use super::*;
    use crate::entry::EntryId;

    fn position(seq: u64) -> Position {
        let partition = PartitionCount::new(1).unwrap().of_user(1);
        Position { partition, id: EntryId { ms: 1, seq } }
    }

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
    fn no_read_permit_is_granted_beside_an_exclusive_permit() {
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
