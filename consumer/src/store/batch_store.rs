//! The writer's interface to Postgres. Unit tests replace it with a table in memory.

use crate::store::{
    batch::{Batch, Written},
    write::{Attempt, TableWriter},
};

/// Stores batches.
pub(crate) trait BatchStore: Send + 'static {
    /// Makes a pass over a batch, or a part of it. Calls `ended` for each transaction.
    fn write(
        &mut self,
        batch: Batch,
        ended: &(dyn Fn(&Attempt<'_>) + Sync),
    ) -> impl Future<Output = Written> + Send;

    /// Returns properties of the table that an operator should know.
    fn warnings(&self) -> &[String];
}

impl BatchStore for TableWriter {
    async fn write(&mut self, batch: Batch, ended: &(dyn Fn(&Attempt<'_>) + Sync)) -> Written {
        Self::write(self, batch, ended).await
    }

    fn warnings(&self) -> &[String] {
        Self::warnings(self)
    }
}
