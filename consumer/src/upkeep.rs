//! Work beside the pipeline.
//!
//! Purpose: trim what every group has acknowledged, sample the backlog for metrics, probe the servers for `/readyz`. May
//! depend on `group`, `stream`, `store` and `metrics`. Must not know `read` or `write`.

pub(crate) mod backlog;
pub(crate) mod probe;
pub(crate) mod trim;
