//! COPY of rows: direct copy (fast path) for rows predicted to be new, staged copy (safe path) for all others.

use futures_util::{SinkExt, future};
use shared::{postgres::copy_format, wire::like::Like};
use tokio::pin;
use tokio_postgres::SimpleQueryMessage;

use crate::store::{
    batch::Stored,
    error::{Phase, WriteError},
    insert,
    predictor::Split,
    transaction::{Transaction, within},
};

/// Copy into the staging table, for rows that may already be in the table.
const STAGE: &str = "COPY pg_temp.likes_batch (user_id, post_id, created_at) FROM STDIN (FORMAT binary)";

/// Stores rows through the staging table; they may already be in the table.
///
/// BEGIN and COPY are sent together, and so are the end of the data, INSERT and COMMIT. This takes two network round
/// trips, and one more if a statement must be prepared. A step fails if the step before it failed. COMMIT after a failed step
/// rolls back without an error, so replies are checked in order.
pub(super) async fn staged_copy(tx: &Transaction<'_>, rows: &[Like]) -> Result<Stored, WriteError> {
    let table = tx.table.quoted();
    // Values are converted as by an assignment: with an error, never by truncation.
    let insert = format!(
        "INSERT INTO {table} (user_id, post_id, created_at)
         SELECT user_id, post_id, created_at FROM pg_temp.likes_batch ON CONFLICT (user_id, post_id) DO NOTHING"
    );
    let absent = format!(
        "SELECT count(*) FROM pg_temp.likes_batch AS staged WHERE NOT EXISTS (SELECT FROM {table} AS stored
         WHERE stored.user_id = staged.user_id AND stored.post_id = staged.post_id)"
    );
    let connection = tx.session.connection();
    let store = async {
        let absent = async {
            if tx.table.can_discard() { connection.simple_query(&absent).await } else { Ok(Vec::new()) }
        };
        future::try_join(connection.simple_query(&insert), absent).await
    };
    let (staged, (inserted, absent)) = copy(tx, STAGE, true, rows, store).await?;
    if staged != rows.len() as u64 {
        // Not expected from Postgres, but entries are acknowledged only on proof.
        return Err(WriteError::Staged { staged, rows: rows.len() });
    }
    let inserted = inserted.iter().find_map(|message| match message {
        SimpleQueryMessage::CommandComplete(rows) => Some(*rows),
        _ => None,
    });
    let discarded = absent.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
        _ => None,
    });
    Ok(Stored { inserted: inserted.ok_or(WriteError::Answer)?, discarded: discarded.unwrap_or(0) })
}

/// Stores rows predicted to be new by COPY into the table, and the known rows of the batch by INSERT. Fails if a row that
/// was predicted to be new is in the table.
///
/// Statements are sent together as in [`staged_copy`].
pub(super) async fn direct_copy(
    tx: &Transaction<'_>,
    Split { fresh, known }: &Split,
) -> Result<Stored, WriteError> {
    let sql = format!("COPY {} (user_id, post_id, created_at) FROM STDIN (FORMAT binary)", tx.table.quoted());
    let insert_known =
        async { if known.is_empty() { Ok(Stored::default()) } else { insert::insert(tx, known).await } };
    let (copied, known) = copy(tx, &sql, false, fresh, insert_known).await?;
    // A partition may have a trigger that its table has not.
    let discarded = (fresh.len() as u64).saturating_sub(copied);
    Ok(Stored { inserted: copied + known.inserted, discarded: discarded + known.discarded })
}

/// Begins a transaction, copies rows, runs `store`, and commits. Rows are sent only after the table is verified. Returns the
/// number of copied rows, which is lower than the number of rows if a trigger discards some.
async fn copy<T>(
    tx: &Transaction<'_>,
    sql: &str,
    stages: bool,
    rows: &[Like],
    store: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<(u64, T), WriteError> {
    let connection = tx.session.connection();
    let start = async {
        let copy = tx.session.prepare(sql).await?;
        connection.copy_in(&copy).await
    };
    let opening = async {
        let (begun, sink) = future::join(tx.begin(stages, ""), start).await;
        let begun = begun?;
        Ok((begun, sink.map_err(|error| WriteError::in_phase(Phase::Setup, error))?))
    };
    let (begun, sink) = within(tx.deadline, Phase::Setup, opening).await?;
    pin!(sink);
    let data = copy_format::encode(rows);
    let store = async {
        let sent = async {
            sink.send(data).await?;
            sink.finish().await
        };
        let (copied, stored) = future::join(sent, store).await;
        let in_rows = |error| WriteError::in_phase(Phase::Rows, error);
        Ok((copied.map_err(in_rows)?, stored.map_err(in_rows)?))
    };
    let (stored, committed) = future::join(within(tx.deadline, Phase::Rows, store), tx.commit(&begun)).await;
    let stored = stored?;
    committed?;
    Ok(stored)
}
