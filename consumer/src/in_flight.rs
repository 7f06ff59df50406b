//! Entries that this process has read and not yet settled: the bound on its memory, and its guard against working
//! on one entry twice.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use crate::entry::Position;

/// Shared by the reader, which admits, and the writer, which releases.
#[derive(Default)]
pub(crate) struct InFlight {
    state: Mutex<State>,
    released: Notify,
}

#[derive(Default)]
struct State {
    entries: HashSet<Position>,
    rows: usize,
    /// Whether the writer can't write.
    held: bool,
}

impl InFlight {
    /// Whether the entry is new here. If so it counts until it is released; one without rows counts as one.
    pub(crate) fn admit(&self, at: Position, rows: usize) -> bool {
        let mut state = self.lock();
        let new = state.entries.insert(at);
        if new {
            state.rows += rows.max(1);
        }
        new
    }

    /// Whether the entry is in flight.
    pub(crate) fn contains(&self, at: Position) -> bool {
        self.lock().entries.contains(&at)
    }

    /// The entry is settled, or given back to the group.
    pub(crate) fn release(&self, at: Position, rows: usize) {
        let mut state = self.lock();
        if state.entries.remove(&at) {
            state.rows -= rows.max(1);
            self.released.notify_one();
        }
    }

    /// From now on there is no room for more, until [`InFlight::go_on`].
    pub(crate) fn hold(&self) {
        self.lock().held = true;
    }

    /// There is room again.
    pub(crate) fn go_on(&self) {
        self.lock().held = false;
        self.released.notify_one();
    }

    /// Waits until fewer than `limit` rows are in flight and tells how many more there may be. Only the reader waits.
    pub(crate) async fn room(&self, limit: usize) -> usize {
        loop {
            {
                let state = self.lock();
                if state.rows < limit && !state.held {
                    return limit - state.rows;
                }
            }
            self.released.notified().await;
        }
    }

    /// Waits until nothing is in flight.
    pub(crate) async fn drained(&self) {
        self.room(1).await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use shared::partition::PartitionCount;

    use super::*;
    use crate::entry::EntryId;

    fn position(seq: u64) -> Position {
        let partition = PartitionCount::new(1).unwrap().of_user(1);
        Position { partition, id: EntryId { ms: 1, seq } }
    }

    #[test]
    fn rows_are_bounded_and_an_entry_is_admitted_once() {
        let in_flight = InFlight::default();
        assert!(in_flight.admit(position(1), 5));
        assert!(!in_flight.admit(position(1), 5));
        assert!(in_flight.admit(position(2), 0));
        assert_eq!(in_flight.room(10).now_or_never(), Some(4));
        assert_eq!(in_flight.room(6).now_or_never(), None);

        in_flight.release(position(1), 5);
        in_flight.release(position(1), 5);
        assert_eq!(in_flight.room(6).now_or_never(), Some(5));
        let mut drained = Box::pin(in_flight.drained());
        assert_eq!(drained.as_mut().now_or_never(), None);
        in_flight.release(position(2), 0);
        assert_eq!(drained.as_mut().now_or_never(), Some(()));
    }

    #[test]
    fn there_is_no_room_while_the_writer_is_held_up() {
        let in_flight = InFlight::default();
        in_flight.hold();
        let mut room = Box::pin(in_flight.room(10));
        assert_eq!(room.as_mut().now_or_never(), None);
        in_flight.go_on();
        assert_eq!(room.as_mut().now_or_never(), Some(10));
    }
}
