//! Publishes likes to Redis Streams.
//!
//! Purpose: group likes into entries (`group_commit`), append the entries with the durability of `REDIS_ACK` (`append`), and
//! reply to every caller when its like is in the stream. May depend on `metrics` and `shared`. Must not know HTTP: callers
//! see only the trait `LikeSink` in `sink`.

pub(crate) mod append;
mod departure;
mod entry_span;
pub(crate) mod group_commit;
mod partition_queue;
pub(crate) mod sink;
pub(crate) mod starting;
