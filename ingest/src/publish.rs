//! Likes on their way into the streams.
//!
//! Purpose: gather likes into entries (group commit), append the entries, as safe as `REDIS_ACK` asks for, and answer each
//! caller when its like is in. May depend on `metrics` and `shared`. Must not know HTTP: who sends likes is the business
//! of `http`, which sees only the trait `LikeSink`.

pub(crate) mod append;
pub(crate) mod group_commit;
