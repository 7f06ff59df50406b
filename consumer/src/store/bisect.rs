//! Bisection of a batch in savepoints of one transaction, to find rejected rows.

use futures_util::future;
use shared::{
    error_chain::one_line,
    postgres::{self, FailureClass, PooledSession},
};
use tokio::time::Instant;

use crate::store::{
    batch::{Batch, PieceOutcome},
    insert::insert,
    session::Transactions,
};

/// Tries the remaining pieces of a batch until `deadline`, at least one, and commits. Returns the outcomes of the pieces that
/// were tried.
///
/// A rejected piece costs a savepoint, not a separate transaction. Deferred constraints are checked with each piece,
/// because a failed COMMIT does not identify the piece.
pub(super) async fn bisect(
    connection: &PooledSession,
    transactions: Transactions,
    batch: &Batch,
    deadline: Instant,
) -> Result<Vec<PieceOutcome>, tokio_postgres::Error> {
    connection.batch_execute(&format!("{}SET CONSTRAINTS ALL IMMEDIATE", transactions.begin(false))).await?;
    let mut pieces = batch.pieces();
    let mut outcomes = Vec::new();
    while let Some(rows) = pieces.next_rows() {
        let savepoint = connection.batch_execute("SAVEPOINT piece");
        let (saved, inserted) = future::join(savepoint, insert(connection, rows)).await;
        saved?;
        match inserted {
            Ok(inserted) => {
                connection.batch_execute("RELEASE piece").await?;
                outcomes.push(pieces.stored(inserted));
            }
            Err(error) if postgres::classify(&error) == FailureClass::Reject => {
                connection.batch_execute("ROLLBACK TO piece; RELEASE piece").await?;
                outcomes.push(pieces.rejected(one_line(&error)));
            }
            Err(error) => return Err(error),
        }
        if Instant::now() >= deadline {
            break;
        }
    }
    connection.batch_execute("COMMIT").await?;
    Ok(outcomes)
}
