//! Names of metrics, spans and their attributes: those of OpenTelemetry's semantic conventions (of [`SCHEMA_URL`]), else with
//! the prefix `likestream.`. docs/metrics.md and docs/telemetry.md explain them.
//!
//! The conventions for messaging are in development, and have no system `redis`: that value is an addition.

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

/// Number of links, including those over the limit.
pub const LINKS_TOTAL: &str = "likestream.links.total";
/// Number of likes in an entry or a batch.
pub const LIKES: &str = "likestream.likes";
/// Number of rows of a transaction.
pub const ROWS: &str = "likestream.rows";
/// Number of rows that were new in the table.
pub const ROWS_INSERTED: &str = "likestream.rows.inserted";
/// What closed a batch.
pub const FLUSH: &str = "likestream.flush";
/// Whether the direct copy of a batch failed.
pub const FELL_BACK: &str = "likestream.direct_copy.fell_back";

/// A partition's number, as a label.
pub const PARTITION: &str = "partition";
/// A check of `/readyz`, as a label.
pub const CHECK: &str = "check";
/// Why an entry or a like is a dead letter, as a label.
pub const REASON: &str = "reason";
/// A problem's code, as a label.
pub const CODE: &str = "code";
/// The exported signal, traces or metrics, as a label.
pub const SIGNAL: &str = "signal";
/// What closed a batch, as a label.
pub const FLUSH_LABEL: &str = "flush";
/// The class of a failure, retry or halt, as a label.
pub const CLASS: &str = "class";

/// Metrics that the semantic conventions have no name for.
pub mod metric {
    /// Entries that are not stored yet, over all partitions.
    pub const BACKLOG: &str = "likestream.backlog.entries";
    /// The value of `INGEST_BACKLOG_LIMIT`.
    pub const BACKLOG_LIMIT: &str = "likestream.backlog.limit.entries";
    /// Whether likes are refused because of it.
    pub const BACKLOG_FULL: &str = "likestream.backlog.full";
    /// Whether a check of `/readyz` passes.
    pub const CHECK_PASSING: &str = "likestream.check.passing";
    /// Spans that were not started, because the queue was full.
    pub const SPANS_DROPPED: &str = "likestream.spans.dropped";
    /// Exports that failed.
    pub const EXPORT_FAILURES: &str = "likestream.export.failures";
    /// Connections of clients.
    pub const CONNECTIONS_OPEN: &str = "likestream.connections.open";
    /// Likes that Redis has accepted.
    pub const LIKES_ACCEPTED: &str = "likestream.likes.accepted";
    /// Requests that were refused.
    pub const REQUESTS_REFUSED: &str = "likestream.requests.refused";
    /// Times that an entry was sent again.
    pub const APPEND_RETRIES: &str = "likestream.append.retries";
    /// Entries of one partition that are not stored yet.
    pub const PARTITION_BACKLOG: &str = "likestream.partition.backlog.entries";
    /// Pending entries of one partition.
    pub const PARTITION_PENDING: &str = "likestream.partition.pending.entries";
    /// Age of the oldest entry of the backlog.
    pub const PARTITION_OLDEST_AGE: &str = "likestream.partition.oldest.age";
    /// Age of the oldest pending entry.
    pub const PARTITION_OLDEST_PENDING_AGE: &str = "likestream.partition.oldest_pending.age";
    /// Dead letters that are in Redis.
    pub const PARTITION_DEAD_LETTERS: &str = "likestream.partition.dead_letters";
    /// Entries delivered again.
    pub const ENTRIES_RECLAIMED: &str = "likestream.entries.reclaimed";
    /// Entries settled and acknowledged.
    pub const ENTRIES_ACKNOWLEDGED: &str = "likestream.entries.acknowledged";
    /// Entries that are lost.
    pub const ENTRIES_LOST: &str = "likestream.entries.lost";
    /// Entries trimmed.
    pub const ENTRIES_TRIMMED: &str = "likestream.entries.trimmed";
    /// Times that a stream could not be trimmed.
    pub const TRIM_FAILURES: &str = "likestream.trim.failures";
    /// Dead letters written.
    pub const DEAD_LETTERS: &str = "likestream.dead_letters";
    /// Rows that are new in the table.
    pub const ROWS_INSERTED: &str = "likestream.rows.inserted";
    /// Likes that were there before.
    pub const LIKES_DEDUPLICATED: &str = "likestream.likes.deduplicated";
    /// Transactions committed.
    pub const BATCHES_COMMITTED: &str = "likestream.batches.committed";
    /// Transactions that failed.
    pub const BATCHES_FAILED: &str = "likestream.batches.failed";
    /// Batches whose direct copy failed.
    pub const DIRECT_COPY_FALLBACKS: &str = "likestream.direct_copy.fallbacks";
    /// Rows of a batch.
    pub const BATCH_ROWS: &str = "likestream.batch.rows";
    /// End-to-end latency: from the time that Redis accepts an entry to its commit.
    pub const END_TO_END_LATENCY: &str = "likestream.end_to_end.latency";
    /// Partitions that a consumer reads.
    pub const PARTITIONS_OWNED: &str = "likestream.partitions.owned";
    /// Partitions that no consumer reads.
    pub const PARTITIONS_ORPHANED: &str = "likestream.partitions.orphaned";
    /// Partitions that the operator has paused.
    pub const PARTITIONS_PAUSED: &str = "likestream.partitions.paused";
}
