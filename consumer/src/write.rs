//! From the process into Postgres, and the acknowledgement.
//!
//! Purpose: collect entries into batches, write one batch after the other until it is stored, and acknowledge with the
//! proof. May depend on `store`, `stream`, `in_flight`, `group::control`, `metrics` and `trace`. Must not know how entries
//! are read.

pub(crate) mod acknowledger;
pub(crate) mod writer;
