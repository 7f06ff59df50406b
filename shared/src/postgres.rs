//! Connections to Postgres.
//!
//! Purpose: connect with libpq's TLS parameters, classify failures, and encode rows for a binary COPY. May depend on
//! `settings`, `tls` and `wire`. Must not know any statement of the pipeline: those are in the consumer's `store`.

mod backends;
mod classify;
mod connect;
pub mod copy_format;
mod error;
mod pool;
mod socket;
mod target;
mod tls;
mod url;

pub use deadpool::managed::BuildError;

pub use self::{
    classify::{FailureClass, RowsFailure, classify, classify_rows},
    connect::Postgres,
    error::ConnectError,
    pool::{Pool, PooledSession, Session},
};
