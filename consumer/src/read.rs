//! Reading entries from Redis.
//!
//! Purpose: one supervisor with one partition reader per owned partition. A reader reads new entries, recovers its own
//! pending entries after an error, claims pending entries of other consumers, and quarantines suspect entries. May depend
//! on `group`, `stream`, `in_flight`, `metrics` and `trace`. Must not know Postgres, nor when an entry is acknowledged.

pub(crate) mod health;
pub(crate) mod pacing;
pub(crate) mod partition_reader;
mod quarantine;
pub(crate) mod supervisor;
