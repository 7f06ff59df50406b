//! Connections to Redis: a single server, the primary behind Sentinel, or a cluster.
//!
//! Purpose: discover the servers, keep one connection to each, route each command by its key, and classify errors. May
//! depend on `settings`, `tls` and fred. Must not know any command of the pipeline: those are in `cluster_settings`,
//! `backlog` and in the programs.

mod connection;
mod connections;
mod discovery;
mod errors;
mod incarnation;
mod pipeline;
mod tls;
mod topology;

use std::time::Duration;

use fred::{
    prelude::{Config, Error, ErrorKind, ServerConfig},
    types::config::Server,
};
use futures_util::future::BoxFuture;
use secrecy::ExposeSecret;

pub use self::{
    connection::Connection,
    connections::{Connections, Retry},
    errors::{error_code, error_type, is_away, is_refusal, is_replaced, is_unanswered},
    incarnation::Incarnation,
};
use self::{connection::address, tls::Files};
use crate::settings::{
    SettingError,
    args::RedisArgs,
    server_url::{STRAY_AT, check_hosts, check_parameters},
};

const INVALID_URL: &str = "the URL is not valid; expected a URL such as redis://user:password@host:6379/0, \
     redis-cluster://host:7000?node=other:7001 or redis-sentinel://host:26379/0?node=other:26379&sentinelServiceName=name, \
     or with TLS rediss://, rediss-cluster:// or rediss-sentinel://; escape special characters in the user and the password, such \
     as @ as %40 and / as %2F";

/// How to reach Redis.
#[derive(Clone)]
pub struct Redis {
    deployment: Deployment,
    /// Credentials and TLS, the same for every server.
    login: Config,
    timeout: Duration,
    address: String,
}

/// Kind of deployment.
#[derive(Clone)]
enum Deployment {
    One(Server),
    Sentinels { sentinels: Vec<Server>, login: Box<Config>, master: String },
    Cluster { seeds: Vec<Server> },
}

impl Redis {
    /// Reads the URL and the certificate files. Nothing is connected yet.
    pub fn new(args: &RedisArgs) -> Result<Self, SettingError> {
        Self::with(args.url().read()?.expose_secret(), args.redis_timeout, Files::of(args))
    }

    /// Parses a URL. `timeout` is the time limit of a command.
    ///
    /// # Errors
    /// When the URL is invalid.
    pub fn at(url: &str, timeout: Duration) -> Result<Self, SettingError> {
        Self::with(url, timeout, Files::default())
    }

    fn with(url: &str, timeout: Duration, files: Files<'_>) -> Result<Self, SettingError> {
        let bad = |problem: String| SettingError::new("REDIS_URL", problem);
        let (scheme, rest) = url.split_once("://").unwrap_or_default();
        let (scheme, tls) = match scheme.strip_prefix("rediss") {
            Some(kind) => (format!("redis{kind}"), true),
            None => (scheme.to_owned(), false),
        };
        if !["redis", "redis-cluster", "redis-sentinel"].contains(&scheme.as_str()) {
            return Err(SettingError::new("REDIS_URL", INVALID_URL));
        }
        check_parts(&scheme, rest).map_err(bad)?;
        // fred's own parser would choose the trusted certificates for a rediss:// URL itself.
        let url = &format!("{scheme}://{rest}");
        // The parser's error may quote a part of the URL, and so a part of the password.
        let config = match scheme.as_str() {
            "redis-cluster" => Config::from_url_clustered(url),
            "redis-sentinel" => Config::from_url_sentinel(url),
            _ => Config::from_url_centralized(url),
        };
        let mut config = config.map_err(|_| SettingError::new("REDIS_URL", INVALID_URL))?;
        config.tls = if tls { Some(files.read()?) } else { files.unused().map(|()| None)? };
        let hosts = config.server.hosts();
        check_hosts(hosts.iter().map(|server| &*server.host)).map_err(bad)?;
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

    /// Returns the hosts and ports of the URL.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Discovers the servers and connects to them. Lost connections are made again in the background, and logged.
    ///
    /// # Errors
    /// When discovery fails, or no server accepts a connection.
    pub fn connect(&self) -> BoxFuture<'_, Result<Connections, Error>> {
        Box::pin(Connections::open(self))
    }

    /// Connects as [`Self::connect`] does. Separates an invalid setting, which a retry does not fix, from other failures.
    ///
    /// # Errors
    /// As [`Self::connect`]. The inner error is that of the setting.
    pub async fn connect_or_refuse(&self) -> Result<Result<Connections, SettingError>, Error> {
        match self.connect().await {
            Err(error) if errors::is_over_the_url(&error) => {
                Ok(Err(SettingError::new("REDIS_URL", error.details())))
            }
            connected => connected.map(Ok),
        }
    }

    async fn open(&self, server: &Server) -> Result<Connection, Error> {
        connection::open(&self.login, server, self.timeout).await
    }

    /// Checks that the server is of the kind that the URL names.
    async fn check(&self, connection: &Connection) -> Result<(), Error> {
        if matches!(self.deployment, Deployment::Cluster { .. }) {
            return Ok(());
        }
        // A server that rejects INFO is assumed to be of that kind.
        let about = connection.send::<String>("INFO", vec!["cluster".into()]).await.unwrap_or_default();
        if about.contains("cluster_enabled:1") {
            let server = address(&connection.server);
            let text = format!("{server} is a cluster node: use redis-cluster://{server}");
            return Err(Error::new(ErrorKind::Config, text));
        }
        Ok(())
    }
}

/// Checks the parts after the scheme for traces of a password with special characters.
fn check_parts(scheme: &str, rest: &str) -> Result<(), String> {
    let after_hosts = rest.find(['/', '?', '#']).map_or("", |at| &rest[at..]);
    let (place, fragment) = after_hosts.split_once('#').unwrap_or((after_hosts, ""));
    let (path, query) = place.split_once('?').unwrap_or((place, ""));
    if path.contains('@') || fragment.contains('@') {
        return Err(STRAY_AT.to_owned());
    }
    check_parameters(
        query,
        match scheme {
            "redis-cluster" => &["node"],
            "redis-sentinel" => &["node", "sentinelServiceName", "sentinelUsername", "sentinelPassword"],
            _ => &[],
        },
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;
    use crate::error_chain::one_line;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        redis: RedisArgs,
    }

    fn redis(url: &str) -> Result<Redis, SettingError> {
        Redis::new(&Flags::try_parse_from(["program", "--redis-url", url]).unwrap().redis)
    }

    #[test]
    fn an_invalid_url_is_refused_without_showing_it() {
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
    fn a_special_character_in_a_password_is_refused_or_belongs_to_it() {
        for url in [
            "redis://u:6380/hunter2@host",
            "redis://u:6380?hunter2@host/0",
            "redis://u:6380#hunter2@host/0",
            "redis://u:6380?hunter2=x@host/0",
            "redis-cluster://:x@a:7000?node=hunter2@b:7001",
        ] {
            let error = redis(url).err().unwrap().to_string();
            assert!(
                error.starts_with("REDIS_URL: ") && error.ends_with("escape every other @ as %40"),
                "{error}"
            );
            assert!(!error.contains("hunter2"), "{error}");
        }
        for url in
            ["redis://:x@hunter2&3", "redis://:x@hunter2%40host", "redis-cluster://a:1?node=hunter2 b:1"]
        {
            let error = redis(url).err().unwrap().to_string();
            assert!(error.contains("such as @ as %40") && !error.contains("hunter2"), "{error}");
        }
        // The last @ before the path ends the password.
        let redis = redis("redis://likes:Tr0ub@dor&3-horse@host/0").ok().unwrap();
        assert_eq!(
            (redis.address(), redis.login.password.as_deref()),
            ("host:6379", Some("Tr0ub@dor&3-horse"))
        );
    }

    #[test]
    fn unsupported_parameters_are_named() {
        for (url, problem) in [
            ("redis://host?db=1", "the parameter 'db' is not supported; remove it"),
            ("rediss://host/0?node=b:1", "the parameter 'node' is not supported; remove it"),
            (
                "redis-cluster://h:1?node=b:1&family=6&protocol=3",
                "the parameters 'family', 'protocol' are not supported; remove them",
            ),
            (
                "redis-sentinel://h:1?sentinelServiceName=m&sentinelPassword=a&hunter2",
                "a parameter after sentinelPassword is not supported; remove it, or escape & in the sentinelPassword \
                 as %26",
            ),
        ] {
            assert_eq!(redis(url).err().unwrap().to_string(), format!("REDIS_URL: {problem}"));
        }
    }

    #[test]
    fn cluster_and_sentinel_urls_have_several_addresses() {
        let cluster = redis("redis-cluster://:hunter2@a:7000?node=b:7001").ok().unwrap();
        assert_eq!(cluster.address(), "b:7001, a:7000");
        let sentinels = redis("redis-sentinel://a:1/2?node=b:2&sentinelServiceName=m").ok().unwrap();
        assert!(matches!(sentinels.deployment, Deployment::Sentinels { ref master, .. } if master == "m"));
    }

    /// Replies to every command with an error.
    async fn rejecting_server(reply: &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                while client.read(&mut [0; 1_024]).await.is_ok_and(|bytes| bytes > 0) {
                    client.write_all(reply.as_bytes()).await.unwrap();
                }
            }
        });
        port
    }

    async fn failed(port: u16) -> String {
        let redis = redis(&format!("redis://:hunter2@127.0.0.1:{port}")).ok().unwrap();
        one_line(&redis.connect().await.err().unwrap())
    }

    #[tokio::test]
    async fn failed_connections_have_readable_causes() {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        assert_eq!(failed(closed).await, "Connection refused (os error 111)");
        let wrong = "-WRONGPASS invalid username-password pair or user is disabled.\r\n";
        assert_eq!(
            failed(rejecting_server(wrong).await).await,
            "WRONGPASS invalid username-password pair or user is disabled"
        );
    }
}
