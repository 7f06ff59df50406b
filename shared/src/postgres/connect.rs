//! Connections to Postgres, and the pool.

use std::time::Duration;

use deadpool_postgres::{
    BuildError, Hook, HookError, Manager, ManagerConfig, Pool, RecyclingMethod, Runtime,
};
use futures_util::future::BoxFuture;
use secrecy::ExposeSecret;
use tokio::time::timeout;
use tokio_postgres::{Client, Config, config::Host};

use super::{tls::Tls, url};
use crate::settings::{SettingError, args::PostgresArgs};

/// Time limit for connecting, and for waiting for a free connection of the pool.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Time after which the kernel closes a connection with unacknowledged data.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(15);

/// Idle time before the first TCP keepalive probe.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);

/// Parameters of connections to Postgres or to a pooler.
#[derive(Clone)]
pub struct Postgres {
    config: Config,
    tls: Tls,
}

impl Postgres {
    /// Parses the URL and reads the certificate files. Nothing is connected yet.
    pub fn new(args: &PostgresArgs, application_name: &str) -> Result<Self, SettingError> {
        let url = args.url().read()?;
        let (parameters, mut config) =
            url::parse(url.expose_secret()).map_err(|problem| SettingError::new("DATABASE_URL", problem))?;
        let tls = parameters.apply(&mut config)?;
        config.application_name(application_name);
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        // The default is two hours, too long to notice a connection that was cut silently.
        if config.get_keepalives_idle() == Duration::from_hours(2) {
            config.keepalives_idle(KEEPALIVE_IDLE);
        }
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(TCP_USER_TIMEOUT);
        }
        Ok(Self { config, tls })
    }

    /// Opens a connection, which closes when the client is dropped.
    ///
    /// # Errors
    /// When the connection fails.
    pub fn connect(&self) -> BoxFuture<'_, Result<Client, tokio_postgres::Error>> {
        Box::pin(async { self.tls.connect(&self.config).await.map(|(client, _)| client) })
    }

    /// Returns the hosts and ports.
    pub fn address(&self) -> String {
        let config = &self.config;
        let hosts = config.get_hosts().iter().zip(config.get_ports().iter().chain(std::iter::repeat(&5432)));
        let hosts = hosts.map(|(host, port)| match host {
            Host::Tcp(name) => format!("{name}:{port}"),
            Host::Unix(folder) => format!("{}:{port}", folder.display()),
        });
        format!("Postgres at {}", hosts.collect::<Vec<_>>().join(", "))
    }

    /// Returns a pool of at most `connections`. Nothing is connected yet, and waiting for a connection is bounded. `session` is
    /// SQL that every new connection starts with.
    ///
    /// # Errors
    /// When deadpool rejects the configuration, which would be a bug.
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
                    // A pooler may accept a connection before it has a free session. The pool's limits do not cover hooks.
                    let begun = timeout(CONNECT_TIMEOUT, client.batch_execute(&session)).await;
                    let silent = || format!("no reply within {} s", CONNECT_TIMEOUT.as_secs());
                    begun.map_err(|_| HookError::message(silent()))?.map_err(HookError::Backend)
                })
            }))
            .build()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::error_chain::one_line;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        postgres: PostgresArgs,
    }

    fn postgres(port: u16) -> Postgres {
        let url = format!("postgres://u:p@127.0.0.1:{port}/x?sslmode=disable");
        let flags = Flags::try_parse_from(["program", "--database-url", &url]).unwrap();
        Postgres::new(&flags.postgres, "test").unwrap()
    }

    /// A message of the protocol of Postgres.
    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(4 + body.len()).unwrap();
        [&[kind], &length.to_be_bytes()[..], body].concat()
    }

    async fn skip_message(client: &mut TcpStream) {
        let length = client.read_u32().await.unwrap();
        client.read_exact(&mut vec![0; length as usize - 4]).await.unwrap();
    }

    /// Accepts one connection, and rejects it or its first query.
    async fn rejecting_server(accepts: bool) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let error = b"SFATAL\0VFATAL\0C42501\0Mpermission denied\0\0";
        tokio::spawn(async move {
            let (mut client, _) = listener.accept().await.unwrap();
            skip_message(&mut client).await;
            if accepts {
                let ready = [message(b'R', &[0; 4]), message(b'Z', b"I")].concat();
                client.write_all(&ready).await.unwrap();
                client.read_u8().await.unwrap();
                skip_message(&mut client).await;
            }
            client.write_all(&message(b'E', error)).await.unwrap();
            client.write_all(&message(b'Z', b"I")).await.unwrap();
            client.read_u8().await.ok();
        });
        port
    }

    async fn closed_port() -> u16 {
        TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
    }

    async fn pool_error(port: u16) -> String {
        let pool = postgres(port).pool(1, "SELECT 1".to_owned()).unwrap();
        one_line(&pool.get().await.err().unwrap())
    }

    #[tokio::test]
    async fn failed_connections_name_the_cause_once() {
        let refused = postgres(closed_port().await).connect().await.err().unwrap();
        assert_eq!(one_line(&refused), "Connection refused (os error 111)");
        let rejected = postgres(rejecting_server(false).await).connect().await.err().unwrap();
        assert_eq!(one_line(&rejected), "FATAL: permission denied");
    }

    #[tokio::test]
    async fn errors_of_the_pool_are_those_of_the_connection() {
        assert_eq!(pool_error(closed_port().await).await, "Connection refused (os error 111)");
        assert_eq!(pool_error(rejecting_server(false).await).await, "FATAL: permission denied");
        // The error of the session's SQL.
        assert_eq!(pool_error(rejecting_server(true).await).await, "FATAL: permission denied");
    }
}
