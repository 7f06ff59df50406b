//! Everything that happens before a request is a request: connections, TLS, credentials, quotas.
//!
//! Purpose: accept connections and close idle ones, keep certificates and keys fresh, authenticate callers and limit how
//! much each of them may do. May depend on `metrics` and `shared`. Must not know the routes, the problems that errors
//! become, nor how likes are published.

pub(crate) mod activity;
pub(crate) mod auth;
pub(crate) mod connections;
pub(crate) mod hot_reload;
pub(crate) mod open_files;
pub(crate) mod quotas;
pub(crate) mod tls;
