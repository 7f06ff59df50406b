//! In-memory fakes of Redis for unit tests: a consumer group and its members, on tokio's clock.

mod group;
mod members;

pub(crate) use self::{
    group::{FakeGroup, Operation},
    members::FakeMembers,
};

use fred::prelude::{Error, ErrorKind};

/// Returns the error of a connection that breaks before the reply.
pub(crate) fn connection_lost() -> Error {
    Error::new(ErrorKind::IO, "connection reset by peer")
}
