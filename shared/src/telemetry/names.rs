//! Names of metrics, spans and attributes. They are OpenTelemetry semantic conventions (of [`SCHEMA_URL`]) where one exists;
//! all others begin with `likestream.`. docs/metrics.md and docs/telemetry.md explain them.
//!
//! The conventions for messaging are in development and do not define the system `redis`: this value is an addition.

pub use opentelemetry_semantic_conventions::{
    SCHEMA_URL,
    attribute::{
        CLIENT_ADDRESS, DB_CLIENT_CONNECTION_POOL_NAME, DB_CLIENT_CONNECTION_STATE, DB_COLLECTION_NAME,
        DB_OPERATION_NAME, DB_RESPONSE_STATUS_CODE, DB_SYSTEM_NAME, ERROR_TYPE, HTTP_REQUEST_METHOD,
        HTTP_RESPONSE_STATUS_CODE, HTTP_ROUTE, MESSAGING_BATCH_MESSAGE_COUNT, MESSAGING_CLIENT_ID,
        MESSAGING_CONSUMER_GROUP_NAME, MESSAGING_DESTINATION_NAME, MESSAGING_DESTINATION_TEMPLATE,
        MESSAGING_MESSAGE_ID, MESSAGING_OPERATION_NAME, MESSAGING_OPERATION_TYPE, MESSAGING_SYSTEM,
        NETWORK_PROTOCOL_VERSION, SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_NAMESPACE, SERVICE_VERSION,
        URL_PATH, URL_SCHEME, USER_AGENT_ORIGINAL,
    },
    metric::{
        DB_CLIENT_CONNECTION_COUNT, DB_CLIENT_OPERATION_DURATION, HTTP_SERVER_ACTIVE_REQUESTS,
        HTTP_SERVER_REQUEST_DURATION, MESSAGING_CLIENT_CONSUMED_MESSAGES,
        MESSAGING_CLIENT_OPERATION_DURATION, MESSAGING_CLIENT_SENT_MESSAGES,
    },
};

/// The value of [`MESSAGING_SYSTEM`].
pub const REDIS: &str = "redis";
/// The value of [`DB_SYSTEM_NAME`].
pub const POSTGRESQL: &str = "postgresql";

/// Number of links of a span, including those over the limit.
pub const LINKS_TOTAL: &str = "likestream.links.total";
/// Number of likes in an entry or a batch.
pub const LIKES: &str = "likestream.likes";
/// Number of rows of a transaction.
pub const ROWS: &str = "likestream.rows";
/// Number of rows that were new in the table.
pub const ROWS_INSERTED: &str = "likestream.rows.inserted";
/// Why a batch was closed: full, linger or shutdown.
pub const FLUSH: &str = "likestream.flush";
/// Whether the direct copy of a batch failed.
pub const FELL_BACK: &str = "likestream.direct_copy.fell_back";

/// Number of a partition, as a label.
pub const PARTITION: &str = "partition";
/// Name of a check of `/readyz`, as a label.
pub const CHECK: &str = "check";
/// Reason of a dead letter, as a label.
pub const REASON: &str = "reason";
/// Code of a problem, as a label.
pub const CODE: &str = "code";
/// Exported signal, traces or metrics, as a label.
pub const SIGNAL: &str = "signal";
/// Why a batch was closed, as a label.
pub const FLUSH_LABEL: &str = "flush";
/// Kind of an incident, as a label.
pub const KIND: &str = "kind";
/// Class of a failure, retry or halt, as a label.
pub const CLASS: &str = "class";

/// Metrics without a name in the semantic conventions.
pub mod metric {
    /// Entries not stored yet, over all partitions.
    pub const BACKLOG: &str = "likestream.backlog.entries";
    /// The value of `INGEST_BACKLOG_LIMIT`.
    pub const BACKLOG_LIMIT: &str = "likestream.backlog.limit.entries";
    /// Whether likes are refused because of `INGEST_BACKLOG_LIMIT`.
    pub const BACKLOG_FULL: &str = "likestream.backlog.full";
    /// Streams that Redis has lost.
    pub const STREAMS_LOST: &str = "likestream.streams.lost";
    /// Whether a check of `/readyz` passes.
    pub const CHECK_PASSING: &str = "likestream.check.passing";
    /// Spans dropped because the export queue was full.
    pub const SPANS_DROPPED: &str = "likestream.spans.dropped";
    /// Failed exports to a collector.
    pub const EXPORT_FAILURES: &str = "likestream.export.failures";
    /// Open client connections.
    pub const CONNECTIONS_OPEN: &str = "likestream.connections.open";
    /// Likes accepted by Redis.
    pub const LIKES_ACCEPTED: &str = "likestream.likes.accepted";
    /// Refused requests.
    pub const REQUESTS_REFUSED: &str = "likestream.requests.refused";
    /// Retries of appends.
    pub const APPEND_RETRIES: &str = "likestream.append.retries";
    /// Entries of a partition not stored yet.
    pub const PARTITION_BACKLOG: &str = "likestream.partition.backlog.entries";
    /// Pending entries of a partition.
    pub const PARTITION_PENDING: &str = "likestream.partition.pending.entries";
    /// Age of the oldest entry of the backlog.
    pub const PARTITION_OLDEST_AGE: &str = "likestream.partition.oldest.age";
    /// Age of the oldest pending entry.
    pub const PARTITION_OLDEST_PENDING_AGE: &str = "likestream.partition.oldest_pending.age";
    /// Dead letters of a partition in Redis.
    pub const PARTITION_DEAD_LETTERS: &str = "likestream.partition.dead_letters";
    /// Redelivered and claimed entries.
    pub const ENTRIES_RECLAIMED: &str = "likestream.entries.reclaimed";
    /// Acknowledged entries.
    pub const ENTRIES_ACKNOWLEDGED: &str = "likestream.entries.acknowledged";
    /// Entries deleted from a stream before they were stored.
    pub const ENTRIES_LOST: &str = "likestream.entries.lost";
    /// Incidents that no operator has acknowledged.
    pub const INCIDENTS_OPEN: &str = "likestream.incidents.open";
    /// Acknowledged entries trimmed from the streams.
    pub const ENTRIES_TRIMMED: &str = "likestream.entries.trimmed";
    /// Failed trims of a stream.
    pub const TRIM_FAILURES: &str = "likestream.trim.failures";
    /// Dead letters written.
    pub const DEAD_LETTERS: &str = "likestream.dead_letters";
    /// Rows inserted into the table.
    pub const ROWS_INSERTED: &str = "likestream.rows.inserted";
    /// Rows that Postgres does not take yet.
    pub const ROWS_HELD: &str = "likestream.rows.held";
    /// Likes that were already in the batch or in the table.
    pub const LIKES_DEDUPLICATED: &str = "likestream.likes.deduplicated";
    /// Likes that a trigger of the table discarded.
    pub const LIKES_DISCARDED: &str = "likestream.likes.discarded";
    /// Committed batches.
    pub const BATCHES_COMMITTED: &str = "likestream.batches.committed";
    /// Failed transactions.
    pub const BATCHES_FAILED: &str = "likestream.batches.failed";
    /// Batches that were written through the staging table because the COPY straight into the likes table failed.
    pub const DIRECT_COPY_FALLBACKS: &str = "likestream.direct_copy.fallbacks";
    /// Rows per committed batch.
    pub const BATCH_ROWS: &str = "likestream.batch.rows";
    /// Time from accept to commit.
    pub const END_TO_END_LATENCY: &str = "likestream.end_to_end.latency";
    /// Partitions that a consumer owns, including paused ones.
    pub const PARTITIONS_OWNED: &str = "likestream.partitions.owned";
    /// Partitions that no consumer reads.
    pub const PARTITIONS_ORPHANED: &str = "likestream.partitions.orphaned";
    /// Owned partitions that an operator has paused.
    pub const PARTITIONS_PAUSED: &str = "likestream.partitions.paused";
}
