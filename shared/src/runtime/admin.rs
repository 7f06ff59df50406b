//! The admin port of a service: `/livez`, `/readyz?verbose`, `/metrics` and `/loglevel` (read, set, reset).

use std::{
    collections::BTreeMap,
    fmt::Write,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    extract::{DefaultBodyLimit, RawQuery, State},
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use opentelemetry::{KeyValue, metrics::Meter};
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::telemetry::{Telemetry, names};

const MAX_DIRECTIVES_BYTES: usize = 4 << 10;

/// Maximum lifetime of a connection, so that an idle client does not hold a file descriptor.
const CONNECTION_LIFE: Duration = Duration::from_secs(10);
const CLOSE_GRACE: Duration = Duration::from_secs(2);
const MAX_CONNECTIONS: usize = 64;

/// Delay after a failed accept.
const ACCEPT_RETRY: Duration = Duration::from_millis(200);

/// Readiness of a service: ready when every check passes.
#[derive(Clone, Default)]
pub struct Health {
    failing: Arc<Mutex<BTreeMap<&'static str, Option<String>>>>,
}

/// One readiness check.
#[derive(Clone)]
pub struct Check {
    name: &'static str,
    health: Health,
}

impl Health {
    /// Registers a check, which fails until its first [`Check::pass`].
    pub fn check(&self, name: &'static str) -> Check {
        let check = Check { name, health: self.clone() };
        check.set(Some("not checked yet".to_owned()));
        check
    }

    /// Registers the checks as a metric.
    fn observe(&self, meter: &Meter) {
        let health = self.clone();
        let observe = move |observer: &dyn opentelemetry::metrics::AsyncInstrument<u64>| {
            for (name, failing) in health.checks() {
                observer.observe(failing.is_none().into(), &[KeyValue::new(names::CHECK, name)]);
            }
        };
        let gauge = meter.u64_observable_gauge(names::metric::CHECK_PASSING).with_callback(observe);
        gauge.with_description("1 if a check of /readyz passes, otherwise 0").build();
    }

    /// Returns every check by name, with the reason why it fails.
    pub fn checks(&self) -> BTreeMap<&'static str, Option<String>> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Check {
    /// Marks the check as passing. Returns whether that is a change.
    pub fn pass(&self) -> bool {
        self.set(None)
    }

    /// Marks the check as failing. Returns whether that is a change; a new reason alone is not.
    pub fn fail(&self, why: impl Into<String>) -> bool {
        self.set(Some(why.into()))
    }

    fn set(&self, failing: Option<String>) -> bool {
        let mut checks = self.health.failing.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = failing.is_some();
        checks.insert(self.name, failing).is_none_or(|before| before.is_some() != failed)
    }
}

#[derive(Clone)]
struct Admin {
    health: Health,
    telemetry: Telemetry,
}

/// Serves the admin port until the token is cancelled. It should outlive the drain of the service, so that the last metrics
/// can be scraped.
pub async fn serve(listener: TcpListener, health: Health, telemetry: Telemetry, stop: CancellationToken) {
    health.observe(&telemetry.meter());
    let router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/loglevel", get(log_level).put(set_log_level).delete(reset_log_level))
        .layer(DefaultBodyLimit::max(MAX_DIRECTIVES_BYTES))
        .with_state(Admin { health, telemetry });
    // Not a graceful shutdown: an interrupted scrape loses nothing, and an idle connection must not delay the exit.
    stop.run_until_cancelled(serve_connections(listener, router)).await;
}

async fn serve_connections(listener: TcpListener, router: Router) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while let Ok(place) = Arc::clone(&room).acquire_owned().await {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(ACCEPT_RETRY).await;
            continue;
        };
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let server = auto::Builder::new(TokioExecutor::new());
            let mut connection = pin!(server.serve_connection(TokioIo::new(stream), service));
            // Errors concern only the client. A response that has begun is completed.
            if timeout(CONNECTION_LIFE, connection.as_mut()).await.is_err() {
                connection.as_mut().graceful_shutdown();
                let _ = timeout(CLOSE_GRACE, connection).await;
            }
            drop(place);
        });
    }
}

async fn readyz(State(admin): State<Admin>, RawQuery(query): RawQuery) -> impl IntoResponse {
    let checks = admin.health.checks();
    let ready = checks.values().all(Option::is_none);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let verbose =
        query.is_some_and(|q| q.split('&').any(|key| key == "verbose" || key.starts_with("verbose=")));
    let mut text = String::new();
    if verbose {
        for (name, failing) in &checks {
            let _ = match failing {
                None => writeln!(text, "[+] {name} ok"),
                Some(why) => writeln!(text, "[-] {name} failed: {why}"),
            };
        }
    }
    text.push_str(if ready { "ready\n" } else { "not ready\n" });
    (status, text)
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    match admin.telemetry.prometheus_text() {
        Ok(text) => {
            ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "metrics cannot be rendered");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn log_level(State(admin): State<Admin>) -> String {
    admin.telemetry.log_level().current() + "\n"
}

async fn set_log_level(State(admin): State<Admin>, directives: String) -> (StatusCode, String) {
    let log_level = admin.telemetry.log_level();
    match log_level.set(directives.trim()) {
        Ok(()) => {
            let current = log_level.current();
            tracing::warn!(directives = current, "log level changed");
            (StatusCode::OK, current + "\n")
        }
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}

/// Restores the directives of the start.
async fn reset_log_level(State(admin): State<Admin>) -> String {
    let log_level = admin.telemetry.log_level();
    log_level.reset();
    let current = log_level.current();
    tracing::warn!(directives = current, "log level changed back to RUST_LOG");
    current + "\n"
}
