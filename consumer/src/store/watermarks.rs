//! The watermarks in Postgres: what consumers last saw of each stream in Redis.

use std::{
    collections::{BTreeMap, HashSet},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio_postgres::{
    Error, GenericClient, Row,
    types::{ToSql, Type},
};

use crate::entry::EntryId;

/// State of a stream and its group at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watermark {
    pub last_generated: EntryId,
    pub last_delivered: EntryId,
    /// Oldest undelivered entry.
    pub oldest_undelivered: Option<EntryId>,
    /// All earlier entries are acknowledged.
    pub settled_below: EntryId,
    pub entries_added: u64,
    /// Entries that no consumer has read.
    pub undelivered: u64,
    /// Entries that a consumer has read and not acknowledged.
    pub pending: u64,
    pub has_group: bool,
    /// Time of the sample in Unix milliseconds, by Redis's clock.
    pub sampled_ms: u64,
}

/// Watermark with the number of losses that were reported before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredWatermark {
    pub epoch: i64,
    pub watermark: Watermark,
}

fn read(row: &Row) -> Result<Option<(String, StoredWatermark)>, Error> {
    let id = |index: usize| row.try_get::<_, &str>(index).map(|text| text.parse::<EntryId>().ok());
    let number = |index: usize| row.try_get::<_, i64>(index).map(i64::unsigned_abs);
    let (Some(last_generated), Some(last_delivered), Some(settled_below)) = (id(2)?, id(3)?, id(4)?) else {
        return Ok(None);
    };
    let oldest_undelivered = row.try_get::<_, Option<&str>>(10)?.and_then(|text| text.parse().ok());
    let sampled_at: SystemTime = row.try_get(9)?;
    let sampled_at = sampled_at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let watermark = Watermark {
        last_generated,
        last_delivered,
        oldest_undelivered,
        settled_below,
        entries_added: number(5)?,
        undelivered: number(6)?,
        pending: number(7)?,
        has_group: row.try_get(8)?,
        sampled_ms: u64::try_from(sampled_at.as_millis()).unwrap_or(u64::MAX),
    };
    Ok(Some((row.try_get(0)?, StoredWatermark { epoch: row.try_get(1)?, watermark })))
}

/// Returns the watermarks of some streams. A row that cannot be read counts as absent.
///
/// # Errors
/// When Postgres fails.
pub async fn load(
    client: &impl GenericClient,
    group: &str,
    streams: &[String],
) -> Result<BTreeMap<String, StoredWatermark>, Error> {
    let sql = "SELECT stream, epoch, last_generated, last_delivered, settled_below, entries_added, undelivered, pending,
                   has_group, sampled_at, oldest_undelivered
               FROM likes_watermarks WHERE consumer_group = $1 AND stream = ANY ($2)";
    let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&group, Type::TEXT), (&streams, Type::TEXT_ARRAY)];
    let rows = client.query_typed(sql, &parameters).await?;
    rows.iter().map(read).filter_map(Result::transpose).collect()
}

const SAVE: &str = "
INSERT INTO likes_watermarks AS kept (stream, consumer_group, epoch, last_generated, last_delivered, oldest_undelivered,
    settled_below, entries_added, undelivered, pending, has_group, sampled_at)
SELECT stream, $1, epoch, last_generated, last_delivered, oldest_undelivered, settled_below, entries_added, undelivered,
    pending, has_group, 'epoch'::timestamptz + sampled_ms * interval '1 ms'
FROM unnest($2::text[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[], $8::bigint[], $9::bigint[],
    $10::bigint[], $11::boolean[], $12::bigint[])
    AS sample (stream, epoch, last_generated, last_delivered, oldest_undelivered, settled_below, entries_added,
        undelivered, pending, has_group, sampled_ms)
ORDER BY stream
ON CONFLICT (stream, consumer_group) DO UPDATE SET epoch = excluded.epoch, last_generated = excluded.last_generated,
    last_delivered = excluded.last_delivered, oldest_undelivered = excluded.oldest_undelivered,
    settled_below = excluded.settled_below, entries_added = excluded.entries_added, undelivered = excluded.undelivered,
    pending = excluded.pending, has_group = excluded.has_group, sampled_at = excluded.sampled_at
WHERE kept.epoch = excluded.epoch - $13
RETURNING stream";

/// Saves watermarks whose row has an epoch lower by `step`, or does not exist. Returns their streams.
///
/// # Errors
/// When Postgres fails.
pub async fn save(
    client: &impl GenericClient,
    group: &str,
    watermarks: &[(String, StoredWatermark)],
    step: i64,
) -> Result<HashSet<String>, Error> {
    let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let ids = |of: fn(&Watermark) -> EntryId| -> Vec<String> {
        watermarks.iter().map(|(_, stored)| of(&stored.watermark).to_string()).collect()
    };
    let numbers = |of: fn(&Watermark) -> u64| -> Vec<i64> {
        watermarks.iter().map(|(_, stored)| signed(of(&stored.watermark))).collect()
    };
    let streams: Vec<&str> = watermarks.iter().map(|(stream, _)| stream.as_str()).collect();
    let epochs: Vec<i64> = watermarks.iter().map(|(_, stored)| stored.epoch).collect();
    let has_group: Vec<bool> = watermarks.iter().map(|(_, stored)| stored.watermark.has_group).collect();
    // A time that Postgres cannot represent would fail the statement.
    let latest = Duration::from_hours(24 * 365 * 1_000).as_millis();
    let sampled = |watermark: &Watermark| u128::from(watermark.sampled_ms).min(latest);
    let sampled: Vec<i64> = watermarks
        .iter()
        .map(|(_, stored)| i64::try_from(sampled(&stored.watermark)).unwrap_or(i64::MAX))
        .collect();
    let (last_generated, last_delivered) = (ids(|w| w.last_generated), ids(|w| w.last_delivered));
    let oldest_undelivered: Vec<Option<String>> = watermarks
        .iter()
        .map(|(_, stored)| stored.watermark.oldest_undelivered.as_ref().map(EntryId::to_string))
        .collect();
    let (settled_below, added) = (ids(|w| w.settled_below), numbers(|w| w.entries_added));
    let (undelivered, pending) = (numbers(|w| w.undelivered), numbers(|w| w.pending));
    let parameters: [(&(dyn ToSql + Sync), Type); 13] = [
        (&group, Type::TEXT),
        (&streams, Type::TEXT_ARRAY),
        (&epochs, Type::INT8_ARRAY),
        (&last_generated, Type::TEXT_ARRAY),
        (&last_delivered, Type::TEXT_ARRAY),
        (&oldest_undelivered, Type::TEXT_ARRAY),
        (&settled_below, Type::TEXT_ARRAY),
        (&added, Type::INT8_ARRAY),
        (&undelivered, Type::INT8_ARRAY),
        (&pending, Type::INT8_ARRAY),
        (&has_group, Type::BOOL_ARRAY),
        (&sampled, Type::INT8_ARRAY),
        (&step, Type::INT8),
    ];
    let rows = client.query_typed(SAVE, &parameters).await?;
    rows.iter().map(|row| row.try_get(0)).collect()
}
