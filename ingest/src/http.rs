//! The HTTP interface: routes, bodies, problems, and the OpenAPI document.
//!
//! Purpose: turn a request into likes, publish them, and answer. All errors, those of `edge` and `publish` too, become
//! problems (RFC 9457) in `problem` and nowhere else. May depend on `edge`, `publish::sink`, `backlog`, `metrics` and
//! `shared`. Must not know sockets, Redis, nor how likes share entries.

pub(crate) mod batch_memory;
mod body;
mod middleware;
mod openapi;
pub(crate) mod problem;
mod problem_docs;
pub mod request;
pub(crate) mod router;
mod routes;
pub(crate) mod service;
mod trace;
