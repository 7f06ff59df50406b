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
    proof::row_key,
    transaction::{Transaction, within},
};

/// Minimum time limit of a statement.
const PATIENCE_MIN: Duration = Duration::from_millis(5);

/// Time limits of the statement of one piece. They shrink with each row that exceeds them, so that many blocked rows do not
/// cost the others much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Patience {
    /// For several rows.
    several: Duration,
    /// For a single row.
    single: Duration,
    lock: Duration,
    /// Limit at which the size of pieces is learned.
    full: Duration,
}

impl Patience {
    /// Returns the limits for rows with this number of earlier passes, in transactions of this duration. Rows of later passes
    /// cost the others little; each gets more time with each pass.
    pub(super) fn new(limit: Duration, passes: u32) -> Self {
        let full = (limit / 4).max(PATIENCE_MIN);
        let lock = (limit / 40).max(PATIENCE_MIN);
        if passes == 0 {
            return Self { several: full, single: full, lock, full };
        }
        let single = lock.saturating_mul(1 << passes.min(10)).min(limit * 3 / 4).max(PATIENCE_MIN);
        Self { several: (lock * 2).min(full), single, lock, full }
    }

    fn statement(self, rows: usize) -> Duration {
        if rows == 1 { self.single } else { self.several }
    }

    fn sql(self, rows: usize) -> String {
        let (statement_ms, lock_ms) = (self.statement(rows).as_millis(), self.lock.as_millis());
        format!("SET LOCAL statement_timeout = {statement_ms}; SET LOCAL lock_timeout = {lock_ms};")
    }

    /// Returns whether the time that a piece takes says something about the size of other pieces.
    fn is_full(self) -> bool {
        self.several == self.full
    }

    /// Returns the size of pieces for these limits, given the one for the full limit.
    fn rows(self, at_full: usize) -> usize {
        let rows = at_full as u128 * self.several.as_micros() / self.full.as_micros().max(1);
        usize::try_from(rows).unwrap_or(usize::MAX).max(1)
    }

    /// Shrinks the limits after the failure of a piece.
    fn failed(&mut self, rows: usize, error: &WriteError) {
        let halved = |limit: Duration| (limit / 2).max(PATIENCE_MIN);
        if error.sqlstate() == Some(SqlState::LOCK_NOT_AVAILABLE.code()) {
            self.lock = halved(self.lock);
        } else if rows == 1 && error.is_statement_timeout() {
            (self.several, self.single) = (halved(self.several), halved(self.single));
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
/// pieces that were tried. Ends before a piece with lower keys than a stored one: consumers that lock rows in different orders
/// could block each other.
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
    // The last eighth is left for the commit.
    let latest_end = tx.deadline - tx.session.limit() / 8;
    let mut untried = batch.untried();
    let mut outcomes = Vec::new();
    let mut stored_up_to = None;
    while let Some(rows) = untried.next_rows(patience.rows(size.rows())) {
        let is_too_late = one_piece || Instant::now() + patience.statement(rows.len()) > latest_end;
        let is_lower = rows.first().copied().map(row_key) < stored_up_to;
        if !outcomes.is_empty() && (is_too_late || is_lower) {
            break;
        }
        let started = Instant::now();
        let limits = patience.sql(rows.len());
        let tried = within(tx.deadline, Phase::Rows, try_piece(tx, rows, &limits)).await;
        let outcome = match tried {
            Ok(stored) => {
                if patience.is_full() {
                    size.stored(rows.len(), started.elapsed());
                }
                stored_up_to = stored_up_to.max(rows.last().copied().map(row_key));
                Outcome { rows: rows.len(), result: Ok(stored) }
            }
            Err(error) => {
                if patience.is_full() && error.is_statement_timeout() {
                    size.timed_out(rows.len());
                }
                patience.failed(rows.len(), &error);
                Outcome { rows: rows.len(), result: Err(Obstacle::of(error)?) }
            }
        };
        untried.apply(&outcome);
        outcomes.push(outcome);
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
    fn a_row_that_was_tried_before_gets_more_time_with_each_pass_and_costs_others_little() {
        let statement = |passes, rows| Patience::new(LIMIT, passes).statement(rows);
        assert_eq!([1, 5_000].map(|rows| statement(0, rows)), [LIMIT / 4; 2]);
        assert_eq!(
            [1, 2, 3, 100].map(|passes| statement(passes, 1)),
            [LIMIT / 20, LIMIT / 10, LIMIT / 5, LIMIT * 3 / 4]
        );
        assert_eq!([1, 2, 100].map(|passes| statement(passes, 2)), [LIMIT / 20; 3]);
        let short = Patience::new(Duration::from_millis(10), 0);
        assert_eq!((short.several, short.single, short.lock), (PATIENCE_MIN, PATIENCE_MIN, PATIENCE_MIN));
    }

    #[test]
    fn pieces_get_smaller_with_less_time_and_teach_nothing_then() {
        let first = Patience::new(LIMIT, 0);
        assert!(first.is_full());
        assert_eq!((first.rows(625), first.rows(usize::MAX)), (625, usize::MAX));
        let later = Patience::new(LIMIT, 3);
        assert!(!later.is_full());
        assert_eq!((later.rows(625), later.rows(1)), (125, 1));
    }
}
