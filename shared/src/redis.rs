//! Connections to Redis: a single server, the primary behind Sentinel, or a cluster.
//!
//! Purpose: discover the servers, keep one connection to each, route each command by its key, and classify errors. May
//! depend on `settings`, `tls` and fred. Must not know any command of the pipeline: those are in `cluster_settings`,
//! `backlog` and in the programs.

mod connection;
mod connections;
mod dedicated;
mod discovery;
mod errors;
mod incarnation;
mod nodes;
mod pipeline;
mod route;
mod target;
mod tls;
mod topology;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use fred::{
    prelude::{Config, Error, ErrorKind},
    types::config::Server,
};
use futures_util::future::BoxFuture;
use secrecy::ExposeSecret;
use tokio::task::spawn_blocking;

pub use self::{
    connection::Connection,
    connections::{Connections, Impaired},
    dedicated::Dedicated,
    errors::{
        error_code, error_type, is_away, is_missing_key, is_refusal, is_replaced, is_unanswered, remedy,
    },
    incarnation::Incarnation,
    route::{Failed, Retry},
};
use self::{
    connection::address,
    target::{Deployment, Target},
    tls::Files,
};
use crate::{
    error_chain::one_line,
    settings::{SettingError, args::RedisArgs, secret_source::SecretSource},
};

/// How to reach Redis. The files of the URL and of TLS are read again for each connection.
#[derive(Clone)]
pub struct Redis {
    /// `None` if the target never changes.
    url: Option<SecretSource>,
    files: Files,
    latest: Arc<Mutex<Target>>,
    timeout: Duration,
}

impl Redis {
    /// Reads the URL and the certificate files. Nothing is connected yet.
    pub fn new(args: &RedisArgs) -> Result<Self, SettingError> {
        let url = args.url();
        let target = Target::parse(url.read()?.expose_secret()).map_err(|problem| url.error(problem))?;
        let files = Files::of(args);
        if target.has_tls {
            files.read()?;
        } else {
            files.unused()?;
        }
        let latest = Arc::new(Mutex::new(target));
        Ok(Self { url: Some(url), files, latest, timeout: args.redis_timeout })
    }

    /// Parses a URL. `timeout` is the time limit of a command.
    ///
    /// # Errors
    /// When the URL is invalid.
    pub fn at(url: &str, timeout: Duration) -> Result<Self, SettingError> {
        let target = Target::parse(url).map_err(|problem| SettingError::new("REDIS_URL", problem))?;
        Ok(Self { url: None, files: Files::default(), latest: Arc::new(Mutex::new(target)), timeout })
    }

    /// Returns the hosts and ports of the URL.
    pub fn address(&self) -> String {
        self.latest().address()
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

    fn latest(&self) -> Target {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the servers and credentials of the URL as it is at present.
    async fn target(&self) -> Result<Target, Error> {
        let Some(url) = &self.url else { return Ok(self.latest()) };
        let text = url.read_settled().await.map_err(|error| unusable(&error))?;
        let target = Target::parse(text.expose_secret()).map_err(|problem| unusable(&url.error(problem)))?;
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = target.clone();
        Ok(target)
    }

    /// Returns the same servers with another time limit of a command.
    fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    /// Connects to a server of the deployment.
    async fn open(&self, server: &Server) -> Result<Connection, Error> {
        let target = self.target().await?;
        self.open_with(target.login, target.has_tls, server).await
    }

    async fn open_with(
        &self,
        mut login: Config,
        has_tls: bool,
        server: &Server,
    ) -> Result<Connection, Error> {
        if has_tls {
            let files = self.files.clone();
            let read = spawn_blocking(move || files.read().map_err(|error| unusable(&error))).await;
            login.tls =
                Some(read.map_err(|_| Error::new(ErrorKind::Canceled, "reading of files was cancelled"))??);
        }
        connection::open(&login, server, self.timeout).await
    }

    /// Checks that the server is of the kind that the URL names.
    async fn check(&self, connection: &Connection) -> Result<(), Error> {
        if matches!(self.latest().deployment, Deployment::Cluster { .. }) {
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

/// Returns the error of a setting or a file that was valid at start. A retry may find it valid again.
fn unusable(error: &SettingError) -> Error {
    Error::new(ErrorKind::IO, one_line(error))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

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
        assert_eq!(redis.address(), "host:6379");
        assert_eq!(redis.latest().login.password.as_deref(), Some("Tr0ub@dor&3-horse"));
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
    fn a_unix_socket_has_a_path() {
        for url in ["unix:///run/redis.sock", "redis+unix:///run/redis.sock?db=0"] {
            let target = redis(url).ok().unwrap().latest();
            assert_eq!(target.address(), "/run/redis.sock", "{url}");
        }
        let target = redis("unix://likes:hunter%402@/run/redis%20one.sock?db=3").ok().unwrap().latest();
        assert_eq!(target.address(), "/run/redis one.sock");
        let login = (target.login.username.as_deref(), target.login.password.as_deref());
        assert_eq!((login, target.login.database), ((Some("likes"), Some("hunter@2")), Some(3)));
        for url in ["unix://:hunter2@host", "unix://:x@hunter2/run/s", "unix:///run/s?db=hunter2", "unix:///"]
        {
            let error = redis(url).err().unwrap().to_string();
            assert!(error.starts_with("REDIS_URL: ") && !error.contains("hunter2"), "{error}");
        }
        let unsupported = redis("unix:///run/s?family=6").err().unwrap().to_string();
        assert_eq!(unsupported, "REDIS_URL: the parameter 'family' is not supported; remove it");
    }

    #[test]
    fn cluster_and_sentinel_urls_have_several_addresses() {
        let cluster = redis("redis-cluster://:hunter2@a:7000?node=b:7001").ok().unwrap();
        assert_eq!(cluster.address(), "b:7001, a:7000");
        let sentinels = redis("redis-sentinel://a:1/2?node=b:2&sentinelServiceName=m").ok().unwrap();
        assert!(
            matches!(sentinels.latest().deployment, Deployment::Sentinels { ref master, .. } if master == "m")
        );
    }

    /// Replies to every command with an error.
    async fn rejecting_server(reply: &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut received = [0; 1_024];
                while let Ok(bytes @ 1..) = client.read(&mut received).await {
                    // Each command is an array.
                    let commands = String::from_utf8_lossy(&received[..bytes]).matches('*').count();
                    client.write_all(reply.repeat(commands).as_bytes()).await.unwrap();
                }
            }
        });
        port
    }

    /// Such as a server that is loading its data, cannot save them, or runs a long script.
    #[tokio::test]
    async fn an_error_reply_is_no_failed_connection() {
        for reply in [
            "-LOADING Redis is loading the dataset in memory\r\n",
            "-MISCONF Redis is configured to save RDB snapshots\r\n",
            "-BUSY Redis is busy running a script\r\n",
            "-MASTERDOWN Link with MASTER is down\r\n",
            "-NOPERM this user has no permissions to run the 'ping' command\r\n",
        ] {
            let port = rejecting_server(reply).await;
            let redis = Redis::at(&format!("redis://127.0.0.1:{port}"), Duration::from_millis(200));
            let connections = redis.ok().unwrap().connect().await.unwrap();
            let code = reply[1..].split(' ').next();
            let refused = connections.run::<u64>("key", Retry::Idempotent, "XLEN", vec!["key".into()]).await;
            assert_eq!(error_code(&refused.unwrap_err()), code);
            if code != Some("NOPERM") {
                let (servers, impaired) = connections.check().await;
                assert_eq!((servers, impaired.len()), (1, 1));
                let text = impaired[0].to_string();
                assert!(text.starts_with(&format!("127.0.0.1:{port}: {}", code.unwrap())), "{text}");
                assert!(text.contains("; ") && !text.contains("not connected"), "{text}");
            }
        }
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
