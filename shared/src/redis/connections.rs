//! Keeps a connection to each server of a Redis deployment, and routes commands by key.
//!
//! fred is used for single connections only. Its own routing stalls all servers while one of them is unavailable, and its
//! handling of ASK can mix up replies. So routing, redirection and reconnecting are done here.

use std::{collections::HashMap, sync::Arc, time::Duration};

use fred::{
    prelude::{Error, ErrorKind, FromValue, Value},
    types::config::Server,
    util::redis_keyslot,
};
use futures_util::future::{BoxFuture, join, join_all};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Connection, Incarnation, Redis,
    connection::address,
    errors::{Outcome, error_code, outcome, redirected, replaced},
    topology::Topology,
};
use crate::{backoff::Backoff, error_chain::one_line};

/// Delay between two attempts at one command.
const RETRY_DELAY: Duration = Duration::from_millis(25);

/// Interval between two reads of the topology, and the minimum where a change is suspected.
const REFRESH_INTERVAL: Duration = Duration::from_secs(5);
const MIN_REFRESH_INTERVAL: Duration = Duration::from_millis(200);

/// Minimum lifetime of a connection that resets the backoff.
const STABLE_AFTER: Duration = Duration::from_secs(1);

/// Whether a command may be sent again after its reply was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Sent again only if it was certainly not executed.
    NonIdempotent,
    /// Sent again even if it may have been executed.
    Idempotent,
}

/// Connections to all servers that accept writes: the primaries. They close when the last clone is dropped.
#[derive(Clone)]
pub struct Connections {
    shared: Arc<Shared>,
    /// The only incarnation that may receive a command; `None` for any.
    only: Option<Incarnation>,
    _stop: Arc<DropGuard>,
}

struct Shared {
    redis: Redis,
    state: watch::Sender<State>,
    /// Notified when an error suggests that the topology has changed.
    change_suspected: Notify,
    stop: CancellationToken,
}

/// Successful reply.
struct Answer {
    value: Value,
    /// Incarnation that replied.
    incarnation: Incarnation,
    attempts: u64,
}

/// The topology, and the servers that are connected.
struct State {
    topology: Topology,
    nodes: HashMap<Server, Arc<Connection>>,
}

impl Connections {
    /// Discovers the servers and connects to them. At least one must accept; the others are connected in the background.
    pub(super) async fn open(redis: &Redis) -> Result<Self, Error> {
        let topology = redis.discover(&[], &[]).await?;
        let opened = topology.servers().iter().map(async |server| (server.clone(), redis.open(server).await));
        let mut connections = HashMap::new();
        let mut failed = Error::new(ErrorKind::Cluster, "no server of the cluster has any slots");
        for (server, opened) in join_all(opened).await {
            match opened {
                Ok(connection) => {
                    redis.check(&connection).await?;
                    connections.insert(server, connection);
                }
                Err(error) => failed = error,
            }
        }
        if connections.is_empty() {
            return Err(failed);
        }
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            redis: redis.clone(),
            state: watch::Sender::new(State { topology: topology.clone(), nodes: HashMap::new() }),
            change_suspected: Notify::new(),
            stop: stop.clone(),
        });
        let mut kept = HashMap::new();
        shared.keep(&topology, &mut kept, connections);
        let watching = Arc::clone(&shared).watch_topology(topology, kept);
        tokio::spawn(stop.clone().run_until_cancelled_owned(watching));
        Ok(Self { shared, only: None, _stop: Arc::new(stop.drop_guard()) })
    }

    /// Returns connections for commands about entry ids that this incarnation assigned. They fail, without being executed,
    /// when another incarnation serves the key.
    #[must_use]
    pub fn only(&self, incarnation: Incarnation) -> Self {
        Self { only: Some(incarnation), ..self.clone() }
    }

    /// Sends a command to the server that owns the key. While that server is unavailable, or the slot moves to another one,
    /// the command waits or is sent again, within `REDIS_TIMEOUT`. Each attempt then has that time for its reply.
    ///
    /// # Errors
    /// The server's error, or that the server is unavailable. In the second case the command may have been executed.
    pub async fn run<R: FromValue>(
        &self,
        key: &str,
        retry: Retry,
        name: &'static str,
        args: Vec<Value>,
    ) -> Result<R, Error> {
        self.run_boxed(key, retry, name, args).await?.value.convert()
    }

    /// As [`Connections::run`]; also returns the incarnation that replied.
    ///
    /// # Errors
    /// As [`Connections::run`].
    pub async fn run_identifying(
        &self,
        key: &str,
        retry: Retry,
        name: &'static str,
        args: Vec<Value>,
    ) -> Result<(Value, Incarnation), Error> {
        self.run_boxed(key, retry, name, args).await.map(|answer| (answer.value, answer.incarnation))
    }

    /// Runs a script on the server that owns its first key. All keys must be in the same slot.
    ///
    /// # Errors
    /// As [`Connections::run`].
    pub async fn eval<R: FromValue>(
        &self,
        script: &'static str,
        keys: &[String],
        retry: Retry,
        args: impl IntoIterator<Item = impl Into<Value>>,
    ) -> Result<R, Error> {
        self.eval_identifying(script, keys, retry, args).await?.0.convert()
    }

    /// As [`Connections::eval`]; also returns the incarnation that replied.
    ///
    /// # Errors
    /// As [`Connections::run`].
    pub async fn eval_identifying(
        &self,
        script: &'static str,
        keys: &[String],
        retry: Retry,
        args: impl IntoIterator<Item = impl Into<Value>>,
    ) -> Result<(Value, Incarnation), Error> {
        let mut all: Vec<Value> = vec![script.into(), keys.len().to_string().into()];
        all.extend(keys.iter().map(Value::from));
        all.extend(args.into_iter().map(Into::into));
        self.run_identifying(keys.first().map_or("", String::as_str), retry, "EVAL", all).await
    }

    /// As [`Connections::run`]; also returns the number of attempts.
    ///
    /// # Errors
    /// As [`Connections::run`].
    pub async fn run_counting<R: FromValue>(
        &self,
        key: &str,
        retry: Retry,
        name: &'static str,
        args: Vec<Value>,
    ) -> Result<(R, u64), Error> {
        let answer = self.run_boxed(key, retry, name, args).await?;
        Ok((answer.value.convert()?, answer.attempts))
    }

    /// Boxes a future of some KiB, so that it is compiled once and not for every type of reply in every crate.
    fn run_boxed(
        &self,
        key: &str,
        retry: Retry,
        name: &'static str,
        args: Vec<Value>,
    ) -> BoxFuture<'_, Result<Answer, Error>> {
        Box::pin(self.run_in_slot(redis_keyslot(key.as_bytes()), retry, name, args))
    }

    async fn run_in_slot(
        &self,
        slot: u16,
        retry: Retry,
        name: &'static str,
        args: Vec<Value>,
    ) -> Result<Answer, Error> {
        let deadline = Instant::now() + self.shared.redis.timeout;
        let mut attempts = 0;
        loop {
            let mut node = self.node(slot, deadline).await?;
            if let Some(only) = self.only.filter(|only| *only != node.incarnation) {
                return self.ask_only(only, &node, name, args).await;
            }
            attempts += 1;
            let mut answer = node.send_value(name, args.clone()).await;
            let asked = answer.as_ref().err().and_then(|error| redirected(error, "ASK"));
            if let Some(importing) = asked.and_then(|(_, server)| self.node_at(&server)) {
                if self.only.is_some() {
                    return Err(replaced(&importing.server));
                }
                // Boxed, so that a rare case does not enlarge the future.
                answer = Box::pin(ask(&importing, name, args.clone())).await;
                node = importing;
            }
            let error = match answer {
                Ok(value) => return Ok(Answer { value, incarnation: node.incarnation, attempts }),
                Err(error) => error,
            };
            let again = match outcome(&error) {
                Outcome::Refused => false,
                Outcome::NotExecuted => true,
                Outcome::Unknown => retry == Retry::Idempotent,
            };
            self.report_error(&error);
            if !again || Instant::now() + RETRY_DELAY >= deadline {
                return Err(error);
            }
            sleep(RETRY_DELAY).await;
        }
    }

    /// Sends a command once, with its own time limit, on a connection of its own: a slow reply delays no other command.
    ///
    /// # Errors
    /// As [`Connections::run`]. After any error the command may have been executed.
    pub fn run_patiently<'a>(
        &'a self,
        key: &str,
        limit: Duration,
        name: &'static str,
        args: Vec<Value>,
    ) -> BoxFuture<'a, Result<(Value, Incarnation), Error>> {
        let slot = redis_keyslot(key.as_bytes());
        Box::pin(async move {
            let server = self.shared.state.borrow().topology.server_of(slot).cloned();
            let server = server
                .ok_or_else(|| Error::new(ErrorKind::Cluster, "no server of the cluster owns the slot"))?;
            let redis = Redis { timeout: limit, ..self.shared.redis.clone() };
            let answered = async {
                let connection = redis.open(&server).await?;
                Ok((connection.send_value(name, args).await?, connection.incarnation))
            };
            answered.await.inspect_err(|error| self.report_error(error))
        })
    }

    /// Returns a dedicated connection to the server that owns the key, with twice the usual time limit. Reuses `before`
    /// where it is open and still leads to that server.
    ///
    /// # Errors
    /// When the server is unknown or does not accept the connection.
    pub fn dedicated_connection<'a>(
        &'a self,
        key: &str,
        before: Option<Connection>,
    ) -> BoxFuture<'a, Result<Connection, Error>> {
        let slot = redis_keyslot(key.as_bytes());
        Box::pin(async move {
            let server = self.shared.state.borrow().topology.server_of(slot).cloned();
            let server = server
                .ok_or_else(|| Error::new(ErrorKind::Cluster, "no server of the cluster owns the slot"))?;
            if let Some(before) = before.filter(|before| before.server == server && !before.has_ended()) {
                return Ok(before);
            }
            let redis = Redis { timeout: self.shared.redis.timeout * 2, ..self.shared.redis.clone() };
            redis.open(&server).await.inspect_err(|error| self.report_error(error))
        })
    }

    /// Updates the topology from an error: applies MOVED, and triggers discovery where the server may have changed.
    pub fn report_error(&self, error: &Error) {
        if outcome(error) == Outcome::Refused {
            return;
        }
        if let Some((slot, server)) = redirected(error, "MOVED") {
            self.shared.state.send_if_modified(|state| state.topology.moved(slot, &server));
        }
        if error_code(error) == Some("READONLY") {
            // The server was the primary before a failover. Only discovery finds the new one.
            self.shared.state.borrow().nodes.values().for_each(|node| node.end());
        }
        self.shared.change_suspected.notify_one();
    }

    /// The connected servers.
    pub fn servers(&self) -> Vec<Arc<Connection>> {
        self.shared.connected()
    }

    /// Checks that all servers of the topology are connected and reply.
    ///
    /// # Errors
    /// The first failure, or that a server is not connected.
    pub fn ping(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let missing = {
                let state = self.shared.state.borrow();
                state.topology.servers().iter().find(|server| !state.nodes.contains_key(*server)).map(address)
            };
            if let Some(missing) = missing {
                return Err(Error::new(ErrorKind::IO, format!("not connected to {missing}")));
            }
            let servers = self.servers();
            let pinged = servers.iter().map(async |server| server.send::<Value>("PING", Vec::new()).await);
            for answer in join_all(pinged).await {
                answer.inspect_err(|error| self.report_error(error))?;
            }
            Ok(())
        })
    }

    /// Sends a command to an incarnation that does not own the slot. It may be the server that the slot is moving to.
    async fn ask_only(
        &self,
        only: Incarnation,
        owner: &Connection,
        name: &'static str,
        args: Vec<Value>,
    ) -> Result<Answer, Error> {
        let node = self.shared.connected().into_iter().find(|node| node.incarnation == only);
        let node = node.ok_or_else(|| replaced(&owner.server))?;
        match Box::pin(ask(&node, name, args)).await {
            Ok(value) => Ok(Answer { value, incarnation: only, attempts: 1 }),
            Err(error) if redirected(&error, "MOVED").is_some() => Err(replaced(&owner.server)),
            Err(error) => Err(error),
        }
    }

    fn node_at(&self, server: &Server) -> Option<Arc<Connection>> {
        self.shared.state.borrow().nodes.get(server).cloned()
    }

    async fn node(&self, slot: u16, deadline: Instant) -> Result<Arc<Connection>, Error> {
        let node_of = |state: &State| state.nodes.get(state.topology.server_of(slot)?).cloned();
        if let Some(node) = node_of(&self.shared.state.borrow()) {
            return Ok(node);
        }
        let mut changes = self.shared.state.subscribe();
        let connected = timeout_at(deadline, changes.wait_for(|state| node_of(state).is_some())).await;
        let node = connected.ok().and_then(|state| node_of(&*state.ok()?));
        node.ok_or_else(|| {
            let server = self.shared.state.borrow().topology.server_of(slot).map(address);
            let server = server.as_deref().unwrap_or("the server of the slot").to_owned();
            Error::new(ErrorKind::Timeout, format!("not connected to {server}"))
        })
    }
}

impl Shared {
    fn connected(&self) -> Vec<Arc<Connection>> {
        self.state.borrow().nodes.values().cloned().collect()
    }

    async fn watch_topology(self: Arc<Self>, mut topology: Topology, mut kept: HashMap<Server, DropGuard>) {
        let mut failing = false;
        loop {
            tokio::select! {
                () = self.change_suspected.notified() => {}
                () = sleep(REFRESH_INTERVAL) => {}
            }
            match self.redis.discover(&self.connected(), &topology.known).await {
                Ok(mut found) => {
                    failing = false;
                    found.remember(&topology);
                    if found.servers() != topology.servers() {
                        tracing::info!(servers = addresses(found.servers()), "Redis topology changed");
                    }
                    self.keep(&found, &mut kept, HashMap::new());
                    topology = found;
                }
                Err(error) if !failing => {
                    failing = true;
                    tracing::warn!(
                        redis = self.redis.address(),
                        error = one_line(&error),
                        "Redis discovery failed, retrying"
                    );
                }
                Err(_) => {}
            }
            sleep(MIN_REFRESH_INTERVAL).await;
        }
    }

    /// Starts connections to new servers of a topology, and ends those to servers that left it.
    fn keep(
        self: &Arc<Self>,
        topology: &Topology,
        kept: &mut HashMap<Server, DropGuard>,
        mut connections: HashMap<Server, Connection>,
    ) {
        kept.retain(|server, _| topology.servers().contains(server));
        self.state.send_if_modified(|state| {
            let changed = state.topology != *topology;
            state.topology = topology.clone();
            state.nodes.retain(|server, node| {
                let stays = topology.servers().contains(server);
                if !stays {
                    node.end();
                }
                stays
            });
            changed
        });
        for server in topology.servers() {
            if !kept.contains_key(server) {
                let stop = self.stop.child_token();
                let keeping = Arc::clone(self).keep_up(server.clone(), connections.remove(server));
                tokio::spawn(stop.clone().run_until_cancelled_owned(keeping));
                kept.insert(server.clone(), stop.drop_guard());
            }
        }
    }

    async fn keep_up(self: Arc<Self>, server: Server, mut connection: Option<Connection>) {
        let mut backoff = Backoff::reconnect();
        let mut failing = false;
        loop {
            let opened = match connection.take() {
                Some(connection) => Ok(connection),
                None => self.redis.open(&server).await,
            };
            match opened {
                Ok(connection) => {
                    if failing {
                        tracing::info!(redis = address(&server), "connected to Redis");
                    }
                    let since = Instant::now();
                    self.serve(connection).await;
                    // A connection that is lost at once counts as a failed attempt.
                    let was_good = since.elapsed() >= STABLE_AFTER;
                    if was_good {
                        backoff = Backoff::reconnect();
                    }
                    if was_good || !failing {
                        tracing::warn!(redis = address(&server), "connection to Redis lost, reconnecting");
                    }
                }
                Err(error) if !failing => {
                    let error = one_line(&error);
                    tracing::warn!(redis = address(&server), error, "cannot connect to Redis, retrying");
                }
                Err(_) => {}
            }
            failing = true;
            self.change_suspected.notify_one();
            sleep(backoff.next_delay()).await;
        }
    }

    /// Makes a connection available to commands until it ends.
    async fn serve(&self, connection: Connection) {
        let connection = Arc::new(connection);
        let server = connection.server.clone();
        self.state.send_modify(|state| drop(state.nodes.insert(server.clone(), Arc::clone(&connection))));
        connection.ended.cancelled().await;
        // If the server left the topology and came back, it has another connection by now.
        self.state.send_modify(|state| {
            if state.nodes.get(&server).is_some_and(|node| Arc::ptr_eq(node, &connection)) {
                state.nodes.remove(&server);
            }
        });
    }
}

/// Sends a command to the server that a slot is moving to. ASKING applies to the next command on the connection. If
/// another task's command comes first, the reply is MOVED, and the command is routed again.
async fn ask(node: &Connection, name: &'static str, args: Vec<Value>) -> Result<Value, Error> {
    let asking = node.send_value("ASKING", Vec::new());
    let (_, answer) = join(asking, node.send_value(name, args)).await;
    answer
}

fn addresses(servers: &[Server]) -> String {
    servers.iter().map(address).collect::<Vec<_>>().join(", ")
}
