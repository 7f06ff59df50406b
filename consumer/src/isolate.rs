//! The transaction that finds the rows that a table rejects: pieces of a batch in savepoints, by halves.

use deadpool_postgres::Object;
use futures_util::future;
use shared::{
    error_chain::one_line,
    postgres::{self, FailureClass},
};
use tokio::time::Instant;

use crate::{
    batch::{Batch, Progress},
    insert::insert,
    pooling::Transactions,
};

/// Goes on with a batch where its progress says, and commits what it has found by the time: one piece at least, and
/// all if it can. Returns what then is known of the rows.
///
/// What the table rejects costs a savepoint and no transaction of its own. Constraints that wait for the commit are
/// checked with each piece, because a commit that fails tells nothing about pieces.
pub(crate) async fn isolate(
    connection: &Object,
    transactions: Transactions,
    batch: &Batch,
    enough_at: Instant,
) -> Result<Progress, tokio_postgres::Error> {
    connection.batch_execute(&format!("{}SET CONSTRAINTS ALL IMMEDIATE", transactions.begin(false))).await?;
    let mut progress = batch.progress().clone();
    while let Some(rows) = progress.next_rows(batch) {
        let savepoint = connection.batch_execute("SAVEPOINT piece");
        let (saved, inserted) = future::join(savepoint, insert(connection, rows.likes())).await;
        saved?;
        match inserted {
            Ok(inserted) => {
                connection.batch_execute("RELEASE piece").await?;
                progress.stored(inserted);
            }
            Err(error) if postgres::classify(&error) == FailureClass::Reject => {
                connection.batch_execute("ROLLBACK TO piece; RELEASE piece").await?;
                progress.rejected(rows, one_line(&error));
            }
            Err(error) => return Err(error),
        }
        if Instant::now() >= enough_at {
            break;
        }
    }
    connection.batch_execute("COMMIT").await?;
    Ok(progress)
}
