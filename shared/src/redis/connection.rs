//! One connection to one server.

use std::{
    fmt,
    future::ready,
    path::PathBuf,
    pin::pin,
    sync::{Arc, OnceLock},
    time::Duration,
};

use fred::{
    prelude::{
        Builder, Client, ClientLike, Config, Error, ErrorKind, FromValue, ServerConfig, TcpConfig, Value,
    },
    types::config::{CredentialProvider, Server},
};
use futures_util::{FutureExt, future::BoxFuture};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    Incarnation,
    dedicated::Command,
    errors::{error_code, readable},
    pipeline, tls,
};

/// Added to the command timeout for TCP_USER_TIMEOUT, after which the kernel closes a connection with unacknowledged data.
const USER_TIMEOUT_MARGIN: Duration = Duration::from_secs(3);

/// Prefix of a command for a slot that is moving to the server.
const ASKING: Command = ("ASKING", Vec::new());

/// Connection to one server. It never reconnects, and closes when dropped.
pub struct Connection {
    pub(super) server: Server,
    /// Identity of the data behind this connection. A connection never outlives it unnoticed: a server that restarts closes
    /// its connections, and one that is demoted rejects the next command.
    pub(super) incarnation: Incarnation,
    client: Client,
    /// Cancelled when the connection has ended or should end.
    pub(super) ended: CancellationToken,
    /// The reply that ended the connection.
    cause: OnceLock<Error>,
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

    /// Sends a command to a server that a slot is moving to. ASKING applies to the next command on the connection only.
    pub(super) async fn send_asking(&self, name: &'static str, args: Vec<Value>) -> Result<Value, Error> {
        let [asking, answer] = self.send_together([ASKING, (name, args)]).await;
        answer.map_err(|error| asking.err().unwrap_or(error))
    }

    /// Sends two commands one right after the other, after ASKING if the slot is moving to this server.
    pub(super) async fn send_both(
        &self,
        is_asked: bool,
        [first, second]: [Command; 2],
    ) -> (Result<Value, Error>, Result<Value, Error>) {
        if !is_asked {
            let [first, second] = self.send_together([first, second]).await;
            return (first, second);
        }
        let [asking, first, second] = self.send_together([ASKING, first, second]).await;
        (first.map_err(|error| asking.err().unwrap_or(error)), second)
    }

    /// Sends commands without those of other tasks between them.
    async fn send_together<const N: usize>(&self, commands: [Command; N]) -> [Result<Value, Error>; N] {
        let answers = tokio::select! {
            biased;
            answers = pipeline::send_together(&self.client, commands.into()) => answers,
            () = self.ended.cancelled() => Err(lost()),
        };
        let answers = answers.and_then(|answers| {
            let unexpected = || Error::new(ErrorKind::Protocol, "unexpected number of replies from Redis");
            <[Result<Value, Error>; N]>::try_from(answers).map_err(|_| unexpected())
        });
        // Without all replies, any of the commands may have been executed.
        let answers = answers.unwrap_or_else(|error| std::array::from_fn(|_| Err(error.clone())));
        answers.map(|answer| self.checked(answer).map_err(|error| readable(&error)))
    }

    async fn send_unexplained(&self, name: &'static str, args: Vec<Value>) -> Result<Value, Error> {
        let answer = tokio::select! {
            biased;
            answer = pipeline::send(&self.client, name, args) => answer,
            () = self.ended.cancelled() => Err(lost()),
        };
        self.checked(answer)
    }

    /// Ends the connection after a timeout.
    fn checked(&self, answer: Result<Value, Error>) -> Result<Value, Error> {
        if answer.as_ref().is_err_and(|error| *error.kind() == ErrorKind::Timeout) {
            self.end();
        }
        answer
    }

    pub(super) fn end(&self) {
        self.ended.cancel();
    }

    pub(super) fn end_because(&self, error: &Error) {
        let _ = self.cause.set(error.clone());
        self.end();
    }

    pub(super) fn cause(&self) -> Option<Error> {
        self.cause.get().cloned()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.is_cancelled()
    }
}

fn lost() -> Error {
    Error::new(ErrorKind::IO, "connection to Redis lost")
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
    let credentials = Credentials { user: login.username.clone(), password: login.password.clone() };
    let config = Config {
        server: server_config(server),
        fail_fast: true,
        credential_provider: Some(Arc::new(credentials)),
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
    let mut connection = Connection {
        server: server.clone(),
        incarnation,
        client,
        ended,
        cause: OnceLock::new(),
        _router: router,
    };
    match connection.send_unexplained("PING", Vec::new()).await {
        // An error is a reply as well: the server may be loading its data or refuse only writes. Without a password it would
        // refuse every command.
        Err(error) if matches!(error_code(&error), None | Some("NOAUTH")) => Err(error),
        _ => {
            connection.incarnation = Incarnation::of(&connection.client).await;
            Ok(connection)
        }
    }
}

/// Credentials of a connection. A provider of credentials keeps fred from sending PING first and giving up at any error, even
/// where the server only refuses writes.
struct Credentials {
    user: Option<String>,
    password: Option<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

impl CredentialProvider for Credentials {
    fn fetch<'a, 'b, 'c>(
        &'a self,
        _server: Option<&'b Server>,
    ) -> BoxFuture<'c, Result<(Option<String>, Option<String>), Error>>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        Box::pin(ready(Ok((self.user.clone(), self.password.clone()))))
    }
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

/// Port of a server that is the path of a Unix socket.
pub(super) const UNIX_SOCKET: u16 = 0;

fn server_config(server: &Server) -> ServerConfig {
    if server.port == UNIX_SOCKET {
        ServerConfig::Unix { path: PathBuf::from(&*server.host) }
    } else {
        ServerConfig::Centralized { server: server.clone() }
    }
}

pub(super) fn address(server: &Server) -> String {
    if server.port == UNIX_SOCKET {
        server.host.to_string()
    } else {
        format!("{}:{}", server.host, server.port)
    }
}
