//! Headings of options in `--help` and in docs/configuration.md, the same in all programs.

pub const REDIS: &str = "Redis";
pub const POSTGRES: &str = "Postgres";
pub const STREAMS: &str = "Streams";
pub const CONSUMER_GROUP: &str = "Consumer group";
pub const HTTP: &str = "HTTP";
pub const TLS: &str = "TLS";
pub const AUTHENTICATION: &str = "Authentication";
pub const QUOTAS: &str = "Quotas and limits";
pub const BACKPRESSURE: &str = "Backpressure";
pub const BATCHES: &str = "Batches";
pub const RECLAIM: &str = "Reclaim and retention";
pub const LIFECYCLE: &str = "Startup and shutdown";
pub const TELEMETRY: &str = "Telemetry";

/// All headings, in the order of the documentation.
pub const ALL: [&str; 13] = [
    REDIS,
    POSTGRES,
    STREAMS,
    CONSUMER_GROUP,
    HTTP,
    TLS,
    AUTHENTICATION,
    QUOTAS,
    BACKPRESSURE,
    BATCHES,
    RECLAIM,
    LIFECYCLE,
    TELEMETRY,
];
