//! Redis commands of the consumer group.
//!
//! Purpose: groups, reads, claims, acknowledgements and trimming (`client`) and heartbeats (`members`), both behind traits
//! (`group_stream`); the group's database (`binding`); samples with what this process has done (`activity`); for `likesctl`, read-only views (`inspect`) and changes
//! (`admin_ops`). Lua scripts are in `scripts/*.lua` and documented where they are included. `reply` parses replies. May
//! depend on `entry`, `store::proof`, `store::database` and `shared::redis`. Must not decide when a command is sent:
//! retries, assignment and flow control belong to the callers.

mod activity;
mod admin_ops;
mod binding;
mod client;
#[cfg(test)]
pub(crate) mod fake;
mod group_stream;
mod inspect;
mod members;
mod reply;

pub use self::{
    activity::CreatedGroup,
    admin_ops::REASSIGN_CONSUMER,
    binding::Binding,
    client::{AckOutcome, Claimed, ClaimedDeparted, GroupError, QuarantineTry, Streams},
    inspect::*,
    members::{Heartbeat, LIVENESS_TIMEOUT, Member, MemberName, MemberState, Silent},
};
pub(crate) use self::{
    activity::Sample,
    group_stream::{GroupStream, Heartbeats, Page},
    members::HEARTBEAT_INTERVAL,
};
