//! The transaction that finds rejected rows: bisection of a batch in savepoints.

use deadpool_postgres::Object;
use futures_util::future;
use shared::{
    error_chain::one_line,
    postgres::{self, FailureClass},
};
use tokio::time::Instant;

use crate::store::{
    batch::{Batch, PieceOutcome},
    insert::insert,
    session::Transactions,
};

/// Tries the pieces that are left of a batch, and commits the outcomes that it has by `enough_at`: of at least one piece, of
/// all if it can. Returns the outcomes.
///
/// A rejected piece costs a savepoint and no transaction of its own. Deferred constraints are checked with each piece,
/// because a failed COMMIT names no piece.
pub(super) async fn bisect(
    connection: &Object,
    transactions: Transactions,
    batch: &Batch,
    enough_at: Instant,
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
        if Instant::now() >= enough_at {
            break;
        }
    }
    connection.batch_execute("COMMIT").await?;
    Ok(outcomes)
}
