//! The admin port of a service: `/livez`, `/readyz?verbose`, `/metrics` and `/loglevel` (read, set, reset).

use std::{
    collections::BTreeMap,
    fmt::Write,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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

/// Readiness of a service: ready while every check passes that readiness depends on, until shutdown.
#[derive(Clone, Default)]
pub struct Health {
    checks: Arc<Mutex<BTreeMap<&'static str, CheckState>>>,
    shutdown: CancellationToken,
}

#[derive(Clone)]
struct CheckState {
    failing: Option<String>,
    /// Shown while the check passes; empty for none.
    note: String,
    is_checked: bool,
    /// Whether readiness depends on the check only until its first pass.
    is_of_start: bool,
    has_passed: bool,
}

impl CheckState {
    fn allows_ready(&self) -> bool {
        self.failing.is_none() || (self.is_of_start && self.has_passed)
    }
}

/// One readiness check.
#[derive(Clone)]
pub struct Check {
    name: &'static str,
    health: Health,
}

impl Health {
    /// Returns the readiness of a service that is not ready from `shutdown` on.
    pub fn new(shutdown: CancellationToken) -> Self {
        Self { checks: Arc::default(), shutdown }
    }

    /// Registers a check, which fails until its first [`Check::pass`].
    pub fn check(&self, name: &'static str) -> Check {
        self.register(name, false)
    }

    /// Registers a check of the start, which fails until its first [`Check::pass`]. From then on, readiness no longer
    /// depends on it, but its failures are still reported. For a service that answers by itself in an outage.
    pub fn start_check(&self, name: &'static str) -> Check {
        self.register(name, true)
    }

    fn register(&self, name: &'static str, is_of_start: bool) -> Check {
        let failing = Some("not checked yet".to_owned());
        let state =
            CheckState { failing, note: String::new(), is_checked: false, is_of_start, has_passed: false };
        self.lock().insert(name, state);
        Check { name, health: self.clone() }
    }

    /// Registers the checks as a metric.
    fn observe(&self, meter: &Meter) {
        let health = self.clone();
        let observe = move |observer: &dyn opentelemetry::metrics::AsyncInstrument<u64>| {
            for (name, check) in health.lock().iter() {
                observer.observe(check.failing.is_none().into(), &[KeyValue::new(names::CHECK, *name)]);
            }
        };
        let gauge = meter.u64_observable_gauge(names::metric::CHECK_PASSING).with_callback(observe);
        gauge.with_description("1 if a check of /readyz passes, otherwise 0").build();
    }

    /// Returns every check by name, with the reason why it fails.
    pub fn checks(&self) -> BTreeMap<&'static str, Option<String>> {
        self.lock().iter().map(|(name, check)| (*name, check.failing.clone())).collect()
    }

    fn is_ready(&self) -> bool {
        !self.shutdown.is_cancelled() && self.lock().values().all(CheckState::allows_ready)
    }

    /// Returns one line per check, and one after the request to shut down.
    fn report(&self) -> String {
        let mut text = String::new();
        for (name, CheckState { failing, note, .. }) in self.lock().iter() {
            let _ = match failing {
                None if note.is_empty() => writeln!(text, "[+] {name} ok"),
                None => writeln!(text, "[+] {name} ok: {note}"),
                Some(why) => writeln!(text, "[-] {name} failed: {why}"),
            };
        }
        if self.shutdown.is_cancelled() {
            text.push_str("[-] shutdown requested\n");
        }
        text
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, CheckState>> {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Check {
    /// Marks the check as passing. Returns whether that is a change.
    pub fn pass(&self) -> bool {
        self.set(None)
    }

    /// Marks the check as failing. Returns whether that is a change, as the first failure is; a new reason alone is not.
    pub fn fail(&self, why: impl Into<String>) -> bool {
        self.set(Some(why.into()))
    }

    /// Sets a note that is shown while the check passes; an empty one removes it.
    pub fn note(&self, note: impl Into<String>) {
        if let Some(check) = self.health.lock().get_mut(self.name) {
            check.note = note.into();
        }
    }

    fn set(&self, failing: Option<String>) -> bool {
        let mut checks = self.health.lock();
        let Some(check) = checks.get_mut(self.name) else { return false };
        let is_change = !check.is_checked || check.failing.is_some() != failing.is_some();
        check.is_checked = true;
        check.has_passed |= failing.is_none();
        check.failing = failing;
        is_change
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
    let ready = admin.health.is_ready();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let verbose =
        query.is_some_and(|q| q.split('&').any(|key| key == "verbose" || key.starts_with("verbose=")));
    let mut text = if verbose { admin.health.report() } else { String::new() };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_ready_while_all_checks_pass() {
        let health = Health::default();
        let (redis, postgres) = (health.check("redis"), health.check("postgres"));
        assert!(redis.pass() && !health.is_ready());
        assert!(postgres.pass() && health.is_ready());
        assert!(postgres.fail("gone") && !postgres.fail("still gone") && !health.is_ready());
        assert_eq!(health.report(), "[-] postgres failed: still gone\n[+] redis ok\n");
    }

    #[test]
    fn a_check_of_the_start_makes_a_service_not_ready_only_until_it_passes() {
        let health = Health::default();
        let (redis, other) = (health.start_check("redis"), health.check("other"));
        other.pass();
        assert!(redis.fail("refused") && !redis.fail("still refused") && !health.is_ready());
        assert!(redis.pass() && health.is_ready());
        assert!(redis.fail("gone") && health.is_ready());
        assert_eq!(health.report(), "[+] other ok\n[-] redis failed: gone\n");
        assert!(other.fail("broken") && !health.is_ready());
    }

    #[test]
    fn a_service_is_not_ready_during_shutdown() {
        let shutdown = CancellationToken::new();
        let health = Health::new(shutdown.clone());
        assert!(health.start_check("redis").pass() && health.is_ready());
        shutdown.cancel();
        assert!(!health.is_ready());
        assert_eq!(health.report(), "[+] redis ok\n[-] shutdown requested\n");
    }
}
