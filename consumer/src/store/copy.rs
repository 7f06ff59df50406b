//! COPY: direct copy into the table for rows that are predicted to be new, staged copy for all others.

use deadpool_postgres::Object;
use futures_util::{SinkExt, future};
use shared::{postgres::copy_format, wire::like::Like};
use tokio::pin;
use tokio_postgres::SimpleQueryMessage;

use crate::store::{error::WriteError, insert::insert, predictor::Split, session::Transactions};

/// Direct copy of new rows: it fails when one is not new.
const COPY: &str = "COPY likes (user_id, post_id, created_at) FROM STDIN (FORMAT binary)";

/// Copy of rows that may be in the table already.
const STAGE: &str = "COPY likes_batch (user_id, post_id, created_at) FROM STDIN (FORMAT binary)";

const INSERT_STAGED_AND_COMMIT: &str = "
INSERT INTO likes (user_id, post_id, created_at) SELECT user_id, post_id, created_at FROM likes_batch
ON CONFLICT (user_id, post_id) DO NOTHING;
COMMIT";

/// Stores rows that may be in the table, by way of the staging table. Returns the number of new rows.
///
/// BEGIN and COPY leave together, and so do the end of the data, INSERT and COMMIT: two waits for the network, and one
/// more where a statement must be prepared. Each step fails if the one before it did, so COMMIT is reached, and
/// answered with a count, only when every step has succeeded.
pub(super) async fn staged_copy(
    connection: &Object,
    transactions: Transactions,
    rows: &[Like],
) -> Result<u64, WriteError> {
    let begin = transactions.begin(true);
    let begin = connection.batch_execute(&begin);
    let store = connection.simple_query(INSERT_STAGED_AND_COMMIT);
    let (staged, answers) = copy(connection, transactions, STAGE, rows, begin, store).await?;
    if staged != rows.len() as u64 {
        // Postgres never does this; but nothing is acknowledged on a guess.
        return Err(WriteError::Staged { staged, rows: rows.len() });
    }
    let inserted = answers.iter().find_map(|message| match message {
        SimpleQueryMessage::CommandComplete(rows) => Some(*rows),
        _ => None,
    });
    inserted.ok_or(WriteError::Answer)
}

/// Stores rows that are predicted to be new by COPY into the table, and with them known rows, which may be in the table or
/// not. Returns the number of new rows.
///
/// Statements leave together as in [`staged_copy`]. COMMIT after a failed step rolls back without an error, so the answers
/// are checked in their order: the answer to COMMIT counts only when every step before it has succeeded.
pub(super) async fn direct_copy(
    connection: &Object,
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
        // The statement was another session's of the same name: the rows went to the staging table, and are gone.
        return Err(WriteError::SharedSession(None));
    }
    Ok(copied + inserted)
}

/// Runs COPY, sent together with the statements before and after it. Returns the number of copied rows: a trigger can leave
/// some out.
async fn copy<A>(
    connection: &Object,
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
