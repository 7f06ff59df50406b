//! A writing transaction: begins with the verification of the table, and ends with a commit whose reply is awaited.

use tokio::time::{Instant, timeout_at};

use crate::store::{
    error::{Phase, WriteError},
    session::{Begun, Session},
    table::{self, Table, TableError},
};

/// Table whose definition was verified, with the fingerprint of the definition.
#[derive(Debug)]
pub(super) struct Verified {
    pub(super) table: Table,
    pub(super) fingerprint: String,
}

/// Transaction on a verified table.
pub(super) struct Transaction<'a> {
    pub(super) session: &'a Session,
    pub(super) table: &'a Table,
    fingerprint: &'a str,
    /// End of the time limit.
    pub(super) deadline: Instant,
}

impl Verified {
    /// Resolves and verifies the table. The name keeps its meaning from here on, whatever the search path finds later.
    pub(super) async fn read(session: &Session) -> Result<Self, WriteError> {
        // Names the fault of a relation that cannot be locked.
        let found = table::inspect(session.connection()).await?;
        let begun = session.begin(&found.lock(), &found.quoted(), false).await?;
        let table = table::inspect_again(session.connection(), &found).await?;
        // Nothing was written, and a commit could wait for a standby.
        let ended = session.connection().batch_execute("ROLLBACK").await;
        ended.map_err(|error| WriteError::from(TableError::from(error)))?;
        Ok(Self { table, fingerprint: begun.fingerprint })
    }

    pub(super) fn transaction<'a>(&'a self, session: &'a Session, deadline: Instant) -> Transaction<'a> {
        Transaction { session, table: &self.table, fingerprint: &self.fingerprint, deadline }
    }
}

impl Transaction<'_> {
    /// Begins, locks the table against changes of its definition, and checks that it is the verified one. `then` is SQL to run
    /// after the lock.
    pub(super) async fn begin(&self, stages: bool, then: &str) -> Result<Begun, WriteError> {
        let lock = self.table.lock() + then;
        let begun = self.session.begin(&lock, &self.table.quoted(), stages).await?;
        if begun.fingerprint == self.fingerprint { Ok(begun) } else { Err(WriteError::TableChanged) }
    }

    /// Commits. The outcome is unknown after an error.
    pub(super) async fn commit(&self, begun: &Begun) -> Result<(), WriteError> {
        let commit = async {
            let committed = self.session.connection().batch_execute("COMMIT").await;
            committed.map_err(|error| WriteError::in_phase(Phase::Commit, error))
        };
        match within(self.deadline, Phase::Commit, commit).await {
            Err(WriteError::Timeout(Phase::Commit)) if begun.awaits_standby => {
                Err(WriteError::StandbyTimeout)
            }
            committed => committed,
        }
    }
}

/// Runs a part of a transaction within its time limit.
pub(super) async fn within<T>(
    deadline: Instant,
    phase: Phase,
    work: impl Future<Output = Result<T, WriteError>>,
) -> Result<T, WriteError> {
    timeout_at(deadline, work).await.unwrap_or(Err(WriteError::Timeout(phase)))
}
