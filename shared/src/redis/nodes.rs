//! The servers of a deployment and the connections to them: discovers changes, reconnects, and opens servers that a
//! redirection names.

use std::{collections::HashMap, sync::Arc, time::Duration};

use fred::{
    prelude::{Error, ErrorKind},
    types::config::Server,
};
use futures_util::future::join_all;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Connection, Redis,
    connection::address,
    errors::{Outcome, error_code, outcome, redirected},
    topology::{MAX_KNOWN, Topology},
};
use crate::{backoff::Backoff, error_chain::one_line};

/// Interval between two reads of the topology, and the minimum where a change is suspected.
const REFRESH_INTERVAL: Duration = Duration::from_secs(5);
const MIN_REFRESH_INTERVAL: Duration = Duration::from_millis(200);

/// Minimum lifetime of a connection that resets the backoff.
const STABLE_AFTER: Duration = Duration::from_secs(1);

/// Time for which a connection is kept to a server that a redirection named, and that owns no slots yet.
const NAMED_FOR: Duration = Duration::from_mins(1);

/// Where a command has to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Destination {
    /// To the owner of a slot.
    Owner(u16),
    /// To a server that ASK named for one command.
    Asked(Server),
}

/// All servers with a connection, or with one that is being opened.
pub(super) struct Nodes {
    pub(super) redis: Redis,
    state: watch::Sender<State>,
    /// Notified when an error suggests that the topology has changed.
    change_suspected: Notify,
    stop: CancellationToken,
}

struct State {
    topology: Topology,
    nodes: HashMap<Server, Node>,
}

/// A server that is connected, or being connected, until this is dropped.
struct Node {
    connection: Result<Arc<Connection>, Option<Error>>,
    /// When a redirection last named the server.
    named_at: Option<Instant>,
    _stop: DropGuard,
}

impl State {
    fn server_of<'a>(&'a self, destination: &'a Destination) -> Option<&'a Server> {
        match destination {
            Destination::Owner(slot) => self.topology.server_of(*slot),
            Destination::Asked(server) => Some(server),
        }
    }

    fn connection_to(&self, destination: &Destination) -> Option<Arc<Connection>> {
        let node = self.nodes.get(self.server_of(destination)?)?;
        node.connection.as_ref().ok().cloned()
    }

    /// Returns the error of a command that could not be sent.
    fn not_connected(&self, destination: &Destination) -> Error {
        let Some(server) = self.server_of(destination) else {
            return Error::new(ErrorKind::Cluster, "no server of the cluster owns the slot");
        };
        let failed = self.nodes.get(server).and_then(|node| node.connection.as_ref().err()?.as_ref());
        not_connected(server, failed)
    }
}

/// Returns the error of a server without a connection: its last reply, or the cause of the failed connection.
fn not_connected(server: &Server, failed: Option<&Error>) -> Error {
    let server = address(server);
    match failed {
        None => Error::new(ErrorKind::IO, format!("not connected to {server}")),
        Some(failed) if error_code(failed).is_some() => failed.clone(),
        Some(failed) => {
            Error::new(failed.kind().clone(), format!("not connected to {server}: {}", failed.details()))
        }
    }
}

impl Nodes {
    /// Discovers the servers and connects to them. At least one must accept; the others are connected in the background, until
    /// `stop` is cancelled.
    pub(super) async fn open(redis: &Redis, stop: CancellationToken) -> Result<Arc<Self>, Error> {
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
        let nodes = Arc::new(Self {
            redis: redis.clone(),
            state: watch::Sender::new(State { topology: topology.clone(), nodes: HashMap::new() }),
            change_suspected: Notify::new(),
            stop: stop.clone(),
        });
        nodes.apply(topology, connections);
        tokio::spawn(stop.run_until_cancelled_owned(Arc::clone(&nodes).watch_topology()));
        Ok(nodes)
    }

    /// Returns the connections to all connected servers of the topology.
    pub(super) fn connected(&self) -> Vec<Arc<Connection>> {
        let state = self.state.borrow();
        let servers = state.topology.servers().iter();
        servers.filter_map(|server| state.nodes.get(server)?.connection.as_ref().ok().cloned()).collect()
    }

    /// Returns a connection, to a server of the topology or to one that a redirection named.
    pub(super) fn find(&self, is_wanted: impl Fn(&Connection) -> bool) -> Option<Arc<Connection>> {
        let state = self.state.borrow();
        let mut connections = state.nodes.values().filter_map(|node| node.connection.as_ref().ok());
        connections.find(|connection| is_wanted(connection)).cloned()
    }

    /// Returns the connection to each server of the topology, or the error of the failed connection.
    pub(super) fn servers(&self) -> Vec<(Server, Result<Arc<Connection>, Error>)> {
        let state = self.state.borrow();
        let connection = |server: &Server| match state.nodes.get(server).map(|node| &node.connection) {
            Some(Ok(connection)) => Ok(Arc::clone(connection)),
            Some(Err(failed)) => Err(not_connected(server, failed.as_ref())),
            None => Err(not_connected(server, None)),
        };
        state.topology.servers().iter().map(|server| (server.clone(), connection(server))).collect()
    }

    /// Returns the server of a destination.
    pub(super) fn server_of(&self, destination: &Destination) -> Result<Server, Error> {
        let state = self.state.borrow();
        state.server_of(destination).cloned().ok_or_else(|| state.not_connected(destination))
    }

    /// Returns the connection to a destination. Waits for it until the deadline.
    pub(super) async fn connection_to(
        self: &Arc<Self>,
        destination: &Destination,
        deadline: Instant,
    ) -> Result<Arc<Connection>, Error> {
        if let Destination::Asked(server) = destination {
            self.name(server);
        }
        if let Some(connection) = self.state.borrow().connection_to(destination) {
            return Ok(connection);
        }
        let mut changes = self.state.subscribe();
        let is_connected = changes.wait_for(|state| state.connection_to(destination).is_some());
        let connected = timeout_at(deadline, is_connected).await;
        let connection = connected.ok().and_then(|state| state.ok()?.connection_to(destination));
        connection.ok_or_else(|| self.state.borrow().not_connected(destination))
    }

    /// Updates the topology from an error of a connection: applies MOVED, and triggers discovery where the server may have
    /// changed.
    pub(super) fn report_error(self: &Arc<Self>, error: &Error, connection: &Connection) {
        if outcome(error) == Outcome::Refused {
            return;
        }
        if let Some((slot, server)) = redirected(error, "MOVED", &connection.server.host) {
            self.state.send_if_modified(|state| state.topology.moved(slot, &server));
            self.name(&server);
        }
        if error_code(error) == Some("READONLY") {
            // The server was the primary before. Its data may be replaced before it is a primary again, and its name may lead to
            // another server.
            connection.end_because(error);
            if let Some(shared) = self.find(|shared| shared.server == connection.server) {
                shared.end_because(error);
            }
        }
        self.suspect_change();
    }

    /// Triggers discovery.
    pub(super) fn suspect_change(&self) {
        self.change_suspected.notify_one();
    }

    /// Keeps a connection to a server that a redirection named.
    fn name(self: &Arc<Self>, server: &Server) {
        self.state.send_if_modified(|state| {
            let is_added = self.keep(state, server, None);
            if let Some(node) = state.nodes.get_mut(server) {
                node.named_at = Some(Instant::now());
            }
            is_added
        });
    }

    async fn watch_topology(self: Arc<Self>) {
        let mut refused = None;
        loop {
            tokio::select! {
                () = self.change_suspected.notified() => {}
                () = sleep(REFRESH_INTERVAL) => {}
            }
            let known = self.state.borrow().topology.known.clone();
            match self.redis.discover(&self.connected(), &known).await {
                Ok(found) => {
                    refused = None;
                    self.apply(found, HashMap::new());
                }
                Err(error) => {
                    let error = one_line(&error);
                    if refused.as_ref() != Some(&error) {
                        let redis = self.redis.address();
                        tracing::warn!(redis, error, "Redis discovery failed, retrying");
                    }
                    refused = Some(error);
                }
            }
            sleep(MIN_REFRESH_INTERVAL).await;
        }
    }

    /// Replaces the topology. Starts connections to added servers, and ends those to servers that left it.
    fn apply(self: &Arc<Self>, mut topology: Topology, mut connections: HashMap<Server, Connection>) {
        self.state.send_if_modified(|state| {
            topology.remember(&state.topology);
            if topology.servers() != state.topology.servers() {
                let servers: Vec<String> = topology.servers().iter().map(address).collect();
                tracing::info!(servers = servers.join(", "), "Redis topology changed");
            }
            let mut is_change = state.topology != topology;
            state.nodes.retain(|server, node| {
                let is_named = node.named_at.is_some_and(|named_at| named_at.elapsed() < NAMED_FOR);
                let stays = is_named || topology.servers().contains(server);
                if !stays && let Ok(connection) = &node.connection {
                    connection.end();
                }
                stays
            });
            for server in topology.servers() {
                is_change |= self.keep(state, server, connections.remove(server));
            }
            state.topology = topology;
            is_change
        });
    }

    /// Adds a server, unless it is there. Returns whether it was added.
    fn keep(self: &Arc<Self>, state: &mut State, server: &Server, connection: Option<Connection>) -> bool {
        if state.nodes.contains_key(server) || state.nodes.len() >= MAX_KNOWN {
            return false;
        }
        let stop = self.stop.child_token();
        let keeping = Arc::clone(self).keep_up(server.clone(), connection);
        tokio::spawn(stop.clone().run_until_cancelled_owned(keeping));
        let node = Node { connection: Err(None), named_at: None, _stop: stop.drop_guard() };
        state.nodes.insert(server.clone(), node);
        true
    }

    async fn keep_up(self: Arc<Self>, server: Server, mut connection: Option<Connection>) {
        let mut backoff = Backoff::reconnect();
        let mut refused: Option<String> = None;
        let mut failing = false;
        // Whether a loss is logged without its end. A connection that a read-only server loses again and again is logged once.
        let mut is_lost = false;
        loop {
            let opened = match connection.take() {
                Some(connection) => Ok(connection),
                None => self.redis.open(&server).await,
            };
            match opened {
                Ok(connection) => {
                    if is_lost {
                        tracing::info!(redis = address(&server), "connected to Redis");
                        is_lost = false;
                    }
                    refused = None;
                    let since = Instant::now();
                    let cause = self.serve(connection).await;
                    // A connection that is lost at once counts as a failed attempt.
                    let was_good = since.elapsed() >= STABLE_AFTER;
                    if was_good {
                        backoff = Backoff::reconnect();
                    }
                    if was_good || !failing {
                        let error = cause.as_ref().map(|cause| one_line(cause));
                        tracing::warn!(
                            redis = address(&server),
                            error,
                            "connection to Redis lost, reconnecting"
                        );
                        is_lost = true;
                    }
                }
                Err(error) => {
                    let text = one_line(&error);
                    if refused.as_ref() != Some(&text) {
                        tracing::warn!(
                            redis = address(&server),
                            error = text,
                            "cannot connect to Redis, retrying"
                        );
                    }
                    refused = Some(text);
                    is_lost = true;
                    self.failed(&server, error);
                }
            }
            failing = true;
            self.suspect_change();
            sleep(backoff.next_delay()).await;
        }
    }

    /// Makes a connection available to commands until it ends. Returns the cause, if a reply was the cause.
    async fn serve(&self, connection: Connection) -> Option<Error> {
        let connection = Arc::new(connection);
        self.modify(&connection.server, |node| node.connection = Ok(Arc::clone(&connection)));
        connection.ended.cancelled().await;
        let cause = connection.cause();
        // If the server left the topology and came back, it has another connection by now.
        self.modify(&connection.server, |node| {
            if node.connection.as_ref().is_ok_and(|current| Arc::ptr_eq(current, &connection)) {
                node.connection = Err(cause.clone());
            }
        });
        cause
    }

    fn failed(&self, server: &Server, error: Error) {
        self.modify(server, |node| {
            if node.connection.is_err() {
                node.connection = Err(Some(error));
            }
        });
    }

    fn modify(&self, server: &Server, change: impl FnOnce(&mut Node)) {
        self.state.send_modify(|state| state.nodes.get_mut(server).map_or((), change));
    }
}
