//! Write paths of a batch: direct copy, staged copy, piecewise write.

use std::time::Duration;

use opentelemetry::KeyValue;
use shared::{
    postgres::{FailureClass, Pool, RowsFailure},
    telemetry::names,
    wire::like::Like,
};
use tokio::time::Instant;

use crate::store::{
    batch::{Batch, Obstacle, Outcome, Rest, Written},
    copy::{direct_copy, staged_copy},
    error::{Phase, WriteError},
    evidence::Evidence,
    piece_size::PieceSize,
    piecewise::{Limits, Patience, write_pieces},
    predictor::{InsertPredictor, Split},
    session::{Session, Transactions},
    transaction::{Verified, within},
};

/// Number of transactions in a row that are lost with their connection while they send rows, from which on the rows are
/// suspected and sent in smaller pieces.
const SUSPICIOUS_LOSSES: u32 = 2;

/// Number of changes of the table for which a transaction is run again at once.
const TABLE_CHANGES_MAX: u32 = 3;

/// Transaction that has ended.
pub struct Attempt<'a> {
    /// Main statement.
    pub operation: &'static str,
    pub rows: usize,
    pub took: Duration,
    /// `None` if the transaction was committed.
    pub error: Option<&'a WriteError>,
}

impl Attempt<'_> {
    /// Returns the attributes of the span and the metrics.
    pub fn attributes(&self) -> Vec<KeyValue> {
        let mut attributes = vec![
            KeyValue::new(names::DB_SYSTEM_NAME, names::POSTGRESQL),
            KeyValue::new(names::DB_COLLECTION_NAME, "likes"),
            KeyValue::new(names::DB_OPERATION_NAME, self.operation),
        ];
        if let Some(error) = self.error {
            attributes.push(KeyValue::new(names::ERROR_TYPE, error.error_type().to_owned()));
            let code =
                error.sqlstate().map(|code| KeyValue::new(names::DB_RESPONSE_STATUS_CODE, code.to_owned()));
            attributes.extend(code);
        }
        attributes
    }
}

/// Write path of a transaction.
#[derive(Clone, Copy)]
enum WritePath<'a> {
    /// Direct copy of the rows predicted to be new, if the table allows it.
    Direct(&'a Split),
    /// Staged copy of all rows.
    Staged,
    /// Pieces of the batch in savepoints.
    Piecewise,
}

/// How far a pass has come.
enum Progress {
    /// Every row was tried, or nothing has been stored for long.
    Ended,
    Unfinished,
}

/// Writes batches to the table, one transaction at a time, and remembers what the transactions showed.
pub struct TableWriter {
    pool: Pool,
    transactions: Transactions,
    /// Without a predictor every batch is staged.
    predictor: Option<InsertPredictor>,
    session: Option<Session>,
    table: Option<Verified>,
    /// Properties of the table that were logged.
    warnings: Vec<String>,
    piece_size: PieceSize,
    evidence: Evidence,
    /// Number of transactions in a row that were lost with their connection while they sent rows.
    losses: u32,
}

impl TableWriter {
    pub fn new(pool: Pool, transactions: Transactions, predictor: Option<InsertPredictor>) -> Self {
        Self {
            pool,
            transactions,
            predictor,
            session: None,
            table: None,
            warnings: Vec::new(),
            piece_size: PieceSize::new(transactions.limit),
            evidence: Evidence::default(),
            losses: 0,
        }
    }

    /// Makes a pass over a batch, or a part of it: tries every row, in smaller and smaller pieces where Postgres does not take
    /// them. Returns what is stored when that took half of the time limit. The pass ends early when nothing has been stored for
    /// that long, so that blocked rows do not keep others waiting.
    ///
    /// Without an error, a transaction was committed, unless the batch has no rows. After an error, the connection is closed,
    /// which rolls back an open transaction. Rows with a committed outcome are not tried again.
    pub async fn write(&mut self, mut batch: Batch, ended: &(dyn Fn(&Attempt<'_>) + Sync)) -> Written {
        let mut committed = batch.rows() == 0;
        if batch.whole(self.piece_size.rows()).is_some() {
            match self.write_whole(&mut batch, ended).await {
                Ok(is_committed) => committed = is_committed,
                Err(error) => return unwritten(batch, Some(error)),
            }
        }
        match self.write_pieces(&mut batch, committed, ended).await {
            Ok(Progress::Unfinished) => unwritten(batch, None),
            Ok(Progress::Ended) => {
                batch.judge(&mut self.evidence);
                let committed = batch.take_settled();
                Written { committed, rest: batch.remainder().map_or(Rest::Nothing, Rest::Obstructed) }
            }
            Err(error) => unwritten(batch, Some(error)),
        }
    }

    /// Tries the untried rows of a batch, and once more those that were rejected for the first time.
    async fn write_pieces(
        &mut self,
        batch: &mut Batch,
        mut committed: bool,
        ended: &(dyn Fn(&Attempt<'_>) + Sync),
    ) -> Result<Progress, WriteError> {
        let patience = self.transactions.limit / 2;
        let started = Instant::now();
        let mut progressed_at = None;
        let mut retried = false;
        loop {
            let is_tried = batch.next_rows(usize::MAX).is_none();
            if is_tried && !retried && batch.retry_rejected(&self.evidence) {
                retried = true;
                continue;
            }
            let is_late = progressed_at.unwrap_or(started).elapsed() >= patience;
            if committed && (is_tried || is_late) {
                return Ok(Progress::Ended);
            }
            if progressed_at.is_some() && started.elapsed() >= patience {
                return Ok(Progress::Unfinished);
            }
            match self.attempt(batch, WritePath::Piecewise, ended).await {
                Ok(outcomes) => {
                    committed = true;
                    if outcomes.iter().any(|outcome| outcome.result.is_ok()) {
                        progressed_at = Some(Instant::now());
                    }
                    batch.record(outcomes, &mut self.evidence);
                }
                Err(error) => {
                    self.suspect(batch, &error);
                    return Err(error);
                }
            }
        }
    }

    /// Writes a batch in one piece. If Postgres does not take it, its halves are left untried. Returns whether a transaction was
    /// committed.
    async fn write_whole(
        &mut self,
        batch: &mut Batch,
        ended: &(dyn Fn(&Attempt<'_>) + Sync),
    ) -> Result<bool, WriteError> {
        let rows = batch.whole(self.piece_size.rows()).unwrap_or_default();
        let split = self.predictor.as_mut().and_then(|predictor| predictor.split(rows));
        if let Some(split) = split {
            match self.attempt(batch, WritePath::Direct(&split), ended).await {
                Ok(outcomes) => {
                    self.predicted(InsertPredictor::hit);
                    batch.record(outcomes, &mut self.evidence);
                    return Ok(true);
                }
                Err(error) if permits_staged_copy(&error) => {
                    // The table may accept the rows from the staging table.
                    self.predicted(InsertPredictor::miss);
                    batch.fell_back();
                    // Without Postgres's error message, which contains row values.
                    tracing::debug!(
                        error = error.error_type(),
                        "direct copy failed, falling back to staged copy"
                    );
                }
                Err(error) => return self.split_whole(batch, error).map(|()| false),
            }
        }
        let staged = self.attempt(batch, WritePath::Staged, ended).await;
        let committed = staged.is_ok();
        match staged {
            Ok(outcomes) => batch.record(outcomes, &mut self.evidence),
            Err(error) => self.split_whole(batch, error)?,
        }
        Ok(committed)
    }

    fn predicted(&mut self, record: fn(&mut InsertPredictor)) {
        if let Some(predictor) = &mut self.predictor {
            record(predictor);
        }
    }

    /// Replaces a batch that Postgres did not take as a whole by its halves. Returns errors that are not about its rows.
    fn split_whole(&mut self, batch: &mut Batch, error: WriteError) -> Result<(), WriteError> {
        if error.is_statement_timeout() {
            self.piece_size.timed_out(batch.rows());
        }
        self.suspect(batch, &error);
        let failed = Outcome { rows: batch.rows(), result: Err(Obstacle::of(error)?) };
        batch.record([failed], &mut self.evidence);
        Ok(())
    }

    /// Splits the next piece if it seems to be the reason why connections are lost. This never rejects a row.
    fn suspect(&mut self, batch: &mut Batch, error: &WriteError) {
        if error.is_loss_during_rows()
            && self.losses >= SUSPICIOUS_LOSSES
            && let Some(rows) = batch.next_rows(self.piece_size.rows()).map(<[Like]>::len)
        {
            batch.record([Outcome { rows, result: Err(Obstacle::unknown(error)) }], &mut self.evidence);
        }
    }

    /// Runs one transaction, reports its end, and learns from it. If the table was changed since it was verified, no row was
    /// sent, and the transaction is run again.
    async fn attempt(
        &mut self,
        batch: &Batch,
        path: WritePath<'_>,
        ended: &(dyn Fn(&Attempt<'_>) + Sync),
    ) -> Result<Vec<Outcome>, WriteError> {
        let mut changes = 0;
        loop {
            let started = Instant::now();
            let rows = batch.next_rows(self.piece_size.rows()).map_or(0, <[Like]>::len);
            let done = self.transact(batch, path).await;
            let (operation, took) = (self.operation(path), started.elapsed());
            ended(&Attempt { operation, rows, took, error: done.as_ref().err() });
            match &done {
                Ok(outcomes) => self.learn(outcomes, path, took),
                Err(WriteError::TableChanged) if changes < TABLE_CHANGES_MAX => {
                    changes += 1;
                    continue;
                }
                Err(error) => self.losses += u32::from(error.is_loss_during_rows()),
            }
            return done;
        }
    }

    /// Returns the main statement of a transaction.
    fn operation(&self, path: WritePath<'_>) -> &'static str {
        let is_direct = |verified: &Verified| verified.table.allows_direct_copy();
        match path {
            WritePath::Direct(_) if self.table.as_ref().is_none_or(is_direct) => "COPY",
            WritePath::Direct(_) | WritePath::Staged | WritePath::Piecewise => "INSERT",
        }
    }

    fn learn(&mut self, outcomes: &[Outcome], path: WritePath<'_>, took: Duration) {
        if !outcomes.is_empty() {
            self.losses = 0;
        }
        if !matches!(path, WritePath::Piecewise) {
            for outcome in outcomes {
                self.piece_size.stored(outcome.rows, took);
            }
        }
    }

    /// Runs one transaction on the writer's session, which is closed after an error.
    async fn transact(&mut self, batch: &Batch, path: WritePath<'_>) -> Result<Vec<Outcome>, WriteError> {
        let mut session = match self.session.take().filter(Session::is_usable) {
            Some(session) => session,
            None => Session::open(&self.pool, self.transactions).await?,
        };
        let deadline = Instant::now() + self.transactions.limit;
        let done = self.transact_on(&mut session, batch, path, deadline).await;
        match &done {
            Ok(_) => self.session = Some(session),
            Err(error) => {
                session.close();
                if error.class() == FailureClass::Halt || matches!(error, WriteError::TableChanged) {
                    self.table = None;
                }
            }
        }
        done
    }

    async fn transact_on(
        &mut self,
        session: &mut Session,
        batch: &Batch,
        path: WritePath<'_>,
        deadline: Instant,
    ) -> Result<Vec<Outcome>, WriteError> {
        if self.table.is_none() {
            let verified = within(deadline, Phase::Setup, Verified::read(session)).await?;
            self.verified(&verified);
            self.table = Some(verified);
        }
        let Some(verified) = &self.table else { return Err(WriteError::TableChanged) };
        let whole = |stored| vec![Outcome { rows: batch.rows(), result: Ok(stored) }];
        match path {
            WritePath::Direct(split) if verified.table.allows_direct_copy() => {
                direct_copy(&verified.transaction(session, deadline), split).await.map(whole)
            }
            WritePath::Direct(_) | WritePath::Staged => {
                within(deadline, Phase::Setup, session.create_staging_table()).await?;
                let rows = batch.whole(usize::MAX).unwrap_or_default();
                staged_copy(&verified.transaction(session, deadline), rows).await.map(whole)
            }
            WritePath::Piecewise => {
                let patience = Patience::new(self.transactions.limit, batch.passes());
                let limits = Limits { patience, one_piece: self.losses > 0 };
                let tx = verified.transaction(session, deadline);
                write_pieces(&tx, batch, limits, &mut self.piece_size).await
            }
        }
    }

    /// Records a verified table.
    fn verified(&mut self, verified: &Verified) {
        self.evidence.table_verified(&verified.fingerprint);
        let warnings = verified.table.warnings();
        if warnings != self.warnings {
            for warning in &warnings {
                tracing::warn!(warning, "table can lose likes");
            }
            self.warnings = warnings;
        }
    }

    /// Returns properties of the table that an operator should know.
    pub(crate) fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

fn unwritten(mut batch: Batch, error: Option<WriteError>) -> Written {
    Written { committed: batch.take_settled(), rest: Rest::Unwritten(batch, error) }
}

/// Returns whether a batch may be staged after its direct copy failed.
fn permits_staged_copy(error: &WriteError) -> bool {
    match error {
        WriteError::Setup(_) => error.class() == FailureClass::Halt,
        WriteError::Rows(_) => {
            error.about_rows() == RowsFailure::Rejected || error.class() == FailureClass::Halt
        }
        _ => false,
    }
}
