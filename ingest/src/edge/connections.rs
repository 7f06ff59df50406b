//! Connections from accept to close.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::Router;
use hyper::{Request, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use shared::telemetry::log_rate::LogRate;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout_at},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::{either::Either, sync::CancellationToken, task::TaskTracker};
use tower::Service;

use super::{
    activity::{Activity, Check, Timeouts},
    open_files::allowed_connections,
    quotas::client_key,
    tls::Tls,
};
use crate::metrics::Metrics;

/// At shutdown, when every request has its response: time for the responses to be sent.
const ANSWER_GRACE: Duration = Duration::from_millis(500);

/// Time for an idle connection to close gracefully.
const CLOSE_GRACE: Duration = Duration::from_secs(1);

/// Pause after a failed accept.
const ACCEPT_RETRY: Duration = Duration::from_millis(200);

/// Interval of HTTP/2 pings, and timeout of their acknowledgement.
const PING_INTERVAL: Duration = Duration::from_secs(20);

/// Maximum size of a request head, and of one read of a body. Longer heads get 431.
const MAX_BUFFER_BYTES: u16 = 16 << 10;

/// Maximum number of requests in flight on one HTTP/2 connection.
const MAX_STREAMS: u32 = 128;

/// Flow-control windows of one HTTP/2 connection and of one stream: maximum unread bytes of bodies.
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
const STREAM_WINDOW_BYTES: u32 = 64 << 10;

/// Plain or TLS. One type, so that HTTP is compiled once. TLS is boxed, so that plain connections need no memory for it.
type Stream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// Peer address of the connection of a request, as a request extension.
#[derive(Clone, Copy)]
pub(crate) struct Peer(pub(crate) IpAddr);

pub(crate) struct ConnectionLimits {
    pub(crate) max_connections: usize,
    pub(crate) max_per_address: Option<u32>,
    pub(crate) timeouts: Timeouts,
}

/// Accepts and serves connections.
pub(crate) struct Server {
    pub(crate) router: Router,
    pub(crate) limits: ConnectionLimits,
    pub(crate) tls: Option<Tls>,
    /// Tracks the requests in flight.
    pub(crate) requests: TaskTracker,
    pub(crate) metrics: Arc<Metrics>,
}

impl Server {
    /// Accepts connections until `shutdown`, then drains the requests in flight.
    pub(crate) async fn run(self, listener: TcpListener, shutdown: CancellationToken) {
        let connections = self.accept(listener, shutdown).await;
        self.drain(connections).await;
    }

    async fn accept(&self, listener: TcpListener, shutdown: CancellationToken) -> JoinSet<()> {
        let max_connections = allowed_connections(self.limits.max_connections);
        let builder = Arc::new(http_builder());
        let addresses = AddressCounts::default();
        let failures = LogRate::default();
        let mut connections = JoinSet::new();
        loop {
            // Over the limit, clients wait in the accept queue of the kernel, which is also bounded.
            let may_accept = connections.len() < max_connections;
            let (stream, peer) = tokio::select! {
                accepted = listener.accept(), if may_accept => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        if let Some(attempts) = failures.record(1) {
                            tracing::warn!(%error, attempts, "cannot accept connections");
                        }
                        sleep(ACCEPT_RETRY).await;
                        continue;
                    }
                },
                Some(_) = connections.join_next() => {
                    self.metrics.connection_closed();
                    continue;
                }
                () = shutdown.cancelled() => return connections,
            };
            let Some(counted) = addresses.enter(peer.ip(), self.limits.max_per_address) else {
                tracing::debug!(%peer, "connection closed, too many connections from this address");
                continue;
            };
            let connection = Connection {
                builder: Arc::clone(&builder),
                router: self.router.clone(),
                peer,
                activity: Arc::new(Activity::new(self.limits.timeouts)),
                shutdown: shutdown.clone(),
            };
            let serving = connection.serve(stream, self.tls.as_ref().map(Tls::acceptor));
            self.metrics.connection_opened();
            connections.spawn(async move {
                let _counted = counted;
                serving.await;
            });
        }
    }

    /// Waits until the requests in flight have their responses, then closes the remaining connections.
    async fn drain(&self, mut connections: JoinSet<()>) {
        self.requests.close();
        let answered = async {
            // Another request may have arrived while the last responses were sent.
            loop {
                self.requests.wait().await;
                sleep(ANSWER_GRACE).await;
                if self.requests.is_empty() {
                    return;
                }
            }
        };
        let ended = async { while connections.join_next().await.is_some() {} };
        tokio::select! {
            () = ended => {}
            () = answered => {}
        }
        connections.shutdown().await;
    }
}

fn http_builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    // No timer for HTTP/1: `Activity` enforces the timeouts of both versions.
    builder.http1().max_buf_size(MAX_BUFFER_BYTES.into());
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_INTERVAL)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_BUFFER_BYTES.into())
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES);
    builder
}

struct Connection {
    builder: Arc<Builder<TokioExecutor>>,
    router: Router,
    peer: SocketAddr,
    activity: Arc<Activity>,
    shutdown: CancellationToken,
}

impl Connection {
    async fn serve(self, stream: TcpStream, tls: Option<TlsAcceptor>) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
        let stream = match tls {
            None => Either::Left(stream),
            // Boxed: the future of a handshake is large, and plain connections do not need it.
            Some(tls) => match Box::pin(self.handshake(stream, tls)).await {
                Some(stream) => Either::Right(stream),
                None => return,
            },
        };
        self.serve_http(stream).await;
    }

    async fn handshake(&self, stream: TcpStream, tls: TlsAcceptor) -> Option<Box<TlsStream<TcpStream>>> {
        let handshake = tokio::select! {
            ended = timeout_at(self.activity.deadline(), tls.accept(stream)) => ended,
            () = self.shutdown.cancelled() => return None,
        };
        match handshake {
            Ok(Ok(stream)) => return Some(Box::new(stream)),
            Ok(Err(error)) => tracing::debug!(peer = %self.peer, %error, "TLS handshake failed"),
            Err(_) => tracing::debug!(peer = %self.peer, "TLS handshake timed out"),
        }
        None
    }

    async fn serve_http(self, stream: Stream) {
        let Self { builder, router, peer, activity, shutdown } = self;
        let requests = Arc::clone(&activity);
        let service = service_fn(move |mut request: Request<Incoming>| {
            let in_flight = requests.request();
            request.extensions_mut().insert(Peer(peer.ip()));
            let answer = router.clone().call(request);
            async move { answer.await.map(|response| in_flight.answered(response)) }
        });
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let mut check = pin!(sleep_until(activity.next_check()));
        let mut stopping = false;
        let mut closing = false;
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(%peer, error, "connection failed");
                    }
                    return;
                }
                () = check.as_mut() => {
                    let next = match activity.check() {
                        Check::Active(next) => next,
                        Check::Idle if !closing => {
                            tracing::debug!(%peer, "closing idle connection");
                            closing = true;
                            connection.as_mut().graceful_shutdown();
                            Instant::now() + CLOSE_GRACE
                        }
                        Check::Idle | Check::Stalled => return,
                    };
                    check.as_mut().reset(next);
                }
                () = shutdown.cancelled(), if !stopping => {
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

/// Number of connections per client address. Counted only if it is limited.
#[derive(Clone, Default)]
struct AddressCounts(Arc<Mutex<HashMap<IpAddr, u32>>>);

impl AddressCounts {
    /// Counts a connection until the guard is dropped. Returns `None` if the address already has `max` connections.
    fn enter(&self, peer: IpAddr, max: Option<u32>) -> Option<Counted> {
        let Some(max) = max else { return Some(Counted(None)) };
        let address = client_key(peer);
        let mut counts = self.lock();
        let count = counts.entry(address).or_default();
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(Counted(Some((self.clone(), address))))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Guard of a counted connection. Empty if connections are not limited.
struct Counted(Option<(AddressCounts, IpAddr)>);

impl Drop for Counted {
    fn drop(&mut self) {
        let Some((addresses, address)) = &self.0 else { return };
        if let Entry::Occupied(mut count) = addresses.lock().entry(*address) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_counted_per_address_until_they_end() {
        let counts = AddressCounts::default();
        let first: IpAddr = "192.0.2.1".parse().unwrap();
        let second: IpAddr = "192.0.2.2".parse().unwrap();
        let counted = counts.enter(first, Some(1)).unwrap();
        assert!(counts.enter(first, Some(1)).is_none());
        assert!(counts.enter(second, Some(1)).is_some());
        drop(counted);
        assert!(counts.enter(first, Some(1)).is_some());
        assert!(counts.lock().is_empty());
    }
}
