//! The HTTP interface: routes, bodies, problems, and the document that describes them.
//!
//! Purpose: turn a request into likes, publish them, and answer; every error becomes a problem (RFC 9457) in `problem` and
//! nowhere else. May depend on `edge`, `publish`, `backlog`, `metrics` and `shared`. Must not know sockets, Redis, nor how
//! likes share entries.

pub(crate) mod openapi;
pub(crate) mod problem;
pub mod request;
pub(crate) mod routes;
pub(crate) mod trace;
