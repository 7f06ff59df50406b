//! The settings of ingest, and the limits of its modules that follow from them.

use std::{net::SocketAddr, sync::Arc, thread, time::Duration};

use axum::http::{HeaderValue, Uri};
use clap::{ArgAction, Parser};
use shared::{
    settings::{
        self, SettingError,
        args::{ByteCount, RedisArgs, StreamArgs, address, positive_duration},
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

/// Accepts likes over HTTP and answers 202 as soon as Redis has them.
#[derive(Parser, Debug)]
#[command(name = "ingest", version)]
pub struct Settings {
    #[command(flatten)]
    pub(crate) redis: RedisArgs,

    #[command(flatten)]
    pub(crate) streams: StreamArgs,

    /// When a like counts as taken: memory (when Redis has it), replicas:N (when so many replicas have it, too), or fsync
    /// (when it is on Redis's disk)
    #[arg(long, env = "REDIS_ACK", default_value = "memory", value_name = "ACK")]
    pub(crate) redis_ack: RedisAck,

    /// Where callers reach POST /likes and POST /likes/batch
    #[arg(long, env = "INGEST_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS", value_parser = address)]
    pub(crate) ingest_listen: SocketAddr,

    /// Where /livez, /readyz and /metrics are; never needs to be public
    #[arg(long, env = "INGEST_ADMIN_LISTEN", default_value = "127.0.0.1:8081", value_name = "ADDRESS",
          value_parser = address)]
    pub(crate) ingest_admin_listen: SocketAddr,

    #[command(flatten)]
    pub(crate) tls: TlsArgs,

    #[command(flatten)]
    pub(crate) auth: AuthArgs,

    #[command(flatten)]
    quotas: QuotaArgs,

    /// The origins whose pages may call, like https://app.example.org, or * for all; without it none may
    #[arg(long, env = "INGEST_CORS_ORIGINS", value_name = "ORIGINS", value_delimiter = ',', value_parser = origin)]
    pub(crate) ingest_cors_origins: Vec<HeaderValue>,

    /// Whether GET /openapi.json and GET /docs are served
    #[arg(long, env = "INGEST_DOCS", default_value = "true", value_name = "BOOL", action = ArgAction::Set)]
    pub(crate) ingest_docs: bool,

    /// How long a new connection may take to its first request's head, TLS included
    #[arg(long, env = "INGEST_HEAD_TIMEOUT", default_value = "10s", value_name = "DURATION",
          value_parser = positive_duration)]
    ingest_head_timeout: Duration,

    /// How long a connection may have no request, the next one's head included
    #[arg(long, env = "INGEST_IDLE_TIMEOUT", default_value = "1m", value_name = "DURATION",
          value_parser = positive_duration)]
    ingest_idle_timeout: Duration,

    /// How long a body may take to arrive, and an answer to be read
    #[arg(long, env = "INGEST_BODY_TIMEOUT", default_value = "10s", value_name = "DURATION",
          value_parser = positive_duration)]
    ingest_body_timeout: Duration,

    /// How many connections may be open; beyond it callers wait to be accepted
    #[arg(long, env = "INGEST_MAX_CONNECTIONS", default_value = "10000", value_name = "CONNECTIONS",
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    ingest_max_connections: u32,

    /// The longest body of a request
    #[arg(long, env = "INGEST_MAX_BODY", default_value = "16KiB", value_name = "SIZE")]
    ingest_max_body: ByteCount,

    /// How many likes a batch may have
    #[arg(long, env = "INGEST_BATCH_LIKES", default_value = "10000", value_name = "LIKES",
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    ingest_batch_likes: u32,

    /// The longest body of a batch
    #[arg(long, env = "INGEST_BATCH_BODY", default_value = "4MiB", value_name = "SIZE")]
    ingest_batch_body: ByteCount,

    /// How much memory the bodies of batches may have together; beyond it callers get 503
    #[arg(long, env = "INGEST_BATCH_MEMORY", default_value = "64MiB", value_name = "SIZE")]
    ingest_batch_memory: ByteCount,

    /// How many entries may wait in Redis for the consumers, over all partitions; beyond it callers get 503. It is
    /// compared twice a second, so it can be overshot by what arrives in between
    #[arg(long, env = "INGEST_BACKLOG_LIMIT", default_value = "1000000", value_name = "ENTRIES",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) ingest_backlog_limit: u64,

    /// How many likes may share one stream entry when they arrive faster than Redis answers; 28 bytes each at most
    #[arg(long, env = "INGEST_ENTRY_LIKES", default_value = "512", value_name = "LIKES",
          value_parser = clap::value_parser!(u16).range(1..=10_000))]
    ingest_entry_likes: u16,

    /// How many likes of one partition may wait for Redis to answer; beyond it callers get 503
    #[arg(long, env = "INGEST_QUEUE_LIKES", default_value = "4096", value_name = "LIKES",
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    ingest_queue_likes: u32,

    /// How many threads serve requests; by default half of the cores, because each like is also work for the kernel
    #[arg(long, env = "INGEST_THREADS", value_name = "THREADS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    ingest_threads: Option<u16>,

    /// How long requests in flight may take to finish after SIGTERM
    #[arg(long, env = "DRAIN_TIMEOUT", default_value = "20s", value_name = "DURATION", value_parser = positive_duration)]
    pub(crate) drain_timeout: Duration,

    /// How long to wait for Redis at start
    #[arg(long, env = "STARTUP_TIMEOUT", default_value = "10s", value_name = "DURATION", value_parser = positive_duration)]
    pub(crate) startup_timeout: Duration,

    #[command(flatten)]
    telemetry: TelemetryArgs,
}

impl Settings {
    /// Returns the settings of logs, metrics and traces.
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

/// Returns half of the cores. More threads mostly wake one another: on two cores shared with Redis and the callers, ingest
/// took 15 us of CPU per like with one thread, and 19 us with two.
pub fn default_threads() -> usize {
    thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2))
}

#[derive(Debug, Error)]
#[error("allowed are origins like https://app.example.org, in small letters and with no path, or *")]
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
            let problem = format!("'{}' is INGEST_LISTEN too: allowed is another port", self.ingest_listen);
            return Err(SettingError::new("INGEST_ADMIN_LISTEN", problem));
        }
        if self.ingest_batch_memory.0 < self.ingest_batch_body.0 {
            let problem = "less than INGEST_BATCH_BODY: allowed is as much, or more";
            return Err(SettingError::new("INGEST_BATCH_MEMORY", problem));
        }
        Ok(())
    }
}
