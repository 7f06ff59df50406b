//! The writer's interface to Postgres. Unit tests replace it with a table in memory.

use crate::store::{
    batch::{Batch, Written},
    error::WriteError,
    write::{Attempt, TableWriter},
};

/// Stores batches.
pub(crate) trait BatchStore: Send + 'static {
    /// Makes one pass over a batch. Calls `ended` for each transaction.
    ///
    /// # Errors
    /// Returns the batch with an error that says nothing about its rows. The batch may be stored despite the error, if only
    /// the reply to COMMIT was lost.
    fn write(
        &mut self,
        batch: Batch,
        ended: &(dyn Fn(&Attempt<'_>) + Sync),
    ) -> impl Future<Output = Result<Written, (Batch, WriteError)>> + Send;

    /// Returns properties of the table that an operator should know.
    fn warnings(&self) -> &[String];
}

impl BatchStore for TableWriter {
    async fn write(
        &mut self,
        batch: Batch,
        ended: &(dyn Fn(&Attempt<'_>) + Sync),
    ) -> Result<Written, (Batch, WriteError)> {
        Self::write(self, batch, ended).await
    }

    fn warnings(&self) -> &[String] {
        Self::warnings(self)
    }
}
