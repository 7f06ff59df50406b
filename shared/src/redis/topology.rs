//! The assignment of slots to servers.

use fred::{
    prelude::{Error, ErrorKind, Value},
    types::config::Server,
};

/// Number of slots of a cluster. Source: the Redis Cluster specification, "Key distribution model".
const SLOTS: u16 = 16_384;

/// Maximum number of servers that are remembered for discovery, and of those that are connected.
pub(super) const MAX_KNOWN: usize = 3_000;

/// The servers that accept writes, and the slots of each. Outside of a cluster one server owns all slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Topology {
    servers: Vec<Server>,
    /// For each slot an index into the servers.
    owners: Vec<Option<u16>>,
    /// All servers that can be asked for the topology, replicas included.
    pub(super) known: Vec<Server>,
}

impl Topology {
    pub(super) fn of_one(server: Server) -> Self {
        let known = vec![server.clone()];
        Self { servers: vec![server], owners: vec![Some(0); SLOTS.into()], known }
    }

    /// Parses the reply to `CLUSTER SLOTS`, `[[first, last, [host, port, …], replica …] …]`. A host that is missing there is
    /// `asked_host`, that of the server that replied.
    pub(super) fn of_cluster(slots: Value, asked_host: &str) -> Result<Self, Error> {
        let mut topology = Self { servers: Vec::new(), owners: vec![None; SLOTS.into()], known: Vec::new() };
        for range in slots.into_array() {
            let mut parts = range.into_array().into_iter();
            let (first, last) = (parts.next(), parts.next());
            let bound =
                |value: Option<Value>| value.and_then(|v| v.as_u64()).and_then(|v| u16::try_from(v).ok());
            let (Some(first), Some(last)) = (bound(first), bound(last)) else { return Err(unexpected()) };
            let servers: Option<Vec<Server>> = parts.map(|value| server(value, asked_host)).collect();
            let servers = servers.ok_or_else(unexpected)?;
            let owner = topology.index(servers.first().ok_or_else(unexpected)?);
            for slot in first..=last.min(SLOTS - 1) {
                topology.owners[usize::from(slot)] = Some(owner);
            }
            topology.known.extend(servers);
        }
        // A node that was removed from its cluster, or reset, reports no slots.
        if topology.servers.is_empty() { Err(unexpected()) } else { Ok(topology) }
    }

    /// Returns the number of slots with a server.
    pub(super) fn covered(&self) -> usize {
        self.owners.iter().flatten().count()
    }

    /// Keeps the known servers of an earlier topology.
    pub(super) fn remember(&mut self, earlier: &Self) {
        let forgotten = earlier.known.iter().filter(|server| !self.known.contains(server));
        let room = MAX_KNOWN.saturating_sub(self.known.len());
        let forgotten: Vec<Server> = forgotten.take(room).cloned().collect();
        self.known.extend(forgotten);
    }

    /// Returns the server that owns a slot.
    pub(super) fn server_of(&self, slot: u16) -> Option<&Server> {
        let owner = self.owners.get(usize::from(slot)).copied().flatten()?;
        self.servers.get(usize::from(owner))
    }

    /// Returns the servers that accept writes, each once.
    pub(super) fn servers(&self) -> &[Server] {
        &self.servers
    }

    /// Applies a MOVED redirection, and returns whether it changed the topology. The server may be one that owned no slot
    /// before.
    pub(super) fn moved(&mut self, slot: u16, server: &Server) -> bool {
        if slot >= SLOTS || self.server_of(slot) == Some(server) {
            return false;
        }
        let owner = self.index(server);
        self.owners[usize::from(slot)] = Some(owner);
        true
    }

    fn index(&mut self, server: &Server) -> u16 {
        let found = self.servers.iter().position(|known| known == server);
        let index = found.unwrap_or_else(|| {
            self.servers.push(server.clone());
            self.servers.len() - 1
        });
        // A cluster has no more servers than slots.
        u16::try_from(index).unwrap_or(u16::MAX)
    }
}

/// Parses `[host, port, …]`.
fn server(value: Value, asked_host: &str) -> Option<Server> {
    let mut parts = value.into_array().into_iter();
    let host = parts.next()?.into_string().filter(|host| !host.is_empty() && host != "?");
    let port = u16::try_from(parts.next()?.as_u64()?).ok()?;
    Some(Server::new(host.as_deref().unwrap_or(asked_host), port))
}

fn unexpected() -> Error {
    Error::new(ErrorKind::Protocol, "unexpected reply from Redis to CLUSTER SLOTS")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(host: Value, port: i64) -> Value {
        Value::Array(vec![host, port.into(), "id".into()])
    }

    fn cluster() -> Topology {
        let slots = Value::Array(vec![
            Value::Array(vec![0.into(), 8_191.into(), node("a".into(), 1), node("b".into(), 2)]),
            Value::Array(vec![8_192.into(), 16_000.into(), node(Value::Null, 3)]),
        ]);
        Topology::of_cluster(slots, "asked").unwrap()
    }

    #[test]
    fn the_first_server_of_a_range_owns_its_slots() {
        let topology = cluster();
        assert_eq!(topology.server_of(0), Some(&Server::new("a", 1)));
        assert_eq!(topology.server_of(8_192), Some(&Server::new("asked", 3)));
        assert_eq!(topology.server_of(16_383), None, "no server owns it");
        assert_eq!(topology.servers(), [Server::new("a", 1), Server::new("asked", 3)]);
        assert!(topology.known.contains(&Server::new("b", 2)), "replicas can be asked, too");
    }

    #[test]
    fn a_moved_slot_belongs_to_the_named_server() {
        let mut topology = cluster();
        assert!(topology.moved(5, &Server::new("asked", 3)));
        assert_eq!(topology.server_of(5), Some(&Server::new("asked", 3)));
        assert!(!topology.moved(5, &Server::new("asked", 3)), "not a change");
        assert!(topology.moved(5, &Server::new("added", 9)));
        assert_eq!(topology.server_of(5), Some(&Server::new("added", 9)), "it owned no slot before");
        assert!(!topology.moved(SLOTS, &Server::new("added", 9)), "no such slot");
    }

    #[test]
    fn unexpected_replies_are_errors() {
        assert!(Topology::of_cluster(Value::Array(vec![Value::Array(vec![0.into()])]), "h").is_err());
        assert!(
            Topology::of_cluster(Value::Array(vec![Value::Array(vec![0.into(), 1.into()])]), "h").is_err()
        );
        assert!(Topology::of_cluster(Value::Array(vec!["x".into()]), "h").is_err());
        assert!(Topology::of_cluster(Value::Array(Vec::new()), "h").is_err(), "not in a cluster any more");
    }

    #[test]
    fn removed_servers_are_remembered() {
        let mut one = Topology::of_one(Server::new("x", 9));
        one.remember(&cluster());
        one.remember(&cluster());
        assert_eq!(one.known.len(), 4);
        assert_eq!(cluster().covered(), 16_001);
    }
}
