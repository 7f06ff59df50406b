//! The incidents in Postgres: events after which likes are missing or may be. Redis can lose all its data, so they are not
//! kept there.

use std::time::SystemTime;

use tokio_postgres::{
    Error, GenericClient, Row,
    types::{ToSql, Type},
};

/// Maximum number of incidents of a group that are not acknowledged. Further ones are not recorded.
const MAX_OPEN: i64 = 1_000;

/// Kind of an incident.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum IncidentKind {
    /// Streams vanished from Redis, or went back to an earlier state.
    StreamLost,
    /// Consumer groups vanished from their streams.
    GroupLost,
    /// Undelivered entries were removed from a stream.
    EntriesRemoved,
    /// Postgres continues on another timeline: a standby was promoted.
    PostgresFailover,
}

impl IncidentKind {
    pub const ALL: [Self; 4] =
        [Self::StreamLost, Self::GroupLost, Self::EntriesRemoved, Self::PostgresFailover];

    pub fn name(self) -> &'static str {
        match self {
            Self::StreamLost => "stream_lost",
            Self::GroupLost => "group_lost",
            Self::EntriesRemoved => "entries_removed",
            Self::PostgresFailover => "postgres_failover",
        }
    }
}

/// Owner of incidents: the key prefix of the streams, and the consumer group.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    pub streams: &'a str,
    pub group: &'a str,
}

/// Incident that is about to be recorded.
#[derive(Clone, Debug)]
pub struct NewIncident {
    /// Names the event, the same whichever consumer sees it.
    pub event: String,
    pub kind: IncidentKind,
    /// Number of entries that are lost, a maximum if the detail says "up to"; `None` if it is unknown.
    pub entries_lost: Option<u64>,
    pub detail: String,
    pub detected_by: String,
}

/// Recorded incident.
#[derive(Clone, Debug)]
pub struct Incident {
    pub id: i64,
    pub kind: String,
    pub entries_lost: Option<u64>,
    pub detail: String,
    pub detected_by: String,
    pub detected_at: SystemTime,
    pub acknowledged_by: Option<String>,
    pub acknowledged_at: Option<SystemTime>,
}

impl Incident {
    fn of(row: &Row) -> Result<Self, Error> {
        Ok(Self {
            id: row.try_get(0)?,
            kind: row.try_get(1)?,
            entries_lost: row.try_get::<_, Option<i64>>(2)?.and_then(|entries| entries.try_into().ok()),
            detail: row.try_get(3)?,
            detected_by: row.try_get(4)?,
            detected_at: row.try_get(5)?,
            acknowledged_by: row.try_get(6)?,
            acknowledged_at: row.try_get(7)?,
        })
    }
}

const RECORD: &str = "
INSERT INTO likes_incidents (event, kind, streams, consumer_group, entries_lost, detail, detected_by)
SELECT $1, $2, $3, $4, $5, $6, $7
WHERE (SELECT count(*) FROM likes_incidents WHERE streams = $3 AND consumer_group = $4 AND acknowledged_at IS NULL) < $8
ON CONFLICT (event) DO NOTHING";

/// Records an incident. Returns whether this call recorded it.
///
/// # Errors
/// When Postgres fails.
pub async fn record(
    client: &impl GenericClient,
    scope: Scope<'_>,
    incident: &NewIncident,
) -> Result<bool, Error> {
    let kind = incident.kind.name();
    let entries_lost = incident.entries_lost.map(|entries| i64::try_from(entries).unwrap_or(i64::MAX));
    let parameters: [(&(dyn ToSql + Sync), Type); 8] = [
        (&incident.event, Type::TEXT),
        (&kind, Type::TEXT),
        (&scope.streams, Type::TEXT),
        (&scope.group, Type::TEXT),
        (&entries_lost, Type::INT8),
        (&incident.detail, Type::TEXT),
        (&incident.detected_by, Type::TEXT),
        (&MAX_OPEN, Type::INT8),
    ];
    Ok(client.execute_typed(RECORD, &parameters).await? == 1)
}

/// Returns the kinds of the incidents that are not acknowledged, each with their number.
///
/// # Errors
/// When Postgres fails.
pub async fn open_by_kind(
    client: &impl GenericClient,
    scope: Scope<'_>,
) -> Result<Vec<(String, u64)>, Error> {
    let sql = "SELECT kind, count(*) FROM likes_incidents
               WHERE streams = $1 AND consumer_group = $2 AND acknowledged_at IS NULL GROUP BY kind ORDER BY kind";
    let parameters: [(&(dyn ToSql + Sync), Type); 2] =
        [(&scope.streams, Type::TEXT), (&scope.group, Type::TEXT)];
    let rows = client.query_typed(sql, &parameters).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get::<_, i64>(1)?.unsigned_abs()))).collect()
}

/// Returns up to `limit` incidents, newest first.
///
/// # Errors
/// When Postgres fails.
pub async fn list(
    client: &impl GenericClient,
    scope: Scope<'_>,
    with_acknowledged: bool,
    limit: i64,
) -> Result<Vec<Incident>, Error> {
    let sql =
        "SELECT id, kind, entries_lost, detail, detected_by, detected_at, acknowledged_by, acknowledged_at
               FROM likes_incidents
               WHERE streams = $1 AND consumer_group = $2 AND ($3 OR acknowledged_at IS NULL)
               ORDER BY id DESC LIMIT $4";
    let parameters: [(&(dyn ToSql + Sync), Type); 4] = [
        (&scope.streams, Type::TEXT),
        (&scope.group, Type::TEXT),
        (&with_acknowledged, Type::BOOL),
        (&limit, Type::INT8),
    ];
    client.query_typed(sql, &parameters).await?.iter().map(Incident::of).collect()
}

/// Acknowledges incidents. Returns the number of those that were not acknowledged yet.
///
/// # Errors
/// When Postgres fails.
pub async fn acknowledge(
    client: &impl GenericClient,
    scope: Scope<'_>,
    ids: &[i64],
    by: &str,
) -> Result<u64, Error> {
    let sql = "UPDATE likes_incidents SET acknowledged_at = now(), acknowledged_by = $4
               WHERE streams = $1 AND consumer_group = $2 AND id = ANY ($3) AND acknowledged_at IS NULL";
    let parameters: [(&(dyn ToSql + Sync), Type); 4] = [
        (&scope.streams, Type::TEXT),
        (&scope.group, Type::TEXT),
        (&ids, Type::INT8_ARRAY),
        (&by, Type::TEXT),
    ];
    client.execute_typed(sql, &parameters).await
}
