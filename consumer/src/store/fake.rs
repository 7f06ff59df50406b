//! In-memory fake of the table in Postgres, for unit tests.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use shared::{postgres::FailureClass, wire::like::Like};
use tokio::time::sleep;

use crate::{
    store::{
        batch::{Batch, Obstacle, Outcome, Rest, Stored, Written},
        batch_store::BatchStore,
        error::{Phase, WriteError},
        evidence::Evidence,
        proof::{Committed, RowKey, Tally, row_key},
        write::Attempt,
    },
    testing::{Journal, numbers},
};

/// Table in memory. Creates the proof of commit inside `store`, as the real store does.
#[derive(Clone)]
pub(crate) struct FakeStore {
    state: Arc<Mutex<State>>,
    pub(crate) journal: Journal,
}

#[derive(Default)]
struct State {
    rows: BTreeSet<RowKey>,
    faults: VecDeque<Fault>,
    latency: Duration,
    /// Users whose rows are not stored, with the class of the obstacle.
    obstacles: HashMap<i64, FailureClass>,
    /// Whether a write ends after each piece.
    parts: bool,
    evidence: Evidence,
}

enum Fault {
    NotStored(WriteError),
    /// The batch is stored, and the reply to COMMIT is lost.
    ReplyLost,
}

impl FakeStore {
    pub(crate) fn new(journal: Journal) -> Self {
        Self { state: Arc::default(), journal }
    }

    /// Makes the next write fail. Each call adds one failure.
    pub(crate) fn fail(&self, error: WriteError) {
        self.lock().faults.push_back(Fault::NotStored(error));
    }

    /// Makes the next write commit and return an error.
    pub(crate) fn lose_reply(&self) {
        self.lock().faults.push_back(Fault::ReplyLost);
    }

    /// Makes the table not take the rows of a user until [`FakeStore::take`].
    pub(crate) fn obstruct(&self, user: i64, class: FailureClass) {
        self.lock().obstacles.insert(user, class);
    }

    /// Makes a write return after each piece, as when the table is slow.
    pub(crate) fn write_in_parts(&self) {
        self.lock().parts = true;
    }

    /// Makes the table take the rows of a user again.
    pub(crate) fn take(&self, user: i64) {
        self.lock().obstacles.remove(&user);
    }

    /// Sets the latency of all later writes.
    pub(crate) fn slow(&self, latency: Duration) {
        self.lock().latency = latency;
    }

    /// Returns the users of the stored rows.
    pub(crate) fn stored(&self) -> Vec<i64> {
        self.lock().rows.iter().map(|(_, user)| *user).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl State {
    /// Tries a piece as Postgres does: all of its rows are stored, or none.
    fn try_piece(&mut self, piece: &[Like]) -> Outcome {
        let obstacle = piece.iter().find_map(|like| self.obstacles.get(&like.user_id()).copied());
        let result = if let Some(class) = obstacle {
            Err(Obstacle { class, why: "obstructed".to_owned() })
        } else {
            let inserted = piece.iter().filter(|like| self.rows.insert(row_key(**like))).count() as u64;
            Ok(Stored { inserted, discarded: 0 })
        };
        Outcome { rows: piece.len(), result }
    }

    /// Makes a pass over a batch.
    fn pass(&mut self, mut batch: Batch) -> Written {
        while batch.next_rows(usize::MAX).is_some() || batch.retry_rejected(&self.evidence) {
            let Some(piece) = batch.next_rows(usize::MAX) else { break };
            let outcome = self.try_piece(piece);
            batch.record([outcome], &mut self.evidence);
            if self.parts && batch.next_rows(usize::MAX).is_some() {
                return Written { committed: batch.take_settled(), rest: Rest::Unwritten(batch, None) };
            }
        }
        batch.judge(&mut self.evidence);
        let committed = batch.take_settled();
        Written { committed, rest: batch.remainder().map_or(Rest::Nothing, Rest::Obstructed) }
    }
}

impl BatchStore for FakeStore {
    async fn write(&mut self, mut batch: Batch, _ended: &(dyn Fn(&Attempt<'_>) + Sync)) -> Written {
        let latency = self.lock().latency;
        if !latency.is_zero() {
            sleep(latency).await;
        }
        let users = batch.next_rows(usize::MAX).unwrap_or_default().iter().map(Like::user_id);
        let users = numbers(users.map(i64::unsigned_abs));
        let mut state = self.lock();
        let fault = state.faults.pop_front();
        if let Some(Fault::NotStored(error)) = fault {
            self.journal.record(format!("Write{users}: not stored"));
            return Written { committed: batch.take_settled(), rest: Rest::Unwritten(batch, Some(error)) };
        }
        if fault.is_some() {
            let rows = batch.next_rows(usize::MAX).unwrap_or_default();
            state.try_piece(rows);
            self.journal.record(format!("Write{users}: reply lost"));
            let rest = Rest::Unwritten(batch, Some(WriteError::Timeout(Phase::Commit)));
            return Written { committed: Committed::new(Vec::new(), Tally::default(), false), rest };
        }
        self.journal.record(format!("Write{users}"));
        state.pass(batch)
    }

    fn warnings(&self) -> &[String] {
        &[]
    }
}
