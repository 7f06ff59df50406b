//! Publishing likes: from the HTTP interface into the Redis streams.
//!
//! Purpose: group likes into entries (`group_commit`), append the entries as safely as `REDIS_ACK` asks for (`append`), and
//! answer every caller when its like is in the stream. May depend on `metrics` and `shared`. Must not know HTTP: callers
//! see the trait `LikeSink` in `sink` and nothing else.

pub(crate) mod append;
mod departure;
mod entry_span;
pub(crate) mod group_commit;
mod partition_queue;
pub(crate) mod sink;
