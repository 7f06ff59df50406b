//! One connection to one server.

use std::{pin::pin, time::Duration};

use fred::{
    prelude::{
        Builder, Client, ClientLike, Config, Error, ErrorKind, FromValue, ServerConfig, TcpConfig, Value,
    },
    types::config::Server,
};
use futures_util::{FutureExt, future::BoxFuture};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{Incarnation, errors::readable, pipeline, tls};

/// Added to the command timeout for TCP_USER_TIMEOUT, after which the kernel closes a connection with unacknowledged data.
const USER_TIMEOUT_MARGIN: Duration = Duration::from_secs(3);

/// Connection to one server. It never reconnects, and closes when dropped.
pub struct Connection {
    pub(super) server: Server,
    /// Identity of the data behind this connection. A connection never outlives it unnoticed: a server that restarts closes
    /// its connections, and one that is demoted rejects the next command.
    pub(super) incarnation: Incarnation,
    client: Client,
    /// Cancelled when the connection has ended or should end.
    pub(super) ended: CancellationToken,
    _router: AbortOnDropHandle<()>,
}

impl Connection {
    /// Returns the server's host and port.
    pub fn address(&self) -> String {
        address(&self.server)
    }

    /// Sends a command. Commands in flight when the connection ends fail at once, as do later commands. A timeout ends the
    /// connection, because other commands on it would time out as well.
    ///
    /// # Errors
    /// The server's error, or a lost connection or timeout.
    pub async fn send<R: FromValue>(&self, name: &'static str, args: Vec<Value>) -> Result<R, Error> {
        self.send_boxed(name, args).await.and_then(Value::convert)
    }

    /// Boxes fred's large future, so that it is compiled once and not in every crate that sends a command.
    fn send_boxed(&self, name: &'static str, args: Vec<Value>) -> BoxFuture<'_, Result<Value, Error>> {
        Box::pin(self.send_value(name, args))
    }

    pub(super) async fn send_value(&self, name: &'static str, args: Vec<Value>) -> Result<Value, Error> {
        self.send_unexplained(name, args).await.map_err(|error| readable(&error))
    }

    async fn send_unexplained(&self, name: &'static str, args: Vec<Value>) -> Result<Value, Error> {
        let answer = tokio::select! {
            biased;
            answer = pipeline::send(&self.client, name, args) => answer,
            () = self.ended.cancelled() => Err(Error::new(ErrorKind::IO, "connection to Redis lost")),
        };
        if answer.as_ref().is_err_and(|error| *error.kind() == ErrorKind::Timeout) {
            self.end();
        }
        answer
    }

    pub(super) fn end(&self) {
        self.ended.cancel();
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.is_cancelled()
    }
}

pub(super) async fn open(
    login: &Config,
    server: &Server,
    answer_within: Duration,
) -> Result<Connection, Error> {
    let opened = open_unexplained(login, server, answer_within).await;
    opened.map_err(|error| tls::explained(&error, login.tls.is_some()))
}

async fn open_unexplained(
    login: &Config,
    server: &Server,
    answer_within: Duration,
) -> Result<Connection, Error> {
    let config = Config {
        server: ServerConfig::Centralized { server: server.clone() },
        fail_fast: true,
        ..login.clone()
    };
    let client = Builder::from_config(config)
        .with_performance_config(|performance| performance.default_command_timeout = answer_within)
        .with_connection_config(|connection| {
            connection.connection_timeout = answer_within;
            connection.internal_command_timeout = answer_within;
            connection.max_command_attempts = 1;
            connection.tcp = TcpConfig {
                nodelay: Some(true),
                user_timeout: Some(answer_within + USER_TIMEOUT_MARGIN),
                ..TcpConfig::default()
            };
        })
        .build()?;
    let router = connect(&client).await?;
    let ended = CancellationToken::new();
    let ends = ended.clone();
    let router = tokio::spawn(async move {
        let _ends = ends.clone().drop_guard();
        tokio::select! {
            // The reason is the error of the commands in flight.
            _ = router => {}
            () = ends.cancelled() => {}
        }
    });
    let router = AbortOnDropHandle::new(router);
    let incarnation = Incarnation::default();
    let mut connection = Connection { server: server.clone(), incarnation, client, ended, _router: router };
    // A server that is still loading its dataset accepts AUTH.
    connection.send_unexplained("PING", Vec::new()).await?;
    connection.incarnation = Incarnation::of(&connection.client).await;
    Ok(connection)
}

/// Connects, and returns the task that serves the connection. Without a reconnect policy the task ends with its connection,
/// and later commands would never complete; `ended` of a [`Connection`] fails them.
async fn connect(client: &Client) -> Result<AbortOnDropHandle<Result<(), Error>>, Error> {
    // fred's `wait_for_connect` first checks for a connection and then subscribes to its notification. A connection made in
    // between would be missed and waited for without end, so the future must be polled before connecting.
    let mut connected = pin!(client.wait_for_connect());
    let _not_yet = connected.as_mut().now_or_never();
    let mut router = AbortOnDropHandle::new(client.connect());
    tokio::select! {
        connected = connected => connected.map(|()| router),
        ended = &mut router => {
            let silent = || Error::new(ErrorKind::IO, "cannot connect to Redis");
            Err(ended.ok().and_then(Result::err).unwrap_or_else(silent))
        }
    }
}

pub(super) fn address(server: &Server) -> String {
    format!("{}:{}", server.host, server.port)
}
