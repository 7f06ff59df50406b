//! The parts that every likestream program has: the formats on the wire, settings, connections to Redis and Postgres,
//! telemetry, and the life of a service.
//!
//! Dependencies point downwards: `cluster_settings`, `backlog` → `runtime` → `telemetry`, `redis`, `postgres` → `tls` →
//! `settings` → `wire`. No Redis command or SQL statement of the pipeline is here, except for the cluster settings and the
//! size of the backlog, which all programs have to agree on.

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
