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

use super::{pipeline, tls};

/// Over the command timeout: how long what was sent may stay unacknowledged before the system gives up a connection.
const USER_TIMEOUT_MARGIN: Duration = Duration::from_secs(3);

/// One connection to one server. It never reconnects by itself, and ends when dropped.
pub struct Connection {
    pub(super) server: Server,
    client: Client,
    /// Cancelled when it has ended, or is to end.
    pub(super) ended: CancellationToken,
    _router: AbortOnDropHandle<()>,
}

impl Connection {
    /// Where the server is, for people.
    pub fn address(&self) -> String {
        address(&self.server)
    }

    /// Sends a command. What is in flight when the connection ends fails at once, and so does what is sent after that.
    /// A server that doesn't answer in time ends the connection: whatever else is asked on it would wait for as long.
    ///
    /// # Errors
    /// What the server said, or that there was no answer.
    pub async fn send<R: FromValue>(&self, name: &'static str, args: Vec<Value>) -> Result<R, Error> {
        self.send_boxed(name, args).await.and_then(Value::convert)
    }

    /// Compiles fred's large future here, once, and not in every crate that sends a command.
    fn send_boxed(&self, name: &'static str, args: Vec<Value>) -> BoxFuture<'_, Result<Value, Error>> {
        Box::pin(self.send_value(name, args))
    }

    pub(super) async fn send_value(&self, name: &'static str, args: Vec<Value>) -> Result<Value, Error> {
        let answer = tokio::select! {
            biased;
            answer = pipeline::send(&self.client, name, args) => answer,
            () = self.ended.cancelled() => Err(Error::new(ErrorKind::IO, "the connection to Redis broke")),
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
    opened.map_err(|error| tls::explained(error, login.tls.is_some()))
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
            // Why it has ended is the error of whatever was in flight.
            _ = router => {}
            () = ends.cancelled() => {}
        }
    });
    let router = AbortOnDropHandle::new(router);
    let connection = Connection { server: server.clone(), client, ended, _router: router };
    // One that has a password lets us in while it still loads its data.
    connection.send::<Value>("PING", Vec::new()).await?;
    Ok(connection)
}

/// The task that serves the client's connection, once there is one. With no policy for reconnecting it ends with its
/// connection. What is sent to it after that would wait in vain: that is what `ended` of a [`Connection`] is for.
async fn connect(client: &Client) -> Result<AbortOnDropHandle<Result<(), Error>>, Error> {
    // fred looks whether there is a connection, and then begins to listen for one. One that came in between would be
    // waited for without end, so the listening has to begin before the connecting.
    let mut connected = pin!(client.wait_for_connect());
    let _not_yet = connected.as_mut().now_or_never();
    let mut router = AbortOnDropHandle::new(client.connect());
    tokio::select! {
        connected = connected => connected.map(|()| router),
        ended = &mut router => {
            let silent = || Error::new(ErrorKind::IO, "the connection to Redis could not be made");
            Err(ended.ok().and_then(Result::err).unwrap_or_else(silent))
        }
    }
}

pub(super) fn address(server: &Server) -> String {
    format!("{}:{}", server.host, server.port)
}
