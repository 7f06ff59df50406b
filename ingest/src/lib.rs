//! The ingest service: accepts likes over HTTP, appends them to Redis Streams with group commit, and responds when Redis has
//! them.
//!
//! A request passes `edge` (connections, TLS, authentication, quotas), `http` (parses the body into likes, and renders errors
//! as problems) and `publish` (group commit into the streams). `backlog` applies backpressure: it refuses likes while the
//! backlog is over its limit. `run` assembles the service from the settings in `config`.
//!
//! Dependencies point one way: `run` → `config` → `http` → `edge`, `publish` → `metrics` → `backlog` → `shared`. No module
//! imports the crate root.

mod backlog;
pub mod config;
mod edge;
pub mod http;
mod metrics;
mod publish;
mod run;

pub use crate::{
    publish::sink::{Accepted, LikeSink, PublishError, Published, RequestSpan},
    run::{main, serve_with},
};
