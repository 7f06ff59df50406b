//! The Postgres transaction that stores a batch.
//!
//! Purpose: the rows of a batch, the write path (direct copy, staged copy, bisection), the insert predictor, the session,
//! the schema, and the proof of commit, which only this module can create. May depend on `entry`, `shared::postgres`,
//! `shared::wire` and the attribute names of telemetry. Must not know Redis commands, retries or acknowledgements.

pub mod batch;
pub(crate) mod batch_store;
mod bisect;
mod bisection;
mod copy;
pub mod error;
#[cfg(test)]
pub(crate) mod fake;
pub(crate) mod gathering;
mod insert;
pub mod predictor;
mod privileges;
pub mod proof;
pub mod schema;
pub mod session;
pub mod write;
