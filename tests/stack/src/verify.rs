//! Comparison of the table with the accepted likes, row by row.

use futures_util::TryStreamExt;
use thiserror::Error;
use tokio::pin;
use tokio_postgres::{Client, types::ToSql};

use crate::load::{IndexSet, Load, Sent};

/// Result of the comparison.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) rows: u64,
    /// Accepted pairs that are neither in the table nor among the dead letters, by their first like.
    pub(crate) lost: Vec<u64>,
    /// Additional rows of a pair.
    pub(crate) duplicated: u64,
    /// Rows of pairs that were never sent, or for which every request was refused.
    pub(crate) unexpected: u64,
    /// Transactions that have inserted rows.
    pub(crate) writing_transactions: u64,
    /// End-to-end latency by the commit timestamps of Postgres, in milliseconds.
    pub(crate) end_to_end_p50_ms: f64,
    pub(crate) end_to_end_p99_ms: f64,
}

#[derive(Debug, Error)]
#[error("cannot read the table")]
pub(crate) struct VerifyError(#[from] tokio_postgres::Error);

/// Reads the table. `dead_lettered` contains the rejected pairs, by their first like.
pub(crate) async fn read_table(
    client: &Client,
    load: Load,
    sent: &Sent,
    dead_lettered: &IndexSet,
) -> Result<Table, VerifyError> {
    let found = IndexSet::new(load.likes);
    let mut rows = 0;
    let mut duplicated = 0;
    let mut unexpected = 0;
    let none: [&(dyn ToSql + Sync); 0] = [];
    let likes = client.query_raw("SELECT user_id, post_id FROM likes", none).await?;
    pin!(likes);
    while let Some(row) = likes.try_next().await? {
        rows += 1;
        match load.first_with(row.try_get(0)?, row.try_get(1)?) {
            Some(first) if !found.insert(first) => duplicated += 1,
            Some(first) if sent.may_have(first) => {}
            _ => unexpected += 1,
        }
    }
    let is_missing = |index: &u64| !found.contains(*index) && !dead_lettered.contains(*index);
    let lost = (0..load.likes).filter(|index| sent.pairs.contains(*index) && is_missing(index));
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
        lost: lost.collect(),
        duplicated,
        unexpected,
        writing_transactions: writing_transactions.unsigned_abs(),
        end_to_end_p50_ms: quantile(0),
        end_to_end_p99_ms: quantile(1),
    })
}
