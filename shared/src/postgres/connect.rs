//! How to connect to Postgres, and the pool.

use std::time::Duration;

use deadpool_postgres::{
    BuildError, Hook, HookError, Manager, ManagerConfig, Pool, RecyclingMethod, Runtime,
};
use futures_util::future::BoxFuture;
use secrecy::ExposeSecret;
use tokio::time::timeout;
use tokio_postgres::{Client, Config, config::Host};

use super::tls::{Parameters, Tls};
use crate::settings::{SettingError, args::PostgresArgs};

/// How long it may take to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long unanswered bytes may stay on the way before the connection counts as dead.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a connection may be silent before it is looked whether the other end is there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);

/// A Postgres, or a pooler before it, and how to connect to it.
#[derive(Clone)]
pub struct Postgres {
    config: Config,
    tls: Tls,
}

impl Postgres {
    /// How to connect, from the URL and with this application name. Certificates are read here.
    pub fn new(args: &PostgresArgs, application_name: &str) -> Result<Self, SettingError> {
        let url = args.url()?;
        let (parameters, rest) = Parameters::take_out(url.expose_secret());
        // The parser's own error might quote a part of the URL, and so of a password.
        let mut config: Config = rest.parse().map_err(|_| {
            SettingError::new("DATABASE_URL", "not a URL like postgres://user:password@host:5432/database")
        })?;
        if config.get_hosts().is_empty() {
            return Err(SettingError::new(
                "DATABASE_URL",
                "names no host, like postgres://user@host:5432/database",
            ));
        }
        let tls = parameters.apply(&mut config)?;
        config.application_name(application_name);
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        // Two hours, as long as nobody asks for another: a connection that is cut silently should be noticed before.
        if config.get_keepalives_idle() == Duration::from_hours(2) {
            config.keepalives_idle(KEEPALIVE_IDLE);
        }
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(TCP_USER_TIMEOUT);
        }
        Ok(Self { config, tls })
    }

    /// A connection, which ends with the client.
    ///
    /// # Errors
    /// When there is none to be had.
    pub fn connect(&self) -> BoxFuture<'_, Result<Client, tokio_postgres::Error>> {
        Box::pin(async { self.tls.connect(&self.config).await.map(|(client, _)| client) })
    }

    /// Hosts and ports, for people to read.
    pub fn address(&self) -> String {
        let config = &self.config;
        let hosts = config.get_hosts().iter().zip(config.get_ports().iter().chain(std::iter::repeat(&5432)));
        let hosts = hosts.map(|(host, port)| match host {
            Host::Tcp(name) => format!("{name}:{port}"),
            Host::Unix(folder) => format!("{}:{port}", folder.display()),
        });
        format!("Postgres at {}", hosts.collect::<Vec<_>>().join(", "))
    }

    /// A pool of at most `connections`; nothing is connected yet. Waiting for one is bounded. `session` is SQL that every
    /// new connection starts with.
    ///
    /// # Errors
    /// When deadpool can't build it, which is a mistake of this program's.
    pub fn pool(self, connections: usize, session: String) -> Result<Pool, BuildError> {
        let recycling_method = RecyclingMethod::Fast;
        let manager = Manager::from_connect(self.config, self.tls, ManagerConfig { recycling_method });
        Pool::builder(manager)
            .max_size(connections)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(CONNECT_TIMEOUT))
            .create_timeout(Some(CONNECT_TIMEOUT))
            .post_create(Hook::async_fn(move |client, _| {
                let session = session.clone();
                Box::pin(async move {
                    // A pooler lets us in and then may have no session for us. The pool's own bounds are not for this.
                    let begun = timeout(CONNECT_TIMEOUT, client.batch_execute(&session)).await;
                    let silent = || format!("no answer within {} s", CONNECT_TIMEOUT.as_secs());
                    begun.map_err(|_| HookError::message(silent()))?.map_err(HookError::Backend)
                })
            }))
            .build()
    }
}
