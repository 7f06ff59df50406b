//! How to reach Redis: one server, one that sentinels name, or a cluster.
//!
//! Together with `agreement`, `backlog` and the stream files of the programs this is all that touches fred.

mod connections;
mod layout;
mod pipeline;
mod tls;

use std::{future::Future, pin::pin, sync::Arc, time::Duration};

use fred::{
    prelude::{
        Builder, Client, ClientLike, Config, Error, ErrorKind, FromValue, ServerConfig, TcpConfig, Value,
    },
    types::config::Server,
};
use futures_util::{FutureExt, StreamExt, TryFutureExt, future::try_join, stream::FuturesUnordered};
use secrecy::ExposeSecret;
use tokio::time::{Instant, timeout_at};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

pub use self::connections::{Connections, Repeat};
use self::{layout::Layout, tls::Files};
use crate::{cli::SettingError, config::RedisArgs};

/// Over the command timeout: how long what was sent may stay unacknowledged before the system gives up a connection.
const USER_TIMEOUT_MARGIN: Duration = Duration::from_secs(3);

/// How long the other nodes of a cluster may take to answer once one has.
const OTHER_ANSWERS: Duration = Duration::from_millis(100);

const URLS: &str = "allowed is a URL like redis://user:password@host:6379/0, redis-cluster://host:7000?node=other:7001 or \
     redis-sentinel://host:26379/0?node=other:26379&sentinelServiceName=name, with TLS rediss://, rediss-cluster:// or \
     rediss-sentinel://";

/// How to reach Redis.
#[derive(Clone)]
pub struct Redis {
    deployment: Deployment,
    /// For every server; which one it is comes on top.
    login: Config,
    timeout: Duration,
    address: String,
}

/// How Redis is run.
#[derive(Clone)]
enum Deployment {
    One(Server),
    Sentinels { sentinels: Vec<Server>, login: Box<Config>, master: String },
    Cluster { seeds: Vec<Server> },
}

/// One connection to one server, never made anew behind anybody's back. It ends when dropped.
pub struct Connection {
    server: Server,
    client: Client,
    /// Cancelled when it has ended, or is to end.
    ended: CancellationToken,
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
        let answer = tokio::select! {
            biased;
            answer = pipeline::send(&self.client, name, args) => answer.and_then(Value::convert),
            () = self.ended.cancelled() => Err(Error::new(ErrorKind::IO, "the connection to Redis broke")),
        };
        if answer.as_ref().is_err_and(|error| *error.kind() == ErrorKind::Timeout) {
            self.end();
        }
        answer
    }

    fn end(&self) {
        self.ended.cancel();
    }

    fn has_ended(&self) -> bool {
        self.ended.is_cancelled()
    }
}

impl Redis {
    /// Reads the URL and the files of certificates, and connects to nothing yet.
    pub fn new(args: &RedisArgs) -> Result<Self, SettingError> {
        Self::with(args.url()?.expose_secret(), args.redis_timeout, Files::of(args))
    }

    /// At this URL, with so much time for a command.
    ///
    /// # Errors
    /// When the URL can't be used.
    pub fn at(url: &str, timeout: Duration) -> Result<Self, SettingError> {
        Self::with(url, timeout, Files::default())
    }

    fn with(url: &str, timeout: Duration, files: Files<'_>) -> Result<Self, SettingError> {
        let (scheme, rest) = url.split_once("://").unwrap_or_default();
        let (scheme, tls) = match scheme.strip_prefix("rediss") {
            Some(kind) => (format!("redis{kind}"), true),
            None => (scheme.to_owned(), false),
        };
        if !["redis", "redis-cluster", "redis-sentinel"].contains(&scheme.as_str()) {
            return Err(SettingError::new("REDIS_URL", URLS));
        }
        // For TLS the parser would look for certificates of its own choice.
        let url = &format!("{scheme}://{rest}");
        // The parser's own error might quote a part of the URL, and so of a password.
        let config = match scheme.as_str() {
            "redis-cluster" => Config::from_url_clustered(url),
            "redis-sentinel" => Config::from_url_sentinel(url),
            _ => Config::from_url_centralized(url),
        };
        let mut config =
            config.map_err(|_| SettingError::new("REDIS_URL", format!("can't be read: {URLS}")))?;
        config.tls = if tls { Some(files.read()?) } else { files.unused().map(|()| None)? };
        let hosts = config.server.hosts();
        let address = hosts.iter().map(address).collect::<Vec<_>>().join(", ");
        let deployment = match &config.server {
            ServerConfig::Centralized { server } => Deployment::One(server.clone()),
            ServerConfig::Clustered { hosts, .. } => Deployment::Cluster { seeds: hosts.clone() },
            ServerConfig::Sentinel { hosts, service_name, username, password } => Deployment::Sentinels {
                sentinels: hosts.clone(),
                login: Box::new(Config {
                    username: username.clone(),
                    password: password.clone(),
                    tls: config.tls.clone(),
                    ..Config::default()
                }),
                master: service_name.clone(),
            },
        };
        Ok(Self { deployment, login: config, timeout, address })
    }

    /// Hosts and ports of the URL, for people to read.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Finds the servers and connects to them. From then on connections are kept up, and the log says how they are.
    ///
    /// # Errors
    /// When nobody tells where the servers are, or none of them lets us in.
    pub async fn connect(&self) -> Result<Connections, Error> {
        // Rare, and so not always part of what is waited for.
        Box::pin(Connections::open(self)).await
    }

    async fn open(&self, server: &Server) -> Result<Connection, Error> {
        open(&self.login, server, self.timeout).await
    }

    /// Whether the servers are what the URL says.
    async fn check(&self, connection: &Connection) -> Result<(), Error> {
        if matches!(self.deployment, Deployment::Cluster { .. }) {
            return Ok(());
        }
        // A server that doesn't tell is taken for what it should be.
        let about = connection.send::<String>("INFO", vec!["cluster".into()]).await.unwrap_or_default();
        if about.contains("cluster_enabled:1") {
            let server = address(&connection.server);
            let what = format!("{server} is a node of a cluster: use redis-cluster://{server}");
            return Err(Error::new(ErrorKind::Config, what));
        }
        Ok(())
    }

    /// Which servers have which slots. Those in `connected` are asked first, and if need be those in `known` and in
    /// the URL.
    async fn discover(&self, connected: &[Arc<Connection>], known: &[Server]) -> Result<Layout, Error> {
        match &self.deployment {
            Deployment::One(server) => Ok(Layout::of_one(server.clone())),
            Deployment::Sentinels { sentinels, login, master } => {
                self.ask_sentinels(sentinels, login, master).await.map(Layout::of_one)
            }
            Deployment::Cluster { seeds } => {
                if let Ok(layout) = newest(connected.iter().map(|connection| ask_node(connection))).await {
                    return Ok(layout);
                }
                let mut servers: Vec<&Server> = seeds.iter().chain(known).collect();
                servers.sort_unstable();
                servers.dedup();
                let asked = servers
                    .into_iter()
                    .map(|server| self.open(server).and_then(async |connection| ask_node(&connection).await));
                newest(asked).await
            }
        }
    }

    /// Source: "Guidelines for Redis clients with support for Redis Sentinel".
    async fn ask_sentinels(
        &self,
        sentinels: &[Server],
        login: &Config,
        master: &str,
    ) -> Result<Server, Error> {
        let mut failed = Error::new(ErrorKind::Sentinel, "no sentinels are known");
        for sentinel in sentinels {
            let asked = async {
                let connection = open(login, sentinel, self.timeout).await?;
                let args = ["GET-MASTER-ADDR-BY-NAME", master].map(Value::from).into();
                connection.send::<Option<(String, u16)>>("SENTINEL", args).await
            };
            match asked.await {
                Ok(Some((host, port))) => return Ok(Server::new(host, port)),
                Ok(None) => {
                    let why = format!("{} knows no master of the name '{master}'", address(sentinel));
                    failed = Error::new(ErrorKind::Sentinel, why);
                }
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }
}

async fn open(login: &Config, server: &Server, answer_within: Duration) -> Result<Connection, Error> {
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

/// What a node of a cluster thinks of the cluster, with how new that is.
async fn ask_node(connection: &Connection) -> Result<(u64, Layout), Error> {
    let (info, slots) = try_join(
        connection.send::<String>("CLUSTER", vec!["INFO".into()]),
        connection.send::<Value>("CLUSTER", vec!["SLOTS".into()]),
    )
    .await?;
    let epoch =
        info.lines().find_map(|line| line.strip_prefix("cluster_current_epoch:")?.trim().parse().ok());
    Ok((epoch.unwrap_or(0), Layout::of_cluster(slots, &connection.server.host)?))
}

/// Of several answers that of the newest epoch: a node that was cut off from the others doesn't know better. Once there
/// is one, nodes that are slow to answer are waited for only a little.
async fn newest(
    asked: impl Iterator<Item = impl Future<Output = Result<(u64, Layout), Error>>>,
) -> Result<Layout, Error> {
    let mut asked: FuturesUnordered<_> = asked.collect();
    let mut best: Option<(u64, Layout)> = None;
    let mut failed = Error::new(ErrorKind::Cluster, "nobody is there to tell about the cluster");
    let mut until = None;
    loop {
        let answer = match until {
            None => asked.next().await,
            Some(until) => timeout_at(until, asked.next()).await.unwrap_or_default(),
        };
        match answer {
            None => return best.map(|(_, layout)| layout).ok_or(failed),
            Some(Ok((epoch, layout))) => {
                until.get_or_insert_with(|| Instant::now() + OTHER_ANSWERS);
                let how_good = (epoch, layout.covered());
                if best.as_ref().is_none_or(|(newest, best)| how_good > (*newest, best.covered())) {
                    best = Some((epoch, layout));
                }
            }
            Some(Err(error)) => failed = error,
        }
    }
}

fn address(server: &Server) -> String {
    format!("{}:{}", server.host, server.port)
}

/// What an error says about its command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The server answered, and will answer so again.
    Refused,
    /// It was not carried out, and may be soon, here or elsewhere.
    NotDone,
    /// It was carried out or not.
    Unknown,
}

fn outcome(error: &Error) -> Outcome {
    match (error_code(error), error.kind()) {
        // The last two come from a server that was the master a moment ago, or will be.
        (Some("MOVED" | "ASK" | "TRYAGAIN" | "LOADING" | "READONLY" | "MASTERDOWN"), _) => Outcome::NotDone,
        // fred closes the connection over this one, and gives it as the answer to all that was in flight.
        (Some("CLUSTERDOWN"), _)
        | (
            None,
            ErrorKind::IO | ErrorKind::Canceled | ErrorKind::Timeout | ErrorKind::Tls | ErrorKind::Unknown,
        ) => Outcome::Unknown,
        _ => Outcome::Refused,
    }
}

/// The slot and the server that a redirection names, `MOVED 3999 127.0.0.1:6381` or `ASK 3999 127.0.0.1:6381`.
fn redirected(error: &Error, code: &str) -> Option<(u16, Server)> {
    let mut words = error.details().split(' ');
    let (_, slot, server) = (words.next().filter(|word| *word == code)?, words.next()?, words.next()?);
    let (host, port) = server.rsplit_once(':')?;
    Some((slot.parse().ok()?, Server::new(host, port.parse().ok()?)))
}

/// Whether Redis doesn't let us in, or we will not be let in by such a one, which waiting will not change.
pub fn is_refusal(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Auth | ErrorKind::Config | ErrorKind::Tls)
        || matches!(error_code(error), Some("NOAUTH" | "WRONGPASS" | "NOPERM"))
        || error.details().contains("DB index is out of range")
}

/// Whether the server, or what is between, is in trouble: no answer, or a broken connection.
pub fn is_away(error: &Error) -> bool {
    outcome(error) != Outcome::Refused
}

/// The error code that a Redis server's error starts with, like `NOGROUP` or `OOM`.
pub fn error_code(error: &Error) -> Option<&str> {
    let code = error.details().split(' ').next()?;
    (code.len() >= 2 && code.bytes().all(|b| b.is_ascii_uppercase())).then_some(code)
}

/// What kind of error it is, for metrics and spans: one of few.
pub fn error_type(error: &Error) -> &'static str {
    const CODES: [&str; 16] = [
        "BUSY",
        "CLUSTERDOWN",
        "ERR",
        "LOADING",
        "MASTERDOWN",
        "MISCONF",
        "MOVED",
        "NOAUTH",
        "NOGROUP",
        "NOPERM",
        "NOREPLICAS",
        "OOM",
        "READONLY",
        "TRYAGAIN",
        "WRONGPASS",
        "WRONGTYPE",
    ];
    let code = error_code(error).and_then(|code| CODES.into_iter().find(|known| *known == code));
    code.unwrap_or(match error.kind() {
        ErrorKind::Timeout => "timeout",
        ErrorKind::IO | ErrorKind::Canceled | ErrorKind::Tls => "connection",
        _ => "_OTHER",
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        redis: RedisArgs,
    }

    fn redis(url: &str) -> Result<Redis, SettingError> {
        Redis::new(&Flags::try_parse_from(["program", "--redis-url", url]).unwrap().redis)
    }

    #[test]
    fn a_bad_url_is_refused_without_repeating_it() {
        for url in [
            "http://:hunter2@host",
            "redisss://:hunter2@host",
            "rediss-unix://:hunter2@host",
            "redis://:hunter2@host:port",
            "redis-sentinel://:hunter2@host",
            "hunter2",
        ] {
            let error = redis(url).err().unwrap().to_string();
            assert!(error.starts_with("REDIS_URL: ") && !error.contains("hunter2"), "{error}");
        }
        assert_eq!(redis("redis://user:hunter2@host:7000/1").ok().unwrap().address(), "host:7000");
    }

    #[test]
    fn clusters_and_sentinels_have_several_addresses() {
        let cluster = redis("redis-cluster://:hunter2@a:7000?node=b:7001").ok().unwrap();
        assert_eq!(cluster.address(), "b:7001, a:7000");
        let sentinels = redis("redis-sentinel://a:1/2?node=b:2&sentinelServiceName=m").ok().unwrap();
        assert!(matches!(sentinels.deployment, Deployment::Sentinels { ref master, .. } if master == "m"));
    }

    #[test]
    fn errors_say_whether_a_command_was_carried_out() {
        let outcome = |kind, text: &'static str| outcome(&Error::new(kind, text));
        assert_eq!(outcome(ErrorKind::Cluster, "ASK 1 127.0.0.1:7"), Outcome::NotDone);
        assert_eq!(outcome(ErrorKind::Unknown, "TRYAGAIN Multiple keys"), Outcome::NotDone);
        assert_eq!(outcome(ErrorKind::Cluster, "CLUSTERDOWN The cluster is down"), Outcome::Unknown);
        assert_eq!(outcome(ErrorKind::Timeout, "Request timed out."), Outcome::Unknown);
        assert_eq!(outcome(ErrorKind::Unknown, "NOGROUP No such key"), Outcome::Refused);
        assert_eq!(outcome(ErrorKind::Parse, "Cannot convert"), Outcome::Refused);
        let moved = Error::new(ErrorKind::Cluster, "MOVED 3999 127.0.0.1:6381");
        assert_eq!(redirected(&moved, "MOVED"), Some((3_999, Server::new("127.0.0.1", 6_381))));
        assert_eq!(redirected(&moved, "ASK"), None);
    }

    #[test]
    fn error_codes_are_those_of_the_server() {
        let code = |text: &'static str| error_code(&Error::new(ErrorKind::Unknown, text)).map(str::to_owned);
        assert_eq!(code("NOGROUP No such key").as_deref(), Some("NOGROUP"));
        assert_eq!(code("OOM command not allowed").as_deref(), Some("OOM"));
        assert_eq!(code("Connection reset"), None);
    }
}
