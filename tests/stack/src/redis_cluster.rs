//! Private Redis Cluster: three primaries with one replica each.

use std::time::Duration;

use crate::{
    error::StackError,
    free_port,
    process::{Lifetime, wait_until},
    redis_server::{RedisOptions, RedisServer},
};

const MASTERS: usize = 3;
const SLOTS: u16 = 16_384;
const READY_SECONDS: u64 = 60;

/// Unresponsive time of a primary after which its replica takes over.
const NODE_TIMEOUT_MS: &str = "3000";

/// Number of keys per MIGRATE command: one, so that keys of a slot are on both servers for a while.
const MIGRATED_AT_ONCE: &str = "1";

/// Six servers on loopback. The first three start as primaries; server `n + 3` starts as the replica of server `n`.
#[derive(Debug)]
pub struct RedisCluster {
    servers: Vec<RedisServer>,
}

/// Node of the cluster, as reported by another node.
#[derive(Debug)]
struct Node {
    port: u16,
    is_master: bool,
    is_healthy: bool,
    slots: Vec<(u16, u16)>,
}

impl RedisCluster {
    /// Starts the servers with additional arguments and waits until they form a cluster.
    ///
    /// # Errors
    /// When they do not form a cluster in time.
    pub fn start(arguments: &[&str]) -> Result<Self, StackError> {
        let servers = (0..2 * MASTERS).map(|_| node_server(arguments)).collect::<Result<Vec<_>, _>>()?;
        let share = SLOTS.div_ceil(3);
        for (number, (server, _)) in (0..).zip(&servers[..MASTERS]) {
            let first = number * share;
            let last = (first + share).min(SLOTS) - 1;
            server.command(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()])?;
            // Equal epochs would be a conflict that the nodes resolve first.
            server.command(&["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()])?;
        }
        for (server, bus_port) in &servers[1..] {
            meet(&servers[0].0, server, bus_port)?;
        }
        let servers: Vec<RedisServer> = servers.into_iter().map(|(server, _)| server).collect();
        let cluster = Self { servers };
        cluster.wait_discovered()?;
        for number in 0..MASTERS {
            let master = cluster.servers[number].command(&["CLUSTER", "MYID"])?;
            cluster.servers[MASTERS + number].command(&["CLUSTER", "REPLICATE", master.trim()])?;
        }
        cluster.wait_healthy()?;
        Ok(cluster)
    }

    /// Adds a primary without slots and its replica, and returns the index of the primary in [`RedisCluster::servers`].
    ///
    /// # Errors
    /// When they do not join the cluster in time.
    pub fn add_primary(&mut self) -> Result<usize, StackError> {
        let primary = self.servers.len();
        for _ in 0..2 {
            let (server, bus_port) = node_server(&[])?;
            meet(&self.servers[0], &server, &bus_port)?;
            self.servers.push(server);
        }
        self.wait_discovered()?;
        let id = self.servers[primary].command(&["CLUSTER", "MYID"])?;
        self.servers[primary + 1].command(&["CLUSTER", "REPLICATE", id.trim()])?;
        self.wait("integrate an added primary", |cluster| {
            let has = |words: &[&str], text| {
                cluster.servers[primary].command(words).is_ok_and(|info| info.contains(text))
            };
            has(&["INFO", "replication"], "state=online") && has(&["CLUSTER", "INFO"], "cluster_state:ok")
        })?;
        Ok(primary)
    }

    /// Connection URL with two of its servers.
    pub fn url(&self) -> String {
        format!(
            "redis-cluster://127.0.0.1:{}?node=127.0.0.1:{}",
            self.servers[0].port(),
            self.servers[1].port()
        )
    }

    /// All servers in the order of their start.
    pub fn servers(&self) -> &[RedisServer] {
        &self.servers
    }

    pub fn servers_mut(&mut self) -> &mut [RedisServer] {
        &mut self.servers
    }

    /// Index in [`RedisCluster::servers`] of the current primary of a key.
    ///
    /// # Errors
    /// When no healthy primary owns its slot.
    pub fn master_of(&self, key: &str) -> Result<usize, StackError> {
        let slot = self.slot_of(key)?;
        self.master_of_slot(slot)
    }

    /// Hash slot of a key.
    ///
    /// # Errors
    /// When no server responds.
    pub fn slot_of(&self, key: &str) -> Result<u16, StackError> {
        let slot = self.running()?.command(&["CLUSTER", "KEYSLOT", key])?;
        slot.trim().parse().map_err(|_| self.timeout("return the slot of a key"))
    }

    fn master_of_slot(&self, slot: u16) -> Result<usize, StackError> {
        let nodes = nodes(self.running()?)?;
        let has = |node: &&Node| node.slots.iter().any(|(first, last)| (*first..=*last).contains(&slot));
        let owner = nodes.iter().filter(|node| node.is_master && node.is_healthy).find(has);
        let server = owner.and_then(|owner| self.servers.iter().position(|s| s.port() == owner.port));
        server.ok_or_else(|| self.timeout("have a primary for every slot"))
    }

    /// Index of another primary.
    ///
    /// # Errors
    /// When there are not two healthy primaries.
    pub fn other_master(&self, excluded: usize) -> Result<usize, StackError> {
        let slots = [0, SLOTS / 2, SLOTS - 1].map(|slot| self.master_of_slot(slot));
        let mut masters = slots.into_iter().collect::<Result<Vec<_>, _>>()?;
        masters.retain(|master| *master != excluded);
        masters.first().copied().ok_or_else(|| self.timeout("have two primaries"))
    }

    /// Migrates a slot to another primary with the commands that an operator uses: announces the migration on both sides,
    /// migrates the keys and informs all primaries. `meanwhile` is called between the steps and after each key, while the slot
    /// is divided between two primaries.
    ///
    /// Source: the Redis Cluster specification, "Live reconfiguration".
    ///
    /// # Errors
    /// When a server rejects a step.
    pub fn move_slot(&self, slot: u16, to: usize, mut meanwhile: impl FnMut()) -> Result<(), StackError> {
        let from = &self.servers[self.master_of_slot(slot)?];
        let to = &self.servers[to];
        let id = |server: &RedisServer| {
            Ok::<_, StackError>(server.command(&["CLUSTER", "MYID"])?.trim().to_owned())
        };
        let from_id = id(from)?;
        let to_id = id(to)?;
        let slot = slot.to_string();
        to.command(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id])?;
        from.command(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id])?;
        meanwhile();
        let port = to.port().to_string();
        loop {
            let keys = from.command(&["CLUSTER", "GETKEYSINSLOT", &slot, MIGRATED_AT_ONCE])?;
            let keys: Vec<&str> = keys.lines().filter(|key| !key.is_empty()).collect();
            if keys.is_empty() {
                break;
            }
            let migrate = ["MIGRATE", "127.0.0.1", &port, "", "0", "10000", "KEYS"];
            from.command(&[&migrate[..], &keys].concat())?;
            meanwhile();
        }
        // Inform the new owner first, so that the slot has exactly one owner.
        for server in [to, from].into_iter().chain(&self.servers) {
            // Replicas refuse the command, and a server that is down learns the new owner later.
            let informed = server.command(&["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]);
            if server.port() == to.port() {
                informed?;
            }
        }
        Ok(())
    }

    /// Waits until every slot has a healthy primary and every running replica is connected.
    ///
    /// # Errors
    /// When the cluster is not healthy in time.
    pub fn wait_healthy(&self) -> Result<(), StackError> {
        self.wait("form a cluster", |cluster| {
            let ports: Vec<u16> = cluster.running_servers().map(RedisServer::port).collect();
            cluster.running_servers().all(|server| {
                let info = server.command(&["CLUSTER", "INFO"]);
                let is_ok = info.is_ok_and(|info| info.contains("cluster_state:ok"));
                let is_linked = server
                    .command(&["INFO", "replication"])
                    .is_ok_and(|info| info.contains("role:master") || info.contains("master_link_status:up"));
                let known = nodes(server).unwrap_or_default();
                let masters = known.iter().filter(|node| node.is_master && !node.slots.is_empty()).count();
                let are_healthy =
                    known.iter().filter(|node| ports.contains(&node.port)).all(|node| node.is_healthy);
                is_ok && is_linked && are_healthy && masters == MASTERS
            })
        })
    }

    fn wait_discovered(&self) -> Result<(), StackError> {
        self.wait("discover one another", |cluster| {
            let all = cluster.servers.len();
            cluster.servers.iter().all(|server| {
                nodes(server).is_ok_and(|nodes| nodes.len() == all && nodes.iter().all(|n| n.is_healthy))
            })
        })
    }

    fn running_servers(&self) -> impl Iterator<Item = &RedisServer> {
        self.servers.iter().filter(|server| server.last_output_if_ended().is_none())
    }

    fn running(&self) -> Result<&RedisServer, StackError> {
        let mut running = self.running_servers().filter(|server| server.command(&["PING"]).is_ok());
        running.next().ok_or_else(|| self.timeout("respond"))
    }

    fn wait(&self, action: &'static str, condition: impl Fn(&Self) -> bool) -> Result<(), StackError> {
        let limit = Duration::from_secs(READY_SECONDS);
        if wait_until(limit, || condition(self)) { Ok(()) } else { Err(self.timeout(action)) }
    }

    fn timeout(&self, action: &'static str) -> StackError {
        let log = self.servers[0].folder().join("redis.log");
        StackError::Timeout { program: "the Redis Cluster".to_owned(), action, seconds: READY_SECONDS, log }
    }
}

/// Starts a server that may become a part of a cluster. Returns it with the port of the cluster bus.
fn node_server(arguments: &[&str]) -> Result<(RedisServer, String), StackError> {
    let bus_port = free_port()?.to_string();
    let defaults = ["--cluster-enabled", "yes", "--cluster-node-timeout", NODE_TIMEOUT_MS];
    let defaults = defaults.into_iter().chain(["--cluster-port", &bus_port, "--appendonly", "yes"]);
    let arguments = defaults.chain(arguments.iter().copied()).map(str::to_owned).collect();
    let options = RedisOptions { arguments, ..RedisOptions::default() };
    Ok((RedisServer::start(options, Lifetime::Attached)?, bus_port))
}

/// Introduces a server to the cluster of another.
fn meet(of_cluster: &RedisServer, server: &RedisServer, bus_port: &str) -> Result<(), StackError> {
    of_cluster.command(&["CLUSTER", "MEET", "127.0.0.1", &server.port().to_string(), bus_port]).map(drop)
}

/// Parses `CLUSTER NODES`, one line per node: `id host:port@bus flags master ping pong epoch link slot-slot …`.
fn nodes(server: &RedisServer) -> Result<Vec<Node>, StackError> {
    let text = server.command(&["CLUSTER", "NODES"])?;
    Ok(text.lines().filter_map(node).collect())
}

fn node(line: &str) -> Option<Node> {
    let words: Vec<&str> = line.split(' ').collect();
    let port = words.get(1)?.split('@').next()?.rsplit_once(':')?.1.parse().ok()?;
    let flags: Vec<&str> = words.get(2)?.split(',').collect();
    let range = |word: &&str| {
        let (first, last) = word.split_once('-').unwrap_or((word, word));
        Some((first.parse().ok()?, last.parse().ok()?))
    };
    Some(Node {
        port,
        is_master: flags.contains(&"master"),
        is_healthy: !flags.iter().any(|flag| flag.starts_with("fail") || *flag == "handshake")
            && (flags.contains(&"myself") || words.get(7) == Some(&"connected")),
        slots: words.iter().skip(8).filter_map(range).collect(),
    })
}
