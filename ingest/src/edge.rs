//! The edge: connections, TLS, authentication and quotas.
//!
//! Purpose: accept connections and close idle ones, reload certificates and keys, authenticate clients, and enforce quotas.
//! May depend on `metrics` and `shared`. Must not know the routes, the problems that errors become, or how likes are
//! published.

pub(crate) mod activity;
pub(crate) mod auth;
pub(crate) mod connections;
pub(crate) mod hot_reload;
pub(crate) mod open_files;
pub(crate) mod quotas;
pub(crate) mod tls;
