//! The ingest service: accepts likes over HTTP, appends them to Redis Streams in groups, and answers when Redis has them.
//!
//! A request passes `edge` (connections, TLS, authentication, quotas), `http` (its body becomes likes, every error a
//! problem), and `publish` (group commit into the streams). `backlog` refuses likes when consumers are too far behind.
//! `run` puts it all together by the settings in `config`.
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
    publish::sink::{Accepted, LikeSink, PublishError, RequestSpan},
    run::{main, serve_with},
};
