//! Who reads what.
//!
//! Purpose: membership of the consumer group by heartbeats, the assignment of partitions to members (every member computes
//! the same one), static assignment, and control: paused partitions and commit times. May depend on `stream`, `in_flight`
//! (for how long writing has been stuck) and `metrics`. Must not know how entries are read or stored.

pub mod assignment;
pub(crate) mod control;
pub(crate) mod membership;
pub(crate) mod ownership;
pub mod static_assignment;
