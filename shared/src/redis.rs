//! Connections to Redis: a single server, the master that sentinels name, or a cluster.
//!
//! Purpose: find the servers, keep one connection to each, send every command to the server that has its key, and say
//! what a failed command means. May depend on `settings`, `tls` and fred. Must not know any command of the pipeline:
//! those are in `cluster_settings`, `backlog` and in the programs.

mod connection;
mod connections;
mod discovery;
mod errors;
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
    errors::{error_code, error_type, is_away, is_refusal},
};
use self::{connection::address, tls::Files};
use crate::settings::{SettingError, args::RedisArgs};

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
    pub fn connect(&self) -> BoxFuture<'_, Result<Connections, Error>> {
        Box::pin(Connections::open(self))
    }

    async fn open(&self, server: &Server) -> Result<Connection, Error> {
        connection::open(&self.login, server, self.timeout).await
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
}
