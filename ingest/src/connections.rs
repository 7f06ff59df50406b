//! Connections from accept to close.

use std::time::Duration;

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, task::JoinSet, time::sleep};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long the head of a request may take to arrive, and a connection to be idle before the next one.
const HEAD_TIMEOUT: Duration = Duration::from_mins(1);

/// At the end, when every request is answered, how long the answers may take to leave.
const LINGER: Duration = Duration::from_millis(500);

/// Before the next try when the system gives no more connections.
const ACCEPT_RETRY: Duration = Duration::from_millis(200);

/// Serves until `shutdown`, from when on no connection is accepted, and then until the requests in flight, which are
/// those that the tracker tracks, are answered. Connections on which there is none are then closed.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    requests: TaskTracker,
    max_connections: usize,
    shutdown: CancellationToken,
) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(HEAD_TIMEOUT);
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    loop {
        // Beyond the limit callers wait in the system's own queue, which is bounded, too.
        let accepted = tokio::select! {
            accepted = listener.accept(), if connections.len() < max_connections => accepted,
            Some(_) = connections.join_next() => continue,
            () = shutdown.cancelled() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "no connection can be accepted");
                sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY could not be set");
        }
        let service = TowerToHyperService::new(router.clone());
        let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
        let connection = graceful.watch(connection);
        connections.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error, "a connection broke");
            }
        });
    }
    drop(listener);
    requests.close();
    let answered = async {
        requests.wait().await;
        sleep(LINGER).await;
    };
    tokio::select! {
        () = graceful.shutdown() => {}
        () = answered => {}
    }
    connections.shutdown().await;
}
