//! Write paths of a batch: direct copy, staged copy, bisection. Creates the proof of commit.

use std::time::Duration;

use opentelemetry::KeyValue;
use shared::{
    error_chain::one_line,
    postgres::{self, FailureClass, Pool, PooledSession},
    telemetry::names,
    wire::like::Like,
};
use tokio::time::{self, Instant};

use crate::store::{
    batch::{Batch, PieceOutcome},
    bisect::bisect,
    copy::{direct_copy, staged_copy},
    error::WriteError,
    predictor::{InsertPredictor, Split},
    proof::Committed,
    session::Transactions,
};

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
    /// Direct copy of the rows predicted to be new.
    Direct(&'a Split),
    /// Staged copy of all rows.
    Staged(&'a [Like]),
    /// Bisection, to find the rows that the table rejects.
    Bisect,
}

impl WritePath<'_> {
    fn operation(self) -> &'static str {
        match self {
            Self::Direct(_) => "COPY",
            Self::Staged(_) | Self::Bisect => "INSERT",
        }
    }
}

/// Stores a batch. Without a predictor the batch is staged. A batch without rows needs no transaction.
///
/// # Errors
/// Returns the batch with the error. Rows with a committed outcome are not tried again. The connection is closed, which
/// rolls back an open transaction.
pub async fn write(
    pool: &Pool,
    transactions: Transactions,
    mut predictor: Option<&mut InsertPredictor>,
    mut batch: Batch,
    ended: &(dyn Fn(&Attempt<'_>) + Sync),
) -> Result<Committed, (Batch, WriteError)> {
    let mut fell_back = false;
    if let Some(predictor) = &mut predictor
        && let Some(split) = batch.all_untried().and_then(|rows| predictor.split(rows))
    {
        match attempt(pool, transactions, &batch, WritePath::Direct(&split), ended).await {
            Ok(outcomes) => {
                predictor.hit();
                batch.record(outcomes);
            }
            Err(error)
                if error.class() == FailureClass::Retry || !matches!(error, WriteError::Postgres(_)) =>
            {
                return Err((batch, error));
            }
            Err(error) => {
                // For any other error, the table may accept the rows from the staging table.
                predictor.miss();
                fell_back = true;
                // Without Postgres's error message, which contains row values.
                tracing::debug!(
                    error = error.error_type(),
                    "direct copy failed, falling back to staged copy"
                );
            }
        }
    }
    loop {
        batch = match batch.into_committed(fell_back) {
            Ok(committed) => return Ok(committed),
            Err(batch) => batch,
        };
        let all = batch.all_untried();
        let path = all.map_or(WritePath::Bisect, WritePath::Staged);
        match attempt(pool, transactions, &batch, path, ended).await {
            Ok(outcomes) => batch.record(outcomes),
            Err(WriteError::Postgres(error))
                if all.is_some() && postgres::classify(&error) == FailureClass::Reject =>
            {
                batch.record([PieceOutcome::Rejected { why: one_line(&error) }]);
            }
            Err(error) => return Err((batch, error)),
        }
    }
}

/// Runs one transaction and reports its end.
async fn attempt(
    pool: &Pool,
    transactions: Transactions,
    batch: &Batch,
    path: WritePath<'_>,
    ended: &(dyn Fn(&Attempt<'_>) + Sync),
) -> Result<Vec<PieceOutcome>, WriteError> {
    let started = Instant::now();
    let done = transact(pool, transactions, batch, path).await;
    ended(&Attempt {
        operation: path.operation(),
        rows: batch.next_rows().map_or(0, <[Like]>::len),
        took: started.elapsed(),
        error: done.as_ref().err(),
    });
    done
}

/// Runs one transaction: writes all rows, or in a bisection as many pieces as the time allows.
async fn transact(
    pool: &Pool,
    transactions: Transactions,
    batch: &Batch,
    path: WritePath<'_>,
) -> Result<Vec<PieceOutcome>, WriteError> {
    let limit = transactions.limit;
    let connection = pool.get().await?;
    let work = async {
        let whole = |inserted| vec![PieceOutcome::Stored { inserted }];
        match path {
            WritePath::Direct(split) => direct_copy(&connection, transactions, split).await.map(whole),
            WritePath::Staged(rows) => staged_copy(&connection, transactions, rows).await.map(whole),
            // The other half of the time is left for the last piece and the commit.
            WritePath::Bisect => {
                Ok(bisect(&connection, transactions, batch, Instant::now() + limit / 2).await?)
            }
        }
    };
    let done = time::timeout(limit, work).await.unwrap_or(Err(WriteError::Timeout));
    if done.is_err() {
        // Must not return to the pool in the middle of its transaction.
        drop(PooledSession::take(connection));
    }
    done
}
