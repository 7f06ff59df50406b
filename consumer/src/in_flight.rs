//! Entries that this process has read and not yet settled: the bound on its memory, and its guard against working
//! on one entry twice.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use shared::wire::partition::Partition;
use tokio::{sync::watch, time::Instant};

use crate::entry::{Entry, Position};

/// Shared by the lanes, which admit, and the writer, which releases.
#[derive(Default)]
pub(crate) struct InFlight {
    state: watch::Sender<State>,
}

#[derive(Default)]
struct State {
    entries: HashSet<Position>,
    rows: usize,
    entries_of: HashMap<Partition, usize>,
    /// Lanes that are reading: what they get is not in flight yet.
    reading: usize,
    /// Since when the writer can't write.
    paused_since: Option<Instant>,
    /// Whether somebody wants everything else out of the way.
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

/// Leave to read, as long as this is there.
pub(crate) struct ReadPermit<'a> {
    in_flight: &'a InFlight,
    /// How many more rows may be in flight.
    pub(crate) rows: usize,
}

impl Drop for ReadPermit<'_> {
    fn drop(&mut self) {
        self.in_flight.state.send_modify(|state| state.reading -= 1);
    }
}

/// As long as this is there, nobody gets permit to read.
pub(crate) struct ExclusivePermit<'a>(&'a InFlight);

impl Drop for ExclusivePermit<'_> {
    fn drop(&mut self) {
        self.0.state.send_modify(|state| state.exclusive = false);
    }
}

impl InFlight {
    /// Whether the entry is new here. If so it counts until it is released; one without rows counts as one.
    pub(crate) fn admit(&self, at: Position, rows: usize) -> bool {
        let mut new = false;
        self.state.send_if_modified(|state| {
            new = state.admit(at, rows);
            // Nobody waits for there to be more.
            false
        });
        new
    }

    /// The same for many: leaves those that are new here.
    pub(crate) fn admit_new(&self, entries: &mut Vec<Entry>) {
        self.state.send_if_modified(|state| {
            entries.retain(|entry| state.admit(entry.at, entry.likes.len()));
            false
        });
    }

    /// Whether the entry is in flight.
    pub(crate) fn contains(&self, at: Position) -> bool {
        self.state.borrow().entries.contains(&at)
    }

    /// The entries, each with its number of rows, are settled or given back to the group.
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

    /// From now on there is no permit for more, until [`InFlight::go_on`].
    pub(crate) fn pause(&self) {
        self.state.send_modify(|state| {
            state.paused_since.get_or_insert_with(Instant::now);
        });
    }

    /// For how long the writer has not been able to write; zero if it is.
    pub(crate) fn paused_for(&self) -> Duration {
        self.state.borrow().paused_since.map(|since| since.elapsed()).unwrap_or_default()
    }

    /// There is permit again.
    pub(crate) fn resume(&self) {
        self.state.send_if_modified(|state| state.paused_since.take().is_some());
    }

    /// Waits until fewer than `limit` rows are in flight.
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

    /// Waits until nothing of a partition is in flight, and nobody wants to be alone or is held up.
    pub(crate) async fn drained(&self, partition: Partition) {
        self.when(|state| {
            let none = state.entries_of.get(&partition).is_none_or(|count| *count == 0);
            none && state.paused_since.is_none() && !state.exclusive
        })
        .await;
    }

    /// Waits until nothing is in flight and nobody reads. From the start of this wait on nobody gets permit.
    pub(crate) async fn exclusive_permit(&self) -> ExclusivePermit<'_> {
        let mut changes = self.state.subscribe();
        loop {
            let taken = self.state.send_if_modified(|state| !std::mem::replace(&mut state.exclusive, true));
            if taken {
                break;
            }
            // The sender is ours: it is not gone.
            let _ = changes.wait_for(|state| !state.exclusive).await;
        }
        let alone = ExclusivePermit(self);
        self.empty().await;
        alone
    }

    /// Waits until nothing is in flight and nobody reads.
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
    fn there_is_no_room_while_the_writer_is_held_up() {
        let in_flight = InFlight::default();
        in_flight.pause();
        assert_eq!(permit(&in_flight, 10), None);
        in_flight.resume();
        assert_eq!(permit(&in_flight, 10), Some(10));
    }

    #[test]
    fn there_is_no_room_beside_whoever_is_alone() {
        let in_flight = InFlight::default();
        let reading = in_flight.read_permit(10).now_or_never().unwrap();
        in_flight.admit(position(1), 1);
        let mut alone = Box::pin(in_flight.exclusive_permit());
        assert!(alone.as_mut().now_or_never().is_none(), "something is in flight");
        assert_eq!(permit(&in_flight, 10), None);
        in_flight.release([(position(1), 1)]);
        assert!(alone.as_mut().now_or_never().is_none(), "somebody reads");
        drop(reading);
        let guard = alone.as_mut().now_or_never().unwrap();

        let mut another = Box::pin(in_flight.exclusive_permit());
        assert!(another.as_mut().now_or_never().is_none(), "one at a time");
        drop(guard);
        let guard = another.as_mut().now_or_never().unwrap();
        assert_eq!(permit(&in_flight, 10), None);
        drop(guard);
        assert_eq!(permit(&in_flight, 10), Some(10));

        let mut given_up = Box::pin(in_flight.exclusive_permit());
        assert!(given_up.as_mut().now_or_never().is_some());
        drop(given_up);
        assert_eq!(permit(&in_flight, 10), Some(10));
    }
}
