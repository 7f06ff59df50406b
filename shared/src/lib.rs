//! The parts that all likestream programs share: wire formats, settings, connections to Redis and Postgres, telemetry, and the
//! lifecycle of a service.
//!
//! Dependencies point downwards: `cluster_settings`, `backlog` → `runtime` → `telemetry`, `redis`, `postgres` → `tls` →
//! `settings` → `wire`. Redis commands and SQL statements of the pipeline are elsewhere, except for the cluster settings and
//! the backlog, on which all programs have to agree.

pub mod backlog;
pub mod backoff;
pub mod cluster_settings;
pub mod error_chain;
pub mod postgres;
pub mod redis;
pub mod runtime;
pub mod settings;
pub mod stderr;
pub mod telemetry;
pub mod thousands;
mod tls;
pub mod wire;
