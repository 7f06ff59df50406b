//! Routes commands by key to the servers of a Redis deployment, over shared connections.
//!
//! fred is used for single connections only. Its own routing stalls all servers while one of them is unavailable, and its
//! handling of ASK can mix up replies. So routing, redirection and reconnecting are done here and in `nodes`.

use std::{sync::Arc, time::Duration};

use fred::{
    prelude::{Error, ErrorKind, FromValue, Value},
    util::redis_keyslot,
};
use futures_util::future::{BoxFuture, join_all};
use thiserror::Error as ThisError;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Connection, Incarnation, Redis,
    connection::address,
    dedicated::Dedicated,
    errors::{error_code, redirected, remedy, replaced},
    nodes::{Destination, Nodes},
    route::{Failed, Retry, Route},
};

const SCRIPTS_NEEDED: &str = "consumers and likesctl need scripts: do not rename EVAL (rename-command), and grant it to the user of REDIS_URL";

/// Connections to all servers that accept writes: the primaries. They close when the last clone is dropped.
#[derive(Clone)]
pub struct Connections {
    nodes: Arc<Nodes>,
    /// The only incarnation that may receive a command; `None` for any.
    only: Option<Incarnation>,
    _stop: Arc<DropGuard>,
}

/// Successful reply.
struct Answer {
    value: Value,
    /// Incarnation that replied.
    incarnation: Incarnation,
    attempts: u64,
}

/// A server that cannot serve all commands.
#[derive(Debug, ThisError)]
#[error("{server}: {problem}{}", remedy.map(|remedy| format!("; {remedy}")).unwrap_or_default())]
pub struct Impaired {
    /// Host and port.
    pub server: String,
    /// The reply of the server, or that there is no connection.
    pub problem: String,
    /// What to do about it, where that is known.
    pub remedy: Option<&'static str>,
}

impl Connections {
    /// Discovers the servers and connects to them. At least one must accept; the others are connected in the background.
    pub(super) async fn open(redis: &Redis) -> Result<Self, Error> {
        let stop = CancellationToken::new();
        let nodes = Nodes::open(redis, stop.clone()).await?;
        Ok(Self { nodes, only: None, _stop: Arc::new(stop.drop_guard()) })
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
        self.run_identifying(key, retry, name, args).await?.0.convert()
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
        let answer = self.run_boxed(key, retry, name, args).await;
        answer.map(|answer| (answer.value, answer.incarnation)).map_err(|failed| failed.error)
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

    /// As [`Connections::run`]; also returns the number of attempts, and whether a failed command may have been executed.
    ///
    /// # Errors
    /// As [`Connections::run`].
    pub async fn run_counting<R: FromValue>(
        &self,
        key: &str,
        retry: Retry,
        name: &'static str,
        args: Vec<Value>,
    ) -> Result<(R, u64), Failed> {
        let answer = self.run_boxed(key, retry, name, args).await?;
        let value = answer.value.convert().map_err(|error| Failed { error, may_be_executed: true })?;
        Ok((value, answer.attempts))
    }

    /// Boxes a future of some KiB, so that it is compiled once and not for every type of reply in every crate.
    fn run_boxed(
        &self,
        key: &str,
        retry: Retry,
        name: &'static str,
        args: Vec<Value>,
    ) -> BoxFuture<'_, Result<Answer, Failed>> {
        Box::pin(self.run_in_slot(redis_keyslot(key.as_bytes()), retry, name, args))
    }

    async fn run_in_slot(
        &self,
        slot: u16,
        retry: Retry,
        name: &'static str,
        args: Vec<Value>,
    ) -> Result<Answer, Failed> {
        let mut route = Route::new(&self.nodes, slot, retry, self.nodes.redis.timeout);
        loop {
            let node = match self.nodes.connection_to(route.destination(), route.deadline).await {
                Ok(node) => node,
                Err(error) => return Err(route.not_sent(error)),
            };
            if let Some(only) = self.only.filter(|only| *only != node.incarnation) {
                let answer = if route.is_asked() {
                    Err(replaced(&node.server))
                } else {
                    Box::pin(self.ask_only(only, &node, name, args)).await
                };
                return answer.map_err(|error| route.failed(error));
            }
            route.sent += 1;
            let answer = if route.is_asked() {
                // Boxed, so that a rare case does not enlarge the future.
                Box::pin(node.send_asking(name, args.clone())).await
            } else {
                node.send_value(name, args.clone()).await
            };
            match answer {
                Ok(value) => {
                    return Ok(Answer { value, incarnation: node.incarnation, attempts: route.sent });
                }
                Err(error) => route.answered(error, &node).await?,
            }
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
        let owner = Destination::Owner(redis_keyslot(key.as_bytes()));
        Box::pin(async move {
            let server = self.nodes.server_of(&owner)?;
            let opened = self.nodes.redis.with_timeout(limit).open(&server).await;
            let connection = opened.inspect_err(|_| self.nodes.suspect_change())?;
            let answer = connection.send_value(name, args).await;
            let value = answer.inspect_err(|error| self.nodes.report_error(error, &connection))?;
            Ok((value, connection.incarnation))
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
        let node = self.nodes.find(|node| node.incarnation == only);
        let node = node.ok_or_else(|| replaced(&owner.server))?;
        match node.send_asking(name, args).await {
            Ok(value) => Ok(Answer { value, incarnation: only, attempts: 1 }),
            Err(error) if redirected(&error, "MOVED", &node.server.host).is_some() => {
                Err(replaced(&owner.server))
            }
            Err(error) => Err(error),
        }
    }

    /// Returns connections of their own for commands with a key.
    pub fn dedicated(&self, key: &str) -> Dedicated {
        Dedicated::new(Arc::clone(&self.nodes), redis_keyslot(key.as_bytes()))
    }

    /// The connected servers.
    pub fn servers(&self) -> Vec<Arc<Connection>> {
        self.nodes.connected()
    }

    /// Returns the number of servers, and those that are not connected, do not reply or do not accept writes.
    pub fn check(&self) -> BoxFuture<'_, (usize, Vec<Impaired>)> {
        Box::pin(async move {
            let servers = self.nodes.servers();
            let all = servers.len();
            let checked = servers.into_iter().map(async |(server, connection)| {
                let accepts = async {
                    let connection = connection?;
                    let accepts = accepts_writes(&connection).await;
                    accepts.inspect_err(|error| self.nodes.report_error(error, &connection))
                };
                let error = accepts.await.err()?;
                let problem = error.details().to_owned();
                Some(Impaired { server: address(&server), problem, remedy: remedy(&error) })
            });
            (all, join_all(checked).await.into_iter().flatten().collect())
        })
    }

    /// Returns the connected servers that refuse scripts.
    pub fn check_scripts(&self) -> BoxFuture<'_, Vec<Impaired>> {
        Box::pin(async move {
            let checked = self.servers().into_iter().map(async |server| {
                let ran = server.send::<Value>("EVAL", ["return 1", "0"].map(Value::from).into()).await;
                // Other errors are those of `check`.
                let refusal =
                    ran.err().filter(|error| matches!(error_code(error), Some("ERR" | "NOPERM")))?;
                let problem = format!("Redis refuses EVAL: {}", refusal.details());
                Some(Impaired { server: server.address(), problem, remedy: Some(SCRIPTS_NEEDED) })
            });
            join_all(checked).await.into_iter().flatten().collect()
        })
    }
}

/// Redis refuses PING where it cannot save to its disk (MISCONF), while it loads its data, and during a long script.
async fn accepts_writes(server: &Connection) -> Result<(), Error> {
    match server.send::<Value>("PING", Vec::new()).await {
        Ok(_) => {}
        Err(error) if error_code(&error) == Some("NOPERM") => {}
        Err(error) => return Err(error),
    }
    // A server that refuses INFO to this user is assumed to be a primary.
    let info = server.send::<String>("INFO", vec!["replication".into()]).await.unwrap_or_default();
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    if field("role") != Some("slave") || field("slave_read_only") == Some("0") {
        return Ok(());
    }
    let primary = field("master_host").zip(field("master_port"));
    let primary = primary.map_or_else(String::new, |(host, port)| format!(" of {host}:{port}"));
    let text = format!("READONLY the server is a replica{primary} and refuses writes");
    Err(Error::new(ErrorKind::Unknown, text))
}
