//! The names of metrics, spans and their attributes: those of OpenTelemetry's semantic conventions (of [`SCHEMA_URL`]), and
//! `likestream.` for what these have no name for. What they mean is in docs/metrics.md and docs/telemetry.md.
//!
//! The conventions for messaging are in development, and know no system `redis`: that value is ours.

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

/// How many spans a span has to do with, linked or not.
pub const LINKS_TOTAL: &str = "likestream.links.total";
/// How many likes an entry or a batch holds.
pub const LIKES: &str = "likestream.likes";
/// How many rows a transaction brings to the table.
pub const ROWS: &str = "likestream.rows";
/// How many rows were not in the table before.
pub const ROWS_INSERTED: &str = "likestream.rows.inserted";
/// What closed a batch.
pub const FLUSH: &str = "likestream.flush";
/// Whether a batch was tried straight into the table in vain.
pub const RESTAGED: &str = "likestream.restaged";

/// A partition's number, as a label.
pub const PARTITION: &str = "partition";
/// A check of `/readyz`, as a label.
pub const CHECK: &str = "check";
/// Why an entry or a like is a dead letter, as a label.
pub const REASON: &str = "reason";
/// A problem's code, as a label.
pub const CODE: &str = "code";
/// What is exported, traces or metrics, as a label.
pub const SIGNAL: &str = "signal";
/// What closed a batch, as a label.
pub const FLUSH_LABEL: &str = "flush";
/// What is to be done about a failure, as a label.
pub const CLASS: &str = "class";

/// The metrics that are ours.
pub mod metric {
    /// Entries that are not stored yet, over all partitions.
    pub const BACKLOG: &str = "likestream.backlog.entries";
    /// The value of `INGEST_BACKLOG_LIMIT`.
    pub const BACKLOG_LIMIT: &str = "likestream.backlog.limit.entries";
    /// Whether likes are refused because of it.
    pub const BACKLOG_FULL: &str = "likestream.backlog.full";
    /// Whether a check of `/readyz` passes.
    pub const CHECK_PASSING: &str = "likestream.check.passing";
    /// Spans that found no place.
    pub const SPANS_DROPPED: &str = "likestream.spans.dropped";
    /// Exports that failed.
    pub const EXPORT_FAILURES: &str = "likestream.export.failures";
    /// Connections of callers.
    pub const CONNECTIONS_OPEN: &str = "likestream.connections.open";
    /// Likes that Redis has taken.
    pub const LIKES_ACCEPTED: &str = "likestream.likes.accepted";
    /// Requests that were refused.
    pub const REQUESTS_REFUSED: &str = "likestream.requests.refused";
    /// Times that an entry was sent again.
    pub const APPEND_REPEATS: &str = "likestream.append.repeats";
    /// Entries of one partition that are not stored yet.
    pub const PARTITION_BACKLOG: &str = "likestream.partition.backlog.entries";
    /// Those of them that are pending.
    pub const PARTITION_PENDING: &str = "likestream.partition.pending.entries";
    /// How old the oldest of the backlog is.
    pub const PARTITION_OLDEST_AGE: &str = "likestream.partition.oldest.age";
    /// How old the oldest of the pending is.
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
    /// Batches that were tried straight into the table in vain.
    pub const BATCHES_RESTAGED: &str = "likestream.batches.restaged";
    /// Rows of a batch.
    pub const BATCH_ROWS: &str = "likestream.batch.rows";
    /// From Redis taking an entry to its commit.
    pub const ACCEPT_TO_COMMIT: &str = "likestream.accept_to_commit.duration";
    /// Partitions that a consumer reads.
    pub const PARTITIONS_OWNED: &str = "likestream.partitions.owned";
    /// Partitions that nobody reads.
    pub const PARTITIONS_ORPHANED: &str = "likestream.partitions.orphaned";
    /// Partitions that somebody wants not to be read.
    pub const PARTITIONS_PAUSED: &str = "likestream.partitions.paused";
}
