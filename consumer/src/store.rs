//! The Postgres transaction that stores a batch.
//!
//! Purpose: the rows of a batch and their states, the write paths (direct copy, staged copy, piecewise write), the insert
//! predictor, the session, the schema, the verification of the table, the evidence that rejections are verdicts about rows,
//! the proof of commit, which only this module can create, the identity of the database, and the incidents and watermarks
//! that it keeps. May depend on `entry`, `shared::postgres`, `shared::wire` and the attribute names of telemetry. Must not
//! know Redis commands, retries or acknowledgements.

pub mod batch;
pub(crate) mod batch_store;
mod copy;
pub mod database;
pub mod error;
mod evidence;
#[cfg(test)]
pub(crate) mod fake;
pub(crate) mod gathering;
pub mod incidents;
mod insert;
mod piece_size;
mod pieces;
mod piecewise;
pub mod predictor;
mod privileges;
pub mod proof;
pub mod schema;
pub mod session;
pub mod table;
mod transaction;
pub mod watermarks;
pub mod write;
