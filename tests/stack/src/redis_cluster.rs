//! A private Redis Cluster: three masters with a replica each.

use std::time::Duration;

use crate::{
    StackError, free_port,
    process::{Lifetime, wait_until},
    redis_server::{RedisOptions, RedisServer},
};

const MASTERS: usize = 3;
const SLOTS: u16 = 16_384;
const READY_SECONDS: u64 = 60;

/// How long a master may be silent before its replica takes over.
const NODE_TIMEOUT_MS: &str = "3000";

/// Keys that one migration moves at once.
const MOVED_AT_ONCE: &str = "100";

/// Six servers on loopback. The first three are masters at first, and the server three after a master is its replica.
#[derive(Debug)]
pub struct RedisCluster {
    servers: Vec<RedisServer>,
}

/// What a server says of one of the cluster.
#[derive(Debug)]
struct Node {
    port: u16,
    is_master: bool,
    is_well: bool,
    slots: Vec<(u16, u16)>,
}

impl RedisCluster {
    /// Starts the servers, with more arguments for each, and waits until they are a cluster.
    ///
    /// # Errors
    /// When they do not become one in time.
    pub fn start(arguments: &[&str]) -> Result<Self, StackError> {
        let mut servers = Vec::new();
        for _ in 0..2 * MASTERS {
            let bus_port = free_port()?.to_string();
            let own = ["--cluster-enabled", "yes", "--cluster-node-timeout", NODE_TIMEOUT_MS];
            let own = own.into_iter().chain(["--cluster-port", &bus_port, "--appendonly", "yes"]);
            let arguments = own.chain(arguments.iter().copied()).map(str::to_owned).collect();
            let options = RedisOptions { arguments, ..RedisOptions::default() };
            servers.push((RedisServer::start(options, Lifetime::Leashed)?, bus_port));
        }
        let share = SLOTS.div_ceil(3);
        for (number, (server, _)) in (0..).zip(&servers[..MASTERS]) {
            let (first, last) = (number * share, ((number + 1) * share).min(SLOTS) - 1);
            server.command(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()])?;
            // Two servers of one epoch would have to find out who is to take another one.
            server.command(&["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()])?;
        }
        for (server, bus_port) in &servers[1..] {
            let meet =
                ["CLUSTER", "MEET", "127.0.0.1", &server.port().to_string(), bus_port].map(str::to_owned);
            servers[0].0.command(&meet.each_ref().map(String::as_str))?;
        }
        let servers: Vec<RedisServer> = servers.into_iter().map(|(server, _)| server).collect();
        let cluster = Self { servers };
        cluster.wait("know one another", |cluster| {
            cluster.servers.iter().all(|server| {
                nodes(server).is_ok_and(|nodes| nodes.len() == 2 * MASTERS && nodes.iter().all(|n| n.is_well))
            })
        })?;
        for number in 0..MASTERS {
            let master = cluster.servers[number].command(&["CLUSTER", "MYID"])?;
            cluster.servers[MASTERS + number].command(&["CLUSTER", "REPLICATE", master.trim()])?;
        }
        cluster.wait_well()?;
        Ok(cluster)
    }

    /// Where it is, by two of its servers.
    pub fn url(&self) -> String {
        format!(
            "redis-cluster://127.0.0.1:{}?node=127.0.0.1:{}",
            self.servers[0].port(),
            self.servers[1].port()
        )
    }

    /// Its servers, in the order in which they were started.
    pub fn servers(&self) -> &[RedisServer] {
        &self.servers
    }

    /// The same, to do something to them.
    pub fn servers_mut(&mut self) -> &mut [RedisServer] {
        &mut self.servers
    }

    /// Which server is the master of a key by now, as a place in [`RedisCluster::servers`].
    ///
    /// # Errors
    /// When none that is well says so.
    pub fn master_of(&self, key: &str) -> Result<usize, StackError> {
        let slot = self.slot_of(key)?;
        self.master_of_slot(slot)
    }

    /// The slot of a key.
    ///
    /// # Errors
    /// When no server tells.
    pub fn slot_of(&self, key: &str) -> Result<u16, StackError> {
        let slot = self.running()?.command(&["CLUSTER", "KEYSLOT", key])?;
        slot.trim().parse().map_err(|_| self.trouble("tell the slot of a key"))
    }

    fn master_of_slot(&self, slot: u16) -> Result<usize, StackError> {
        let nodes = nodes(self.running()?)?;
        let has = |node: &&Node| node.slots.iter().any(|(first, last)| (*first..=*last).contains(&slot));
        let owner = nodes.iter().filter(|node| node.is_master && node.is_well).find(has);
        let server = owner.and_then(|owner| self.servers.iter().position(|s| s.port() == owner.port));
        server.ok_or_else(|| self.trouble("have a master for every slot"))
    }

    /// A master that is another one than this.
    ///
    /// # Errors
    /// When there is none.
    pub fn other_master(&self, than: usize) -> Result<usize, StackError> {
        let slots = [0, SLOTS / 2, SLOTS - 1].map(|slot| self.master_of_slot(slot));
        let mut masters = slots.into_iter().collect::<Result<Vec<_>, _>>()?;
        masters.retain(|master| *master != than);
        masters.first().copied().ok_or_else(|| self.trouble("have two masters"))
    }

    /// Moves a slot to another master as an operator does: announces it on both sides, moves its keys, and tells all
    /// masters. Between the steps `meanwhile` is called: then the slot is half here and half there.
    ///
    /// Source: the Redis Cluster specification, "Live reconfiguration".
    ///
    /// # Errors
    /// When a server does not play along.
    pub fn move_slot(&self, slot: u16, to: usize, mut meanwhile: impl FnMut()) -> Result<(), StackError> {
        let (from, to) = (&self.servers[self.master_of_slot(slot)?], &self.servers[to]);
        let id = |server: &RedisServer| {
            Ok::<_, StackError>(server.command(&["CLUSTER", "MYID"])?.trim().to_owned())
        };
        let (from_id, to_id) = (id(from)?, id(to)?);
        let slot = slot.to_string();
        to.command(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id])?;
        from.command(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id])?;
        meanwhile();
        let port = to.port().to_string();
        loop {
            let keys = from.command(&["CLUSTER", "GETKEYSINSLOT", &slot, MOVED_AT_ONCE])?;
            let keys: Vec<&str> = keys.lines().filter(|key| !key.is_empty()).collect();
            if keys.is_empty() {
                break;
            }
            let migrate = ["MIGRATE", "127.0.0.1", &port, "", "0", "10000", "KEYS"];
            from.command(&[&migrate[..], &keys].concat())?;
        }
        meanwhile();
        // The new owner first: from then on there is one for sure.
        for server in [to, from].into_iter().chain(&self.servers) {
            // Replicas refuse, and whoever is down hears of it by and by.
            let told = server.command(&["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]);
            if server.port() == to.port() {
                told?;
            }
        }
        Ok(())
    }

    /// Waits until every slot has a master that is well, and every master a replica, of those that run.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn wait_well(&self) -> Result<(), StackError> {
        self.wait("be a cluster", |cluster| {
            let ports: Vec<u16> = cluster.running_servers().map(RedisServer::port).collect();
            cluster.running_servers().all(|server| {
                let is_ok = server.command(&["CLUSTER", "INFO"]);
                let is_ok = is_ok.is_ok_and(|info| info.contains("cluster_state:ok"));
                let is_linked = server
                    .command(&["INFO", "replication"])
                    .is_ok_and(|info| info.contains("role:master") || info.contains("master_link_status:up"));
                let known = nodes(server).unwrap_or_default();
                let masters = known.iter().filter(|node| node.is_master && !node.slots.is_empty()).count();
                let are_well =
                    known.iter().filter(|node| ports.contains(&node.port)).all(|node| node.is_well);
                is_ok && is_linked && are_well && masters == MASTERS
            })
        })
    }

    fn running_servers(&self) -> impl Iterator<Item = &RedisServer> {
        self.servers.iter().filter(|server| server.last_words_if_ended().is_none())
    }

    fn running(&self) -> Result<&RedisServer, StackError> {
        let mut running = self.running_servers().filter(|server| server.command(&["PING"]).is_ok());
        running.next().ok_or_else(|| self.trouble("answer"))
    }

    fn wait(&self, what: &'static str, is_so: impl Fn(&Self) -> bool) -> Result<(), StackError> {
        let limit = Duration::from_secs(READY_SECONDS);
        if wait_until(limit, || is_so(self)) { Ok(()) } else { Err(self.trouble(what)) }
    }

    fn trouble(&self, what: &'static str) -> StackError {
        let log = self.servers[0].folder().join("redis.log");
        StackError::Timeout { program: "the Redis Cluster".to_owned(), what, seconds: READY_SECONDS, log }
    }
}

/// What `CLUSTER NODES` says, a line a server: `id host:port@bus flags master ping pong epoch link slot-slot …`.
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
        is_well: !flags.iter().any(|flag| flag.starts_with("fail") || *flag == "handshake")
            && (flags.contains(&"myself") || words.get(7) == Some(&"connected")),
        slots: words.iter().skip(8).filter_map(range).collect(),
    })
}
