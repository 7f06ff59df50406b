//! Piecewise write: the pieces of a batch in savepoints of one transaction. What Postgres takes is committed; a piece that it
//! does not take is halved, down to single rows.

use std::time::Duration;

use futures_util::future;
use shared::{postgres::RowsFailure, wire::like::Like};
use tokio::time::Instant;
use tokio_postgres::error::SqlState;

use crate::store::{
    batch::{Batch, Obstacle, Outcome, Stored},
    error::{Phase, WriteError},
    insert::insert,
    piece_size::PieceSize,
    transaction::{Transaction, within},
};

/// Minimum time limit of a statement.
const PATIENCE_MIN: Duration = Duration::from_millis(5);

/// Time limits of the statement of one piece. They shrink with each row that exceeds them, so that many blocked rows do not
/// cost the others much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Patience {
    statement: Duration,
    lock: Duration,
}

impl Patience {
    /// Returns the limits for rows with this number of earlier passes, in transactions of this duration. Rows that were
    /// tried before cost the others little at first, and get more time with each pass.
    pub(super) fn new(limit: Duration, passes: u32) -> Self {
        let lock = (limit / 40).max(PATIENCE_MIN);
        let statement = match passes {
            0 => limit / 4,
            passes => lock.saturating_mul(1 << passes.min(10)).min(limit * 3 / 4),
        };
        Self { statement: statement.max(PATIENCE_MIN), lock }
    }

    fn sql(self) -> String {
        let (statement_ms, lock_ms) = (self.statement.as_millis(), self.lock.as_millis());
        format!("SET LOCAL statement_timeout = {statement_ms}; SET LOCAL lock_timeout = {lock_ms};")
    }

    /// Shrinks the limits after the failure of a piece.
    fn failed(&mut self, rows: usize, error: &WriteError) {
        let halved = |limit: Duration| (limit / 2).max(PATIENCE_MIN);
        if error.sqlstate() == Some(SqlState::LOCK_NOT_AVAILABLE.code()) {
            self.lock = halved(self.lock);
        } else if rows == 1 && error.is_statement_timeout() {
            self.statement = halved(self.statement);
        }
    }
}

/// Limits of a piecewise write.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) patience: Patience,
    /// Whether only one piece is tried, because an earlier transaction was lost with its connection.
    pub(super) one_piece: bool,
}

/// Tries the untried pieces of a batch, as many as the time allows and at least one, and commits. Returns the outcomes of the
/// pieces that were tried.
///
/// Deferred constraints are checked with each piece, because a failed COMMIT does not identify the piece.
pub(super) async fn write_pieces(
    tx: &Transaction<'_>,
    batch: &Batch,
    limits: Limits,
    size: &mut PieceSize,
) -> Result<Vec<Outcome>, WriteError> {
    let Limits { mut patience, one_piece } = limits;
    let opening = tx.begin(false, "SET CONSTRAINTS ALL IMMEDIATE;");
    let begun = within(tx.deadline, Phase::Setup, opening).await?;
    let mut untried = batch.untried();
    let mut outcomes = Vec::new();
    let mut limits_sql = patience.sql();
    while let Some(rows) = untried.next_rows(size.rows()) {
        let started = Instant::now();
        let tried = within(tx.deadline, Phase::Rows, try_piece(tx, rows, &limits_sql)).await;
        let outcome = match tried {
            Ok(stored) => {
                size.stored(rows.len(), started.elapsed());
                Outcome { rows: rows.len(), result: Ok(stored) }
            }
            Err(error) => {
                if error.is_statement_timeout() {
                    size.timed_out(rows.len());
                }
                patience.failed(rows.len(), &error);
                limits_sql = patience.sql();
                Outcome { rows: rows.len(), result: Err(Obstacle::of(error)?) }
            }
        };
        untried.apply(&outcome);
        outcomes.push(outcome);
        // The last eighth is left for the commit.
        let latest_end = tx.deadline - tx.session.limit() / 8;
        if one_piece || Instant::now() + patience.statement > latest_end {
            break;
        }
    }
    tx.commit(&begun).await?;
    Ok(outcomes)
}

/// Sends one piece in a savepoint. After an error of the piece, the transaction is as it was before.
async fn try_piece(tx: &Transaction<'_>, rows: &[Like], limits: &str) -> Result<Stored, WriteError> {
    let connection = tx.session.connection();
    let in_setup = |error| WriteError::in_phase(Phase::Setup, error);
    let savepoint = format!("{limits}SAVEPOINT piece");
    let (saved, inserted) = future::join(connection.batch_execute(&savepoint), insert(tx, rows)).await;
    saved.map_err(in_setup)?;
    match inserted {
        Ok(stored) => {
            connection.batch_execute("RELEASE piece").await.map_err(in_setup)?;
            Ok(stored)
        }
        Err(error) => {
            let error = WriteError::in_phase(Phase::Rows, error);
            if error.about_rows() != RowsFailure::Server {
                connection.batch_execute("ROLLBACK TO piece; RELEASE piece").await.map_err(in_setup)?;
            }
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn rows_that_were_tried_before_get_more_time_with_each_pass() {
        let statement = |passes| Patience::new(LIMIT, passes).statement;
        assert_eq!(statement(0), LIMIT / 4);
        assert_eq!(statement(1), LIMIT / 20);
        assert_eq!(statement(2), LIMIT / 10);
        assert_eq!(statement(100), LIMIT * 3 / 4);
        let short = Patience::new(Duration::from_millis(10), 0);
        assert_eq!((short.statement, short.lock), (PATIENCE_MIN, PATIENCE_MIN));
    }
}
