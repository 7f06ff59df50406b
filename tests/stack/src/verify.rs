//! Compares the table with what was accepted, row by row.

use futures_util::TryStreamExt;
use thiserror::Error;
use tokio::pin;
use tokio_postgres::{Client, types::ToSql};

use crate::load::{IndexSet, Load, Sent};

/// What the table holds.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) rows: u64,
    /// Accepted, and neither there nor elsewhere.
    pub(crate) lost: u64,
    /// There more than once.
    pub(crate) doubled: u64,
    /// There, and never sent, or sent and neither accepted nor in doubt.
    pub(crate) foreign: u64,
    /// Transactions that have left rows.
    pub(crate) writing_transactions: u64,
    /// From receipt to commit, by the commit timestamps of Postgres, in milliseconds.
    pub(crate) accept_to_commit_p50_ms: f64,
    pub(crate) accept_to_commit_p99_ms: f64,
}

#[derive(Debug, Error)]
#[error("the table can't be read")]
pub(crate) struct VerifyError(#[from] tokio_postgres::Error);

/// Reads the table. `elsewhere` are pairs, by their first like, that are kept in another place.
pub(crate) async fn read_table(
    client: &Client,
    load: Load,
    sent: &Sent,
    elsewhere: &IndexSet,
) -> Result<Table, VerifyError> {
    let found = IndexSet::new(load.likes);
    let (mut rows, mut doubled, mut foreign) = (0, 0, 0);
    let none: [&(dyn ToSql + Sync); 0] = [];
    let likes = client.query_raw("SELECT user_id, post_id FROM likes", none).await?;
    pin!(likes);
    while let Some(row) = likes.try_next().await? {
        rows += 1;
        match load.first_with(row.try_get(0)?, row.try_get(1)?) {
            Some(first) if !found.insert(first) => doubled += 1,
            Some(first) if sent.may_have(first) => {}
            _ => foreign += 1,
        }
    }
    let nowhere = |index: &u64| !found.contains(*index) && !elsewhere.contains(*index);
    let lost = (0..load.likes).filter(|index| sent.pairs.contains(*index) && nowhere(index)).count();
    let summary = client
        .query_one(
            "SELECT count(DISTINCT xmin::text::bigint),
                    coalesce(percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP (ORDER BY
                        extract(epoch FROM pg_xact_commit_timestamp(xmin) - created_at)::float8 * 1000), '{0,0}')
             FROM likes",
            &[],
        )
        .await?;
    let writing_transactions: i64 = summary.try_get(0)?;
    let quantiles: Vec<f64> = summary.try_get(1)?;
    let quantile = |n| quantiles.get(n).copied().unwrap_or(f64::NAN);
    Ok(Table {
        rows,
        lost: lost as u64,
        doubled,
        foreign,
        writing_transactions: writing_transactions.unsigned_abs(),
        accept_to_commit_p50_ms: quantile(0),
        accept_to_commit_p99_ms: quantile(1),
    })
}
