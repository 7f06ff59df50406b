//! The writer's view of Postgres, behind a trait: tests put a table in memory in its place.

use deadpool_postgres::Pool;

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
    /// Stores a batch, or returns it with the reason. After an error it may be stored all the same, when only the reply to
    /// COMMIT was lost. Calls `ended` for each transaction.
    fn write(
        &mut self,
        batch: Batch,
        ended: &(dyn Fn(&Attempt<'_>) + Sync),
    ) -> impl Future<Output = Result<Committed, (Batch, WriteError)>> + Send;
}

/// The table in Postgres.
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
