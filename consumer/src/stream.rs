//! Every Redis command of the consumer group.
//!
//! Purpose: groups, reads, claims, acknowledgements and trimming (`client`), heartbeats (`members`), both behind the traits
//! that the state machines use (`group_stream`); for `likesctl` views (`inspect`) and changes (`admin_ops`). Scripts are in
//! `scripts/*.lua`, documented where they are included; replies are parsed by hand in `reply`. May depend on `entry`,
//! `store::proof` and `shared::redis`. Must not know why a command is sent: retries, assignment and flow control are
//! decided above.

mod admin_ops;
mod client;
#[cfg(test)]
pub(crate) mod fake;
mod group_stream;
mod inspect;
mod members;
mod reply;

pub(crate) use self::group_stream::{GroupStream, Heartbeats};
pub use self::{
    client::{AckOutcome, Claimed, ClaimedDeparted, GroupError, Streams},
    inspect::*,
    members::{Heartbeat, LIVENESS_TIMEOUT, Member, MemberState},
};
