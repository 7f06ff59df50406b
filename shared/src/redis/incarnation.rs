//! Identity of the data that a connection serves.

use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash, Hasher},
};

use fred::prelude::{Client, Value};

use super::pipeline;

/// One life of a server as a primary. It ends when the server restarts, is replaced in a failover, or is demoted. Entry ids
/// and pending entries lists are only comparable within one incarnation: after a failover, an id may be given again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Incarnation(u64);

impl Incarnation {
    /// Asks the server. A server that does not say who it is gets an identity that no other connection has.
    pub(super) async fn of(client: &Client) -> Self {
        let section = |name: &'static str| pipeline::send(client, "INFO", vec![name.into()]);
        let (server, replication) =
            futures_util::future::join(section("server"), section("replication")).await;
        let text = |info: Result<Value, _>| info.ok().and_then(Value::into_string).unwrap_or_default();
        Self::of_info(&text(server), &text(replication)).unwrap_or_else(|| Self(rand::random()))
    }

    /// The run id changes with a restart, the replication id with a promotion. The role distinguishes a connection that was
    /// opened to a replica from one that was opened to the primary that the replica becomes or was.
    fn of_info(server: &str, replication: &str) -> Option<Self> {
        let mut hasher = DefaultHasher::new();
        for (info, field) in [(server, "run_id:"), (replication, "role:"), (replication, "master_replid:")] {
            let value = info.lines().find_map(|line| line.strip_prefix(field))?.trim();
            value.hash(&mut hasher);
        }
        Some(Self(hasher.finish()))
    }

    /// Creates an incarnation for tests with fakes.
    pub fn numbered(number: u64) -> Self {
        Self(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(run_id: &str, role: &str, replid: &str) -> Option<Incarnation> {
        let server = format!("# Server\r\nredis_version:7.0.15\r\nrun_id:{run_id}\r\n");
        Incarnation::of_info(&server, &format!("# Replication\r\nrole:{role}\r\nmaster_replid:{replid}\r\n"))
    }

    #[test]
    fn a_restart_a_promotion_and_a_demotion_change_the_incarnation() {
        let primary = of("a", "master", "x");
        assert_eq!(primary, of("a", "master", "x"));
        for other in [of("b", "master", "x"), of("a", "master", "y"), of("a", "slave", "x")] {
            assert!(other.is_some() && other != primary);
        }
        assert_eq!(Incarnation::of_info("", ""), None);
    }
}
