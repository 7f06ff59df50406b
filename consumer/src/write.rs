//! Writing batches to Postgres and acknowledging their entries.
//!
//! Purpose: gather entries into batches, write one batch at a time, hold rows that Postgres does not take yet, and
//! acknowledge entries with the proof of commit. May depend on `store`, `stream`, `in_flight`, `group::control`, `group::ownership`, `metrics` and `trace`.
//! Must not know how entries are read.

pub(crate) mod acknowledger;
mod held;
pub(crate) mod writer;
