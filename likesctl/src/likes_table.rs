//! Queries on the likes table.

use shared::wire::like::Like;
use tokio_postgres::{
    Client,
    types::{ToSql, Type},
};

use crate::{context::answer, exit::CliError};

/// Finds likes without a row. The lookup uses the index of the unique key.
const MISSING: &str = "
SELECT wanted.place FROM unnest($1::bigint[], $2::bigint[]) WITH ORDINALITY AS wanted (user_id, post_id, place)
WHERE NOT EXISTS (SELECT FROM likes WHERE likes.user_id = wanted.user_id AND likes.post_id = wanted.post_id)";

/// Returns the likes that have no row in the table.
pub(crate) async fn missing(client: &Client, likes: &[Like]) -> Result<Vec<Like>, CliError> {
    if likes.is_empty() {
        return Ok(Vec::new());
    }
    let user_ids: Vec<i64> = likes.iter().map(Like::user_id).collect();
    let post_ids: Vec<i64> = likes.iter().map(Like::post_id).collect();
    let wanted: [(&(dyn ToSql + Sync), Type); 2] =
        [(&user_ids, Type::INT8_ARRAY), (&post_ids, Type::INT8_ARRAY)];
    let rows = answer(client.query_typed(MISSING, &wanted)).await?;
    let place = |row: &tokio_postgres::Row| usize::try_from(row.get::<_, i64>(0) - 1).ok();
    Ok(rows.iter().filter_map(|row| likes.get(place(row)?).copied()).collect())
}
