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
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout_at},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::Service;

use crate::edge::activity::Activity;
use crate::{
    config::Settings,
    edge::{open_files::room_for_connections, quotas::customer, tls::Tls},
    metrics::Metrics,
};

/// At the end, when every request is answered, how long the answers may take to leave.
const LINGER: Duration = Duration::from_millis(500);

/// How long a connection that was idle for too long may take to end in peace.
const GOODBYE: Duration = Duration::from_secs(1);

/// Before the next try when the system gives no more connections.
const ACCEPT_RETRY: Duration = Duration::from_millis(200);

/// How often a peer that speaks HTTP/2 is asked whether it is there, and how long it may take to say so.
const PING_INTERVAL: Duration = Duration::from_secs(20);

/// The head of a request, and the part of a body that is read at once. With a head that is longer callers get 431.
const MAX_BUFFER_BYTES: u16 = 16 << 10;

/// How many requests of one HTTP/2 connection may be in flight.
const MAX_STREAMS: u32 = 128;

/// How much of all bodies of one HTTP/2 connection, and of one, may be on the way and not read.
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
const STREAM_WINDOW_BYTES: u32 = 64 << 10;

/// Who is at the other end of the connection that a request came by.
#[derive(Clone, Copy)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// What connections may cost.
pub(crate) struct ConnectionLimits {
    max_connections: usize,
    address_connections: Option<u32>,
    pub(super) head_timeout: Duration,
    pub(super) answer_timeout: Duration,
    pub(super) idle_timeout: Duration,
}

impl ConnectionLimits {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            max_connections: room_for_connections(settings.ingest_max_connections as usize),
            address_connections: settings.limits.ingest_address_connections,
            head_timeout: settings.ingest_head_timeout,
            answer_timeout: settings.ingest_body_timeout,
            idle_timeout: settings.ingest_idle_timeout,
        }
    }
}

/// Serves connections.
pub(crate) struct Server {
    pub(crate) router: Router,
    pub(crate) limits: ConnectionLimits,
    pub(crate) tls: Option<Tls>,
    /// Tracks the requests in flight.
    pub(crate) requests: TaskTracker,
    pub(crate) metrics: Arc<Metrics>,
}

impl Server {
    /// Serves until `shutdown`, from when on no connection is accepted, and then until the requests in flight are
    /// answered. Connections on which there is none are then closed.
    pub(crate) async fn run(self, listener: TcpListener, shutdown: CancellationToken) {
        let builder = Arc::new(Self::builder());
        let (mut connections, failures) = (JoinSet::new(), LogRate::default());
        let of_addresses = OfAddresses::default();
        loop {
            // Beyond the limit callers wait in the system's own queue, which is bounded, too.
            let has_room = connections.len() < self.limits.max_connections;
            let accepted = tokio::select! {
                accepted = listener.accept(), if has_room => accepted,
                Some(_) = connections.join_next() => {
                    self.metrics.connection_closed();
                    continue;
                }
                () = shutdown.cancelled() => break,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    if let Some(attempts) = failures.record(1) {
                        tracing::warn!(%error, attempts, "no connection can be accepted");
                    }
                    sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            let Some(inside) = of_addresses.enter(peer.ip(), self.limits.address_connections) else {
                tracing::debug!(%peer, "an address has too many connections");
                continue;
            };
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "TCP_NODELAY could not be set");
            }
            let connection = Connection {
                builder: Arc::clone(&builder),
                router: self.router.clone(),
                peer,
                activity: Arc::new(Activity::new(&self.limits)),
                shutdown: shutdown.clone(),
            };
            let tls = self.tls.as_ref().map(Tls::acceptor);
            let serving = connection.serve(stream, tls);
            self.metrics.connection_opened();
            connections.spawn(async move {
                let _inside = inside;
                serving.await;
            });
        }
        drop(listener);
        self.requests.close();
        let answered = async {
            // A request may have been on its way when the others were answered.
            loop {
                self.requests.wait().await;
                sleep(LINGER).await;
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

    fn builder() -> Builder<TokioExecutor> {
        let mut builder = Builder::new(TokioExecutor::new());
        // Without a timer: that of `Activity` is for both versions.
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
        match tls {
            None => self.serve_http(stream).await,
            // What TLS waits for is large, and connections without it need not have room for it.
            Some(tls) => Box::pin(self.serve_tls(stream, tls)).await,
        }
    }

    async fn serve_tls(self, stream: TcpStream, tls: TlsAcceptor) {
        let handshake = tokio::select! {
            shaken = timeout_at(self.activity.idle_at(), tls.accept(stream)) => shaken,
            () = self.shutdown.cancelled() => return,
        };
        match handshake {
            Ok(Ok(stream)) => self.serve_http(stream).await,
            Ok(Err(error)) => tracing::debug!(peer = %self.peer, %error, "no TLS"),
            Err(_) => tracing::debug!(peer = %self.peer, "the TLS handshake took too long"),
        }
    }

    async fn serve_http(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let Self { builder, router, peer, activity, shutdown } = self;
        let watch = Arc::clone(&activity);
        let service = service_fn(move |mut request: Request<Incoming>| {
            let in_flight = watch.request();
            request.extensions_mut().insert(Peer(peer.ip()));
            let answer = router.clone().call(request);
            async move { answer.await.map(|response| in_flight.answered(response)) }
        });
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let mut look = pin!(sleep_until(activity.look_at()));
        let (mut stopping, mut leaving) = (false, false);
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(%peer, error, "a connection broke");
                    }
                    return;
                }
                () = look.as_mut() => {
                    if Instant::now() < activity.idle_at() {
                        look.as_mut().reset(activity.look_at());
                        continue;
                    }
                    if leaving || activity.has_unsent() {
                        return;
                    }
                    tracing::debug!(%peer, "a connection was idle for too long");
                    connection.as_mut().graceful_shutdown();
                    leaving = true;
                    look.as_mut().reset(Instant::now() + GOODBYE);
                }
                () = shutdown.cancelled(), if !stopping => {
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

/// How many connections each address has, where that is limited.
#[derive(Clone, Default)]
struct OfAddresses(Arc<Mutex<HashMap<IpAddr, u32>>>);

impl OfAddresses {
    /// For as long as the guard is there the address has one more, if it may.
    fn enter(&self, peer: IpAddr, max: Option<u32>) -> Option<Inside> {
        let Some(max) = max else { return Some(Inside(None)) };
        let address = customer(peer);
        let mut counts = self.counts();
        let count = counts.entry(address).or_default();
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(Inside(Some((self.clone(), address))))
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<IpAddr, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that counts for its address, where connections are counted.
struct Inside(Option<(OfAddresses, IpAddr)>);

impl Drop for Inside {
    fn drop(&mut self) {
        let Some((of_addresses, address)) = &self.0 else { return };
        if let Entry::Occupied(mut count) = of_addresses.counts().entry(*address) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}
