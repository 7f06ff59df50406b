//! Stand-ins for Redis in unit tests: a consumer group and its members in memory, by the clock of tokio.

mod group;
mod members;

pub(crate) use self::{
    group::{FakeGroup, Operation},
    members::FakeMembers,
};

use fred::prelude::{Error, ErrorKind};

/// The error of a connection that breaks before the reply.
fn connection_lost() -> Error {
    Error::new(ErrorKind::IO, "connection reset by peer")
}
