//! Bound on the backends (processes of a server) that a program occupies, including those of closed connections.
//!
//! A backend that waits for a lock or for a synchronous standby does not notice that its client is gone. If each retry opened
//! a connection, such backends would soon use up `max_connections`. So a connection holds its permit until the server has
//! closed it, too, and a backend that does not end by itself is cancelled.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_postgres::{CancelToken, NoTls, tls::MakeTlsConnect};

use super::{
    socket::{Address, SocketOptions, Stream},
    tls::Tls,
};

/// Time in which a backend ends if it is not busy.
const END_GRACE: Duration = Duration::from_millis(250);

/// Time limit for a cancel request, and interval between two.
const CANCEL_INTERVAL: Duration = Duration::from_secs(5);

/// Time after which a backend counts as ended, although its end was not observed: the server may be gone without a sign. It
/// doubles from the first to the last value as long as no end is observed.
const HOLD: (Duration, Duration) = (Duration::from_secs(30), Duration::from_mins(10));

/// Maximum number of servers with a count. Servers behind a name can be replaced any number of times.
const MAX_SERVERS: usize = 64;

/// Counts backends by server.
pub(super) struct Backends {
    limit: usize,
    servers: Mutex<HashMap<Address, Arc<Server>>>,
}

struct Server {
    permits: Arc<Semaphore>,
    hold: Mutex<Duration>,
}

impl Backends {
    /// Allows at most `limit` backends per server.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, servers: Mutex::default() }
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Returns a permit to occupy a backend. `None` if too many backends have not ended.
    pub(super) async fn permit(&self, address: &Address) -> Option<Permit> {
        let server = self.server(address);
        let permit = timeout(END_GRACE, Arc::clone(&server.permits).acquire_owned()).await.ok()?.ok()?;
        Some(Permit { server, _permit: permit })
    }

    fn server(&self, address: &Address) -> Arc<Server> {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        if servers.len() >= MAX_SERVERS {
            servers.retain(|_, server| server.permits.available_permits() < self.limit);
        }
        let added = || {
            let permits = Arc::new(Semaphore::new(self.limit));
            Arc::new(Server { permits, hold: Mutex::new(HOLD.0) })
        };
        Arc::clone(servers.entry(address.clone()).or_insert_with(added))
    }
}

/// RAII permit to occupy a backend.
pub(super) struct Permit {
    server: Arc<Server>,
    _permit: OwnedSemaphorePermit,
}

impl Permit {
    /// Returns the time for which the end of this backend is awaited.
    fn hold(&self) -> Duration {
        *self.server.hold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(self, observed: bool) {
        let mut hold = self.server.hold.lock().unwrap_or_else(PoisonError::into_inner);
        *hold = if observed { HOLD.0 } else { (*hold * 2).min(HOLD.1) };
    }
}

/// A backend, from the first byte to the server until its end.
pub(super) struct Backend {
    pub(super) permit: Permit,
    pub(super) address: Address,
    pub(super) options: SocketOptions,
    /// Set after login.
    pub(super) canceller: Arc<OnceLock<Canceller>>,
}

/// Cancels the statement that a backend executes.
pub(super) struct Canceller {
    pub(super) token: CancelToken,
    pub(super) tls: Tls,
    pub(super) host: String,
}

impl Backend {
    /// Closes the connection, and waits until the server has closed it, too.
    pub(super) async fn end(self, mut stream: Stream) {
        let closed = async {
            // An error means that the connection is closed already.
            let _ = stream.shutdown().await;
            if timeout(END_GRACE, until_closed(&mut stream)).await.is_ok() {
                return;
            }
            loop {
                let cancelled = timeout(CANCEL_INTERVAL, self.cancel()).await;
                if timeout(CANCEL_INTERVAL, until_closed(&mut stream)).await.is_ok() {
                    return;
                }
                tracing::debug!(address = %self.address, requested = cancelled.is_ok(), "cancelled backend has not ended");
            }
        };
        let observed = timeout(self.permit.hold(), closed).await.is_ok();
        self.permit.end(observed);
    }

    /// Sends a cancel request. A server does not answer it, and a failed one is repeated.
    async fn cancel(&self) {
        let Some(Canceller { token, tls, host }) = self.canceller.get() else { return };
        let Ok(stream) = Stream::connect(&self.address, &self.options).await else { return };
        let _ = match tls.clone() {
            Tls::Off => token.cancel_query_raw(stream, NoTls).await,
            Tls::On(mut tls) => match MakeTlsConnect::<Stream>::make_tls_connect(&mut tls, host) {
                Ok(tls) => token.cancel_query_raw(stream, tls).await,
                Err(error) => match error {},
            },
        };
    }
}

async fn until_closed(stream: &mut Stream) {
    let mut ignored = [0; 4096];
    while matches!(stream.read(&mut ignored).await, Ok(1..)) {}
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::{
        net::TcpListener,
        time::{Instant, sleep},
    };

    use super::*;
    use crate::postgres::socket::Socket;

    fn address(address: SocketAddr) -> Address {
        Address::Tcp(address)
    }

    async fn open(backends: &Backends, to: &Address) -> Option<Socket> {
        let options = SocketOptions::default();
        let backend = Backend {
            permit: backends.permit(to).await?,
            address: to.clone(),
            options: options.clone(),
            canceller: Arc::default(),
        };
        Some(Socket::new(Stream::connect(to, &options).await.unwrap(), backend))
    }

    #[tokio::test]
    async fn a_closed_connection_counts_until_the_server_closes_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = address(listener.local_addr().unwrap());
        let backends = Backends::new(1);
        let socket = open(&backends, &to).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        drop(socket);
        assert_eq!(server.read(&mut [0]).await.unwrap(), 0, "the server sees the end");
        assert!(open(&backends, &to).await.is_none(), "the backend has not ended");
        let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
        assert!(open(&backends, &address(other.local_addr().unwrap())).await.is_some(), "another server");
        drop(server);
        assert!(open(&backends, &to).await.is_some());
    }

    #[tokio::test]
    async fn backends_without_an_observed_end_are_replaced_ever_more_slowly() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = address(listener.local_addr().unwrap());
        let backends = Backends::new(2);
        let mut waits = Vec::new();
        drop((open(&backends, &to).await.unwrap(), open(&backends, &to).await.unwrap()));
        sleep(Duration::from_millis(50)).await;
        tokio::time::pause();
        for _ in 0..3 {
            let started = Instant::now();
            let socket = loop {
                if let Some(socket) = open(&backends, &to).await {
                    break socket;
                }
                sleep(Duration::from_secs(1)).await;
            };
            waits.push(started.elapsed().as_secs());
            drop(socket);
        }
        assert!(waits[2] > waits[0] && waits.iter().sum::<u64>() > 60, "{waits:?}");
    }
}
