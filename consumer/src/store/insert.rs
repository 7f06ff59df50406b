//! INSERT of rows as arrays, for small numbers of rows. Needs neither a staging table nor a prepared statement.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future;
use shared::wire::like::Like;
use tokio_postgres::{
    Error,
    types::{ToSql, Type},
};

use crate::store::{batch::Stored, transaction::Transaction};

/// Inserts rows.
pub(super) async fn insert(tx: &Transaction<'_>, rows: &[Like]) -> Result<Stored, Error> {
    let table = tx.table.quoted();
    let insert = format!(
        "INSERT INTO {table} (user_id, post_id, created_at)
         SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::timestamptz[]) ON CONFLICT (user_id, post_id) DO NOTHING"
    );
    let user_ids: Vec<i64> = rows.iter().map(Like::user_id).collect();
    let post_ids: Vec<i64> = rows.iter().map(Like::post_id).collect();
    let created_at: Vec<SystemTime> = rows.iter().map(created_at).collect();
    let parameters: [(&(dyn ToSql + Sync), Type); 3] = [
        (&user_ids, Type::INT8_ARRAY),
        (&post_ids, Type::INT8_ARRAY),
        (&created_at, Type::TIMESTAMPTZ_ARRAY),
    ];
    let connection = tx.session.connection();
    let inserted = connection.execute_typed(&insert, &parameters);
    if !tx.table.can_discard() {
        return Ok(Stored { inserted: inserted.await?, discarded: 0 });
    }
    let absent = format!(
        "SELECT count(*) FROM unnest($1::bigint[], $2::bigint[]) AS sent (user_id, post_id)
         WHERE NOT EXISTS (SELECT FROM {table} AS stored
         WHERE stored.user_id = sent.user_id AND stored.post_id = sent.post_id)"
    );
    let discarded = connection.query_typed_one(&absent, &parameters[..2]);
    let (inserted, discarded) = future::join(inserted, discarded).await;
    Ok(Stored { inserted: inserted?, discarded: discarded?.try_get::<_, i64>(0)?.unsigned_abs() })
}

fn created_at(like: &Like) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(like.created_at_us().unsigned_abs())
}
