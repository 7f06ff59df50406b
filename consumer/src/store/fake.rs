//! In-memory fake of the table in Postgres, for unit tests.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::time::sleep;

use crate::{
    store::{
        batch::{Batch, PieceOutcome},
        batch_store::BatchStore,
        error::WriteError,
        proof::{Committed, RowKey, row_key},
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

impl BatchStore for FakeStore {
    async fn write(
        &mut self,
        mut batch: Batch,
        _ended: &(dyn Fn(&Attempt<'_>) + Sync),
    ) -> Result<Committed, (Batch, WriteError)> {
        let latency = self.lock().latency;
        if !latency.is_zero() {
            sleep(latency).await;
        }
        let rows: Vec<_> = batch.next_rows().unwrap_or_default().iter().map(|like| row_key(*like)).collect();
        let users = numbers(rows.iter().map(|(_, user)| user.unsigned_abs()));
        let fault = self.lock().faults.pop_front();
        if let Some(Fault::NotStored(error)) = fault {
            self.journal.record(format!("Write{users}: not stored"));
            return Err((batch, error));
        }
        let inserted = rows.iter().filter(|row| self.lock().rows.insert(**row)).count() as u64;
        if fault.is_some() {
            self.journal.record(format!("Write{users}: reply lost"));
            return Err((batch, WriteError::Timeout));
        }
        self.journal.record(format!("Write{users}"));
        if !rows.is_empty() {
            batch.record([PieceOutcome::Stored { inserted }]);
        }
        Ok(batch.into_committed(false).expect("every row is stored"))
    }
}
