//! Connections to Postgres.
//!
//! Purpose: connect with libpq's TLS parameters, classify failures, and encode rows for a binary COPY. May depend on
//! `settings`, `tls` and `wire`. Must not know any statement of the pipeline: those are in the consumer's `store`.

mod classify;
mod connect;
pub mod copy_format;
mod tls;
mod url;

pub use self::{
    classify::{FailureClass, classify, is_refusal},
    connect::Postgres,
};
