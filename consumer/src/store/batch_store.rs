//! The writer's interface to Postgres. Unit tests replace it with a table in memory.

use shared::postgres::Pool;

use crate::store::{
    batch::Batch,
    error::WriteError,
    predictor::InsertPredictor,
    proof::Committed,
    session::Transactions,
    write::{self, Attempt},
};

/// Stores batches.
pub(crate) trait BatchStore: Send + 'static {
    /// Stores a batch. Calls `ended` for each transaction.
    ///
    /// # Errors
    /// Returns the batch with the error. The batch may be stored despite the error, if only the reply to COMMIT was lost.
    fn write(
        &mut self,
        batch: Batch,
        ended: &(dyn Fn(&Attempt<'_>) + Sync),
    ) -> impl Future<Output = Result<Committed, (Batch, WriteError)>> + Send;
}

/// Stores batches in Postgres.
pub(crate) struct PostgresStore {
    pool: Pool,
    transactions: Transactions,
    predictor: InsertPredictor,
}

impl PostgresStore {
    pub(crate) fn new(pool: Pool, transactions: Transactions) -> Self {
        Self { pool, transactions, predictor: InsertPredictor::default() }
    }
}

impl BatchStore for PostgresStore {
    async fn write(
        &mut self,
        batch: Batch,
        ended: &(dyn Fn(&Attempt<'_>) + Sync),
    ) -> Result<Committed, (Batch, WriteError)> {
        write::write(&self.pool, self.transactions, Some(&mut self.predictor), batch, ended).await
    }
}
