//! The HTTP interface: routes, bodies, problems, and the OpenAPI document.
//!
//! Purpose: parse requests into likes, publish the likes, and respond. Only `problem` turns errors, including those of `edge`
//! and `publish`, into problems (RFC 9457). May depend on `edge`, `publish::sink`, `backlog`, `metrics` and `shared`. Must
//! not know sockets, Redis, or how likes share entries.

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
