//! Every Redis command of the consumer group.
//!
//! Purpose: groups, reads, claims, acknowledgements and trimming (`client`), heartbeats (`members`), and for `likesctl`
//! views (`inspect`) and changes (`admin_ops`). Scripts are in `scripts/*.lua`, documented where they are included; replies
//! are parsed by hand in `reply`. May depend on `entry`, `store::proof` and `shared::redis`. Must not know why a command is
//! sent: retries, assignment and flow control are decided above.

mod admin_ops;
mod client;
mod inspect;
mod members;
mod reply;

pub use self::{
    client::{AckOutcome, Claimed, GroupError, Inherited, Streams},
    inspect::*,
    members::{Heartbeat, Member, MemberState},
};
