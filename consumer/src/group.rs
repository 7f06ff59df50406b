//! Group membership and partition ownership.
//!
//! Purpose: membership of the consumer group by heartbeats, the assignment of partitions to members (every member computes
//! the same one), static assignment, and control: paused partitions and commit times; the group's database
//! (`binding`), and what Redis has lost of the streams (`losses`). May depend on `stream`, the identity and the watermarks of
//! `store`, `in_flight` (for the time since writes began to fail) and `metrics`. Must not know how entries are read or stored.

pub mod assignment;
pub mod binding;
pub(crate) mod control;
mod liveness;
pub mod losses;
pub(crate) mod membership;
pub(crate) mod ownership;
pub mod static_assignment;
