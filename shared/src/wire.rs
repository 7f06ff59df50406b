//! The formats that other programs and other languages rely on.
//!
//! Purpose: a like, its bytes in a stream entry, the partition and the keys that it belongs to, and the fields of a dead
//! letter. Depends on nothing of ours. Must not know Redis, Postgres or HTTP.

pub mod codec;
pub mod dead_letter;
pub mod like;
pub mod partition;
