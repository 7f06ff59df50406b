//! INSERT of rows as arrays, for small numbers of rows. Needs neither a staging table nor a prepared statement.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use shared::{postgres::PooledSession, wire::like::Like};
use tokio_postgres::{Error, types::Type};

const INSERT: &str = "
INSERT INTO likes (user_id, post_id, created_at)
SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::timestamptz[])
ON CONFLICT (user_id, post_id) DO NOTHING";

/// Inserts rows. Returns the number of new rows.
pub(crate) async fn insert(connection: &PooledSession, rows: &[Like]) -> Result<u64, Error> {
    let user_ids: Vec<i64> = rows.iter().map(Like::user_id).collect();
    let post_ids: Vec<i64> = rows.iter().map(Like::post_id).collect();
    let created_at: Vec<SystemTime> = rows.iter().map(created_at).collect();
    connection
        .execute_typed(
            INSERT,
            &[
                (&user_ids, Type::INT8_ARRAY),
                (&post_ids, Type::INT8_ARRAY),
                (&created_at, Type::TIMESTAMPTZ_ARRAY),
            ],
        )
        .await
}

fn created_at(like: &Like) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(like.created_at_us().unsigned_abs())
}
