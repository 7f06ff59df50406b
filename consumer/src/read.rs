//! From Redis into the process.
//!
//! Purpose: one partition reader per partition that this consumer is to read, under one supervisor: new entries, own
//! pending entries after an error, claims of entries that others left, quarantine of suspects. May depend on `group`,
//! `stream`, `in_flight`, `metrics` and `trace`. Must not know Postgres, nor when an entry is acknowledged.

pub(crate) mod health;
pub(crate) mod pacing;
pub(crate) mod partition_reader;
pub(crate) mod supervisor;
