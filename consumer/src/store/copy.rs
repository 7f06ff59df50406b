//! COPY of rows: direct copy (fast path) for rows predicted to be new, staged copy (safe path) for all others.

use futures_util::{SinkExt, future};
use shared::{
    postgres::{PooledSession, copy_format},
    wire::like::Like,
};
use tokio::pin;
use tokio_postgres::SimpleQueryMessage;

use crate::store::{error::WriteError, insert::insert, predictor::Split, session::Transactions};

/// Direct copy. Fails if any row is already in the table.
const COPY: &str = "COPY likes (user_id, post_id, created_at) FROM STDIN (FORMAT binary)";

/// Copy into the staging table, for rows that may already be in the table.
const STAGE: &str = "COPY likes_batch (user_id, post_id, created_at) FROM STDIN (FORMAT binary)";

const INSERT_STAGED_AND_COMMIT: &str = "
INSERT INTO likes (user_id, post_id, created_at) SELECT user_id, post_id, created_at FROM likes_batch
ON CONFLICT (user_id, post_id) DO NOTHING;
COMMIT";

/// Stores rows through the staging table; they may already be in the table. Returns the number of new rows.
///
/// BEGIN and COPY are sent together, and so are the end of the data, INSERT and COMMIT. This takes two network round
/// trips, and one more if a statement must be prepared. A step fails if the step before it failed, so COMMIT is executed,
/// and a row count returned, only if every step succeeded.
pub(super) async fn staged_copy(
    connection: &PooledSession,
    transactions: Transactions,
    rows: &[Like],
) -> Result<u64, WriteError> {
    let begin = transactions.begin(true);
    let begin = connection.batch_execute(&begin);
    let store = connection.simple_query(INSERT_STAGED_AND_COMMIT);
    let (staged, answers) = copy(connection, transactions, STAGE, rows, begin, store).await?;
    if staged != rows.len() as u64 {
        // Not expected from Postgres, but entries are acknowledged only on proof.
        return Err(WriteError::Staged { staged, rows: rows.len() });
    }
    let inserted = answers.iter().find_map(|message| match message {
        SimpleQueryMessage::CommandComplete(rows) => Some(*rows),
        _ => None,
    });
    inserted.ok_or(WriteError::Answer)
}

/// Stores rows predicted to be new by COPY into the table, and the known rows of the batch by INSERT. Returns the number of
/// new rows.
///
/// Statements are sent together as in [`staged_copy`]. COMMIT after a failed step rolls back without an error, so replies
/// are checked in order: the reply to COMMIT counts only if every step before it succeeded.
pub(super) async fn direct_copy(
    connection: &PooledSession,
    transactions: Transactions,
    Split { fresh, known }: &Split,
) -> Result<u64, WriteError> {
    let begin = transactions.begin(false);
    let begin = connection.batch_execute(&begin);
    let insert_known = async { if known.is_empty() { Ok(0) } else { insert(connection, known).await } };
    let commit = async {
        let commit = connection.simple_query(transactions.commit_direct());
        let (inserted, committed) = future::join(insert_known, commit).await;
        let inserted = inserted?;
        committed.map(|answers| (inserted, answers))
    };
    let (copied, (inserted, answers)) = copy(connection, transactions, COPY, fresh, begin, commit).await?;
    if answers.iter().any(|answer| matches!(answer, SimpleQueryMessage::Row(_))) {
        // The prepared statement was another consumer's with the same name: the rows went to the staging table and are lost.
        return Err(WriteError::SharedSession(None));
    }
    Ok(copied + inserted)
}

/// Runs COPY, sent together with the statements before and after it. Returns the number of copied rows, which is lower than
/// the number of rows if a trigger skips some.
async fn copy<A>(
    connection: &PooledSession,
    transactions: Transactions,
    sql: &str,
    rows: &[Like],
    before: impl Future<Output = Result<(), tokio_postgres::Error>>,
    after: impl Future<Output = Result<A, tokio_postgres::Error>>,
) -> Result<(u64, A), tokio_postgres::Error> {
    let start = async {
        let copy = transactions.prepare(connection, sql).await?;
        connection.copy_in(&copy).await
    };
    let (before, sink) = future::join(before, start).await;
    before?;
    let sink = sink?;
    pin!(sink);
    sink.send(copy_format::encode(rows)).await?;
    let (copied, after) = future::join(sink.finish(), after).await;
    Ok((copied?, after?))
}
