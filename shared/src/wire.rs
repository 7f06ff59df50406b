//! Formats that other programs and languages rely on.
//!
//! Purpose: a like, its encoding in a stream entry, its partition, the names of keys in Redis, and the fields of a dead
//! letter. Depends on no other module. Must not know Redis, Postgres or HTTP.

pub mod codec;
pub mod dead_letter;
pub mod like;
pub mod partition;
