//! Access to Postgres: single connections and the pool.

use std::sync::Arc;

use deadpool::managed::BuildError;
use futures_util::future::BoxFuture;
use secrecy::{ExposeSecret, SecretString};
use tokio::task::spawn_blocking;

use super::{
    backends::Backends,
    error::ConnectError,
    pool::{Pool, Session},
    target::Target,
};
use crate::settings::{SettingError, args::PostgresArgs, secret_source::SecretSource};

/// Connections that a program without a pool has open at a time.
const CONNECTIONS: usize = 2;

/// Backends of closed connections that may still be ending, on each server.
const ENDING_BACKENDS: usize = 2;

/// How to connect to Postgres or to a pooler.
#[derive(Clone)]
pub struct Postgres {
    url: SecretSource,
    application_name: Arc<str>,
    address: Arc<str>,
    backends: Arc<Backends>,
}

impl Postgres {
    /// Checks the URL and the certificate files. Nothing is connected yet.
    pub fn new(args: &PostgresArgs, application_name: &str) -> Result<Self, SettingError> {
        let source = args.url();
        let target = target(&source, &source.read()?, application_name)?;
        Ok(Self {
            url: source,
            application_name: application_name.into(),
            address: format!("Postgres at {}", target.hosts()).into(),
            backends: Arc::new(Backends::new(CONNECTIONS + ENDING_BACKENDS)),
        })
    }

    /// Opens a connection. Reads the URL and the certificates again if they come from files: they may have been replaced.
    ///
    /// # Errors
    /// When a file cannot be used, or no host accepts the connection.
    pub fn connect(&self) -> BoxFuture<'_, Result<Session, ConnectError>> {
        Box::pin(async { self.target().await?.connect(&self.backends).await })
    }

    async fn target(&self) -> Result<Target, SettingError> {
        let url = self.url.read_settled().await?;
        let (source, name) = (self.url.clone(), Arc::clone(&self.application_name));
        let read = spawn_blocking(move || target(&source, &url, &name)).await;
        read.unwrap_or_else(|_| Err(self.url.error("cannot be read: the program is ending")))
    }

    /// Returns the hosts and ports at the start of the program.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Returns a pool of at most `connections`. Nothing is connected yet, and waiting for a connection is bounded. `setup` is
    /// SQL that every new connection starts with.
    ///
    /// # Errors
    /// When deadpool rejects the configuration, which would be a bug.
    pub fn pool(mut self, connections: usize, setup: String) -> Result<Pool, BuildError> {
        if connections > CONNECTIONS {
            self.backends = Arc::new(Backends::new(connections + ENDING_BACKENDS));
        }
        Pool::new(self, connections, setup)
    }
}

fn target(source: &SecretSource, url: &SecretString, application_name: &str) -> Result<Target, SettingError> {
    Target::parse(url.expose_secret(), application_name).map_err(|problem| source.error(problem))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        postgres: PostgresArgs,
    }

    fn postgres(port: u16) -> Postgres {
        at(&format!("postgres://u:p@127.0.0.1:{port}/x?sslmode=disable"))
    }

    fn at(url: &str) -> Postgres {
        let flags = Flags::try_parse_from(["program", "--database-url", url]).unwrap();
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
        server(accepts, b"SFATAL\0VFATAL\0C42501\0Mpermission denied\0\0").await
    }

    async fn server(accepts: bool, error: &'static [u8]) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
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
        pool.get().await.err().unwrap().to_string()
    }

    #[tokio::test]
    async fn failed_connections_name_the_cause_once() {
        let refused = postgres(closed_port().await).connect().await.err().unwrap();
        assert_eq!(refused.to_string(), "Connection refused (os error 111)");
        let rejected = postgres(rejecting_server(false).await).connect().await.err().unwrap();
        assert_eq!(rejected.to_string(), "FATAL: permission denied");
    }

    #[tokio::test]
    async fn errors_of_the_pool_are_those_of_the_connection() {
        assert_eq!(pool_error(closed_port().await).await, "Connection refused (os error 111)");
        assert_eq!(pool_error(rejecting_server(false).await).await, "FATAL: permission denied");
        // The error of the session's SQL.
        assert_eq!(pool_error(rejecting_server(true).await).await, "FATAL: permission denied");
    }

    #[tokio::test]
    async fn the_next_host_is_tried_unless_a_login_is_refused() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let first = silent.local_addr().unwrap().port();
        let second = rejecting_server(false).await;
        let url =
            format!("postgres://u@127.0.0.1:{first},127.0.0.1:{second}/x?sslmode=disable&connect_timeout=1");
        let failed = at(&url).connect().await.err().unwrap();
        assert_eq!(
            failed.to_string(),
            format!("127.0.0.1:{first}: no reply within 1s, 127.0.0.1:{second}: FATAL: permission denied")
        );
        assert!(failed.is_refusal() && failed.sqlstate() == Some("42501"));

        let refusing = server(false, b"SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed\0\0").await;
        let url = format!("postgres://u@127.0.0.1:{refusing},127.0.0.1:{first}/x?sslmode=disable");
        let failed = at(&url).connect().await.err().unwrap();
        assert_eq!(failed.to_string(), "FATAL: password authentication failed");
    }
}
