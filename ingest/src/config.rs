//! Settings of ingest, and the limits of its modules that are derived from them.

use std::{net::SocketAddr, sync::Arc, thread, time::Duration};

use axum::http::{HeaderValue, Uri};
use clap::{ArgAction, Parser};
use shared::{
    settings::{
        self, SettingError,
        args::{ByteCount, RedisArgs, StreamArgs, address, integer, positive_duration},
        headings,
    },
    telemetry::TelemetryArgs,
};
use thiserror::Error;
use tokio::sync::Semaphore;

use crate::{
    edge::{
        activity::Timeouts,
        auth::AuthArgs,
        connections::ConnectionLimits,
        quotas::{QuotaArgs, Quotas},
        tls::TlsArgs,
    },
    http::{batch_memory::BatchMemory, service::RequestLimits},
    publish::{append::RedisAck, group_commit::GroupCommitLimits},
};

/// Accept likes over HTTP and append them to Redis Streams
///
/// Ingest answers 202 Accepted after Redis has the like.
#[derive(Parser, Debug)]
#[command(name = "ingest", version)]
pub struct Settings {
    #[command(flatten, next_help_heading = headings::REDIS)]
    pub(crate) redis: RedisArgs,

    /// Durability of an accepted like: memory, replicas:N or fsync
    ///
    /// A request is answered after Redis has the like in memory (memory), after N replicas have it, too (replicas:N), or
    /// after it is on the disk of Redis (fsync).
    #[arg(long, env = "REDIS_ACK", default_value = "memory", value_name = "ACK", help_heading = headings::REDIS)]
    pub(crate) redis_ack: RedisAck,

    #[command(flatten, next_help_heading = headings::STREAMS)]
    pub(crate) streams: StreamArgs,

    /// Address of the public API
    #[arg(long, env = "INGEST_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS", value_parser = address,
          help_heading = headings::HTTP)]
    pub(crate) ingest_listen: SocketAddr,

    /// Address of /livez, /readyz, /metrics and /loglevel; keep it private
    #[arg(long, env = "INGEST_ADMIN_LISTEN", default_value = "127.0.0.1:8081", value_name = "ADDRESS",
          value_parser = address, help_heading = headings::HTTP)]
    pub(crate) ingest_admin_listen: SocketAddr,

    /// Origins of web pages that may call the API, such as https://app.example.org, or * for all [default: none]
    #[arg(long, env = "INGEST_CORS_ORIGINS", value_name = "ORIGINS", value_delimiter = ',', value_parser = origin,
          help_heading = headings::HTTP)]
    pub(crate) ingest_cors_origins: Vec<HeaderValue>,

    /// API documentation at /openapi.json and /docs
    #[arg(long, env = "INGEST_DOCS", default_value = "true", value_name = "BOOL", action = ArgAction::Set,
          help_heading = headings::HTTP)]
    pub(crate) ingest_docs: bool,

    /// Maximum time from connecting to the end of the first request head, including the TLS handshake
    #[arg(long, env = "INGEST_HEAD_TIMEOUT", default_value = "10s", value_name = "DURATION",
          value_parser = positive_duration, help_heading = headings::HTTP)]
    ingest_head_timeout: Duration,

    /// Maximum time between two requests on a connection, including the head of the second
    #[arg(long, env = "INGEST_IDLE_TIMEOUT", default_value = "1m", value_name = "DURATION",
          value_parser = positive_duration, help_heading = headings::HTTP)]
    ingest_idle_timeout: Duration,

    /// Maximum time to receive a request body, and to send a response
    #[arg(long, env = "INGEST_BODY_TIMEOUT", default_value = "10s", value_name = "DURATION",
          value_parser = positive_duration, help_heading = headings::HTTP)]
    ingest_body_timeout: Duration,

    /// Number of threads that serve requests [default: half of the cores]
    ///
    /// The kernel needs the other cores for network work. More threads seldom raise the throughput.
    #[arg(long, env = "INGEST_THREADS", value_name = "COUNT", value_parser = integer(1..=1024_u16),
          help_heading = headings::HTTP)]
    ingest_threads: Option<u16>,

    #[command(flatten, next_help_heading = headings::TLS)]
    pub(crate) tls: TlsArgs,

    #[command(flatten, next_help_heading = headings::AUTHENTICATION)]
    pub(crate) auth: AuthArgs,

    #[command(flatten, next_help_heading = headings::QUOTAS)]
    quotas: QuotaArgs,

    /// Maximum number of open connections; excess connections wait to be accepted
    #[arg(long, env = "INGEST_MAX_CONNECTIONS", default_value = "10000", value_name = "COUNT",
          value_parser = integer(1..=1_000_000_u32), help_heading = headings::QUOTAS)]
    ingest_max_connections: u32,

    /// Maximum size of the body of POST /likes
    #[arg(long, env = "INGEST_MAX_BODY", default_value = "16KiB", value_name = "SIZE", help_heading = headings::QUOTAS)]
    ingest_max_body: ByteCount,

    /// Maximum number of likes in the body of POST /likes/batch
    #[arg(long, env = "INGEST_BATCH_LIKES", default_value = "10000", value_name = "COUNT",
          value_parser = integer(1..=100_000_u32), help_heading = headings::QUOTAS)]
    ingest_batch_likes: u32,

    /// Maximum size of the body of POST /likes/batch
    #[arg(long, env = "INGEST_BATCH_BODY", default_value = "4MiB", value_name = "SIZE", help_heading = headings::QUOTAS)]
    ingest_batch_body: ByteCount,

    /// Maximum memory of all POST /likes/batch requests; excess requests get 503
    ///
    /// The memory of a request is reserved before it is used: its body, a decoded copy, its likes and the listed errors. A
    /// request that needs more than the whole budget is processed while there is no other.
    #[arg(long, env = "INGEST_BATCH_MEMORY", default_value = "64MiB", value_name = "SIZE", help_heading = headings::QUOTAS)]
    ingest_batch_memory: ByteCount,

    /// Backlog in entries over all partitions at which requests get 503
    ///
    /// The backlog is measured twice a second. It can exceed the limit by the entries of half a second.
    #[arg(long, env = "INGEST_BACKLOG_LIMIT", default_value = "1000000", value_name = "COUNT",
          value_parser = integer(1_u64..), help_heading = headings::BACKPRESSURE)]
    pub(crate) ingest_backlog_limit: u64,

    /// Maximum number of likes in a partition queue; excess requests get 503
    ///
    /// The queue holds the likes that wait for Redis.
    #[arg(long, env = "INGEST_QUEUE_LIKES", default_value = "4096", value_name = "COUNT",
          value_parser = integer(1..=1_000_000_u32), help_heading = headings::BACKPRESSURE)]
    ingest_queue_likes: u32,

    /// Maximum number of likes in a stream entry
    ///
    /// If several likes arrive before Redis has replied, they share one entry (group commit). A like takes up to 28 bytes.
    #[arg(long, env = "INGEST_ENTRY_LIKES", default_value = "512", value_name = "COUNT",
          value_parser = integer(1..=10_000_u16), help_heading = headings::BACKPRESSURE)]
    ingest_entry_likes: u16,

    /// Maximum time to finish the requests in flight after SIGTERM
    #[arg(long, env = "DRAIN_TIMEOUT", default_value = "20s", value_name = "DURATION",
          value_parser = positive_duration, help_heading = headings::LIFECYCLE)]
    pub(crate) drain_timeout: Duration,

    #[command(flatten, next_help_heading = headings::TELEMETRY)]
    telemetry: TelemetryArgs,
}

impl Settings {
    /// Returns the settings of logs.
    pub fn telemetry(&self) -> &TelemetryArgs {
        &self.telemetry
    }

    pub(crate) fn threads(&self) -> usize {
        self.ingest_threads.map_or_else(default_threads, usize::from)
    }

    pub(crate) fn connection_limits(&self) -> ConnectionLimits {
        ConnectionLimits {
            max_connections: self.ingest_max_connections as usize,
            max_per_address: self.quotas.ingest_address_connections,
            timeouts: Timeouts {
                head: self.ingest_head_timeout,
                answer: self.ingest_body_timeout,
                idle: self.ingest_idle_timeout,
            },
        }
    }

    pub(crate) fn request_limits(&self) -> RequestLimits {
        RequestLimits {
            body_timeout: self.ingest_body_timeout,
            max_body_bytes: self.ingest_max_body.0,
            max_batch_body_bytes: self.ingest_batch_body.0,
            max_batch_likes: self.ingest_batch_likes as usize,
            batch_memory: BatchMemory::new(self.ingest_batch_memory.0),
            quotas: Quotas::new(&self.quotas),
            in_flight: Arc::new(Semaphore::new(self.quotas.ingest_max_requests as usize)),
        }
    }

    pub(crate) fn group_commit_limits(&self, entry_timeout: Duration) -> GroupCommitLimits {
        GroupCommitLimits {
            queue_likes: self.ingest_queue_likes as usize,
            entry_likes: self.ingest_entry_likes.into(),
            entry_timeout,
        }
    }
}

/// Returns half of the cores. More threads mostly wake each other: on two cores shared with Redis and the clients, ingest
/// used 15 us of CPU time per like with one thread, and 19 us with two.
pub fn default_threads() -> usize {
    thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2))
}

#[derive(Debug, Error)]
#[error("expected an origin in lower case without a path, such as https://app.example.org, or *")]
struct NotAnOrigin;

/// Source: RFC 6454, section 6.2.
fn origin(text: &str) -> Result<HeaderValue, NotAnOrigin> {
    let text = text.trim();
    let uri: Option<Uri> = text.parse().ok();
    let is_origin = |uri: &Uri| {
        let (Some(scheme), Some(host)) = (uri.scheme_str(), uri.authority()) else { return false };
        let as_browsers_write_it = !text.contains('@') && !text.bytes().any(|b| b.is_ascii_uppercase());
        ["http", "https"].contains(&scheme) && text == format!("{scheme}://{host}") && as_browsers_write_it
    };
    let value = HeaderValue::from_str(text).map_err(|_| NotAnOrigin)?;
    if text == "*" || uri.as_ref().is_some_and(is_origin) { Ok(value) } else { Err(NotAnOrigin) }
}

impl settings::Settings for Settings {
    fn check(&self) -> Result<(), SettingError> {
        self.auth.check()?;
        self.tls.check()?;
        if self.ingest_listen == self.ingest_admin_listen && self.ingest_listen.port() != 0 {
            let problem = format!("'{}' is also INGEST_LISTEN; expected another port", self.ingest_listen);
            return Err(SettingError::new("INGEST_ADMIN_LISTEN", problem));
        }
        if self.ingest_batch_memory.0 < self.ingest_batch_body.0 {
            let problem = "is less than INGEST_BATCH_BODY; expected at least the same size";
            return Err(SettingError::new("INGEST_BATCH_MEMORY", problem));
        }
        Ok(())
    }
}
