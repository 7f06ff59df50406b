//! What a URL points to: the servers, tried in order, and the parameters of the connection.
//!
//! Source: Postgres manual, "Specifying Multiple Hosts" of libpq.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use deadpool_postgres::ClientWrapper;
use futures_util::FutureExt;
use rand::seq::SliceRandom;
use socket2::TcpKeepalive;
use tokio::{
    net::lookup_host,
    time::{Instant, timeout_at},
};
use tokio_postgres::{
    Config, NoTls, SimpleQueryMessage,
    config::{Host, LoadBalanceHosts, SslMode},
    tls::MakeTlsConnect,
};

use super::{
    backends::{Backend, Backends, Canceller},
    error::{ConnectError, HostError, HostFailure},
    pool::Session,
    socket::{Address, Socket, SocketOptions, Stream},
    tls::{Tls, may_do_without},
    url::{self, SessionKind},
};

/// Time limit for a connection to one address, without `connect_timeout`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Time after which the kernel closes a connection with unacknowledged data.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(15);

/// Idle time before the first TCP keepalive probe. tokio-postgres's default of two hours is too long to notice a connection
/// that was cut silently.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);

const DEFAULT_PORT: u16 = 5432;

/// Servers and parameters of a URL.
pub(super) struct Target {
    config: Config,
    tls: Tls,
    kind: SessionKind,
    hosts: Vec<HostAndPort>,
    options: SocketOptions,
}

/// A host of the URL.
#[derive(Clone, Debug, PartialEq, Eq)]
struct HostAndPort {
    place: Place,
    /// Name for the verification of certificates.
    name: String,
    port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Address(IpAddr),
    Name,
    Folder(PathBuf),
}

impl fmt::Display for HostAndPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Folder(folder) => write!(f, "{}:{}", folder.display(), self.port),
            Place::Address(_) | Place::Name => write!(f, "{}:{}", self.name, self.port),
        }
    }
}

impl Target {
    /// Parses a URL, and reads the certificate files. The error shows no part of the URL that may belong to a password.
    pub(super) fn parse(url: &str, application_name: &str) -> Result<Self, String> {
        let url::Parsed { tls, kind, mut config } = url::parse(url)?;
        let hosts = hosts(&config)?;
        let tls = tls.apply(&mut config)?;
        config.application_name(application_name);
        let options = options(&config);
        Ok(Self { config, tls, kind, hosts, options })
    }

    /// Returns the hosts and ports.
    pub(super) fn hosts(&self) -> String {
        self.hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }

    /// Connects to the first host that accepts the login and has the right kind of session. Each address of a host has its own
    /// time limit, which includes TLS, the login and the check of the session.
    pub(super) async fn connect(&self, backends: &Backends) -> Result<Session, ConnectError> {
        let mut hosts: Vec<&HostAndPort> = self.hosts.iter().collect();
        self.shuffle(&mut hosts);
        let mut failures = Vec::new();
        for host in hosts {
            let deadline = self.deadline();
            let mut addresses = match timeout_at(deadline, host.addresses()).await {
                Ok(Ok(addresses)) => addresses,
                Ok(Err(error)) => {
                    failures.push(host.failed(HostError::Unreachable(error)));
                    continue;
                }
                Err(_) => {
                    failures.push(host.failed(self.silent()));
                    continue;
                }
            };
            self.shuffle(&mut addresses);
            for address in addresses {
                let session = timeout_at(self.deadline(), self.connect_to(host, address, backends)).await;
                let cause = match session.unwrap_or_else(|_| Err(self.silent())) {
                    Ok(session) => return Ok(session),
                    Err(cause) => cause,
                };
                tracing::debug!(%host, error = %cause, "cannot connect to Postgres host");
                let is_final = cause.is_final();
                failures.push(host.failed(cause));
                if is_final {
                    return Err(ConnectError::Hosts(failures));
                }
            }
        }
        Err(ConnectError::Hosts(failures))
    }

    fn limit(&self) -> Duration {
        self.config.get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT)
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.limit()
    }

    fn silent(&self) -> HostError {
        HostError::Silent(self.limit())
    }

    fn shuffle<T>(&self, items: &mut [T]) {
        if self.config.get_load_balance_hosts() == LoadBalanceHosts::Random {
            items.shuffle(&mut rand::rng());
        }
    }

    async fn connect_to(
        &self,
        host: &HostAndPort,
        address: Address,
        backends: &Backends,
    ) -> Result<Session, HostError> {
        let connected = match (&self.tls, &address) {
            (Tls::On(_), Address::Tcp(_)) => {
                let connected = self.log_in(host, &address, &self.config, &self.tls, backends).await;
                match connected {
                    Err(HostError::Postgres(error))
                        if self.config.get_ssl_mode() == SslMode::Prefer && may_do_without(&error) =>
                    {
                        self.log_in_without_tls(host, &address, backends).await
                    }
                    connected => connected,
                }
            }
            // Unix sockets have no TLS.
            _ => self.log_in_without_tls(host, &address, backends).await,
        };
        let session = connected?;
        self.check(&session).await?;
        Ok(session)
    }

    async fn log_in_without_tls(
        &self,
        host: &HostAndPort,
        address: &Address,
        backends: &Backends,
    ) -> Result<Session, HostError> {
        let mut config = self.config.clone();
        config.ssl_mode(SslMode::Disable);
        self.log_in(host, address, &config, &Tls::Off, backends).await
    }

    async fn log_in(
        &self,
        host: &HostAndPort,
        address: &Address,
        config: &Config,
        tls: &Tls,
        backends: &Backends,
    ) -> Result<Session, HostError> {
        let unended = || HostError::Unended(backends.limit());
        let permit = backends.permit(address).await.ok_or_else(unended)?;
        let stream = Stream::connect(address, &self.options).await.map_err(HostError::Unreachable)?;
        let canceller = Arc::new(OnceLock::new());
        let backend = Backend {
            permit,
            address: address.clone(),
            options: self.options.clone(),
            canceller: Arc::clone(&canceller),
        };
        let socket = Socket::new(stream, backend);
        // The reason for the end of a connection is the error of the statement in flight.
        let (client, serving) = match tls.clone() {
            Tls::Off => {
                let (client, connection) =
                    config.connect_raw(socket, NoTls).await.map_err(HostError::Postgres)?;
                (client, tokio::spawn(connection.map(drop)))
            }
            Tls::On(mut tls) => {
                let tls = MakeTlsConnect::<Socket>::make_tls_connect(&mut tls, &host.name);
                let tls = tls.unwrap_or_else(|never| match never {});
                let (client, connection) =
                    config.connect_raw(socket, tls).await.map_err(HostError::Postgres)?;
                (client, tokio::spawn(connection.map(drop)))
            }
        };
        let (token, tls, host) = (client.cancel_token(), tls.clone(), host.name.clone());
        // It was empty.
        let _ = canceller.set(Canceller { token, tls, host });
        Ok(ClientWrapper::new(client, serving))
    }

    /// Checks that the session is of the kind that the URL asks for.
    async fn check(&self, session: &Session) -> Result<(), HostError> {
        let Some((sql, expected_answer)) = self.kind.check() else { return Ok(()) };
        let answers = session.simple_query(sql).await.map_err(HostError::Postgres)?;
        let answer = answers.iter().find_map(|answer| match answer {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        if answer == Some(expected_answer) {
            return Ok(());
        }
        Err(HostError::Session { found: self.kind.opposite(), expected: self.kind.name() })
    }
}

impl HostAndPort {
    fn failed(&self, cause: HostError) -> HostFailure {
        HostFailure { host: self.to_string(), cause }
    }

    async fn addresses(&self) -> std::io::Result<Vec<Address>> {
        Ok(match &self.place {
            Place::Address(ip) => vec![Address::Tcp(SocketAddr::new(*ip, self.port))],
            Place::Folder(folder) => vec![Address::Unix(socket_in(folder, self.port))],
            Place::Name => lookup_host((&*self.name, self.port)).await?.map(Address::Tcp).collect(),
        })
    }
}

fn socket_in(folder: &Path, port: u16) -> PathBuf {
    folder.join(format!(".s.PGSQL.{port}"))
}

/// Returns the hosts, each with its address, if one is given, and its port.
fn hosts(config: &Config) -> Result<Vec<HostAndPort>, String> {
    let (names, addresses, ports) = (config.get_hosts(), config.get_hostaddrs(), config.get_ports());
    let count = names.len().max(addresses.len());
    if !names.is_empty() && !addresses.is_empty() && names.len() != addresses.len() {
        return Err(format!(
            "the URL has {} hosts, but {} addresses in hostaddr; expected one for each host",
            names.len(),
            addresses.len()
        ));
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(format!(
            "the URL has {count} hosts, but {} ports; expected one port, or one for each host",
            ports.len()
        ));
    }
    let host = |at: usize| {
        let port = ports.get(at).or(ports.first()).copied().unwrap_or(DEFAULT_PORT);
        let (place, name) = match (names.get(at), addresses.get(at)) {
            (Some(Host::Unix(folder)), _) => (Place::Folder(folder.clone()), String::new()),
            (Some(Host::Tcp(name)), Some(ip)) => (Place::Address(*ip), name.clone()),
            (Some(Host::Tcp(name)), None) => (Place::Name, name.clone()),
            (None, ip) => {
                let ip = *ip?;
                (Place::Address(ip), ip.to_string())
            }
        };
        Some(HostAndPort { place, name, port })
    };
    Ok((0..count).filter_map(host).collect())
}

fn options(config: &Config) -> SocketOptions {
    let idle = config.get_keepalives_idle();
    let is_default = idle == Duration::from_hours(2);
    let mut keepalive = TcpKeepalive::new().with_time(if is_default { KEEPALIVE_IDLE } else { idle });
    if let Some(interval) = config.get_keepalives_interval() {
        keepalive = keepalive.with_interval(interval);
    }
    if let Some(retries) = config.get_keepalives_retries() {
        keepalive = keepalive.with_retries(retries);
    }
    SocketOptions {
        user_timeout: Some(config.get_tcp_user_timeout().copied().unwrap_or(TCP_USER_TIMEOUT)),
        keepalive: config.get_keepalives().then_some(keepalive),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts_of(url: &str) -> Result<Vec<String>, String> {
        let hosts = Target::parse(url, "test")?.hosts;
        Ok(hosts.iter().map(|host| format!("{host} {:?}", host.place)).collect())
    }

    #[test]
    fn each_host_has_its_address_and_port() {
        assert_eq!(hosts_of("postgres://u@a,b:2/d").unwrap(), ["a:5432 Name", "b:2 Name"]);
        assert_eq!(
            hosts_of("postgres://u@a,b/d?hostaddr=10.0.0.1,10.0.0.2&connect_timeout=0").unwrap(),
            ["a:5432 Address(10.0.0.1)", "b:5432 Address(10.0.0.2)"]
        );
        assert_eq!(
            hosts_of("postgres:///d?user=u&hostaddr=10.0.0.1&port=3").unwrap(),
            ["10.0.0.1:3 Address(10.0.0.1)"]
        );
        assert_eq!(hosts_of("postgres://u@%2Frun:9/d").unwrap(), ["/run:9 Folder(\"/run\")"]);
        let error = hosts_of("postgres://u@a,b/d?hostaddr=10.0.0.1").unwrap_err();
        assert!(error.contains("2 hosts, but 1 addresses"), "{error}");
        let error = hosts_of("host=a,b,c port=1,2").unwrap_err();
        assert!(error.contains("3 hosts, but 2 ports"), "{error}");
    }
}
