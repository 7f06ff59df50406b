//! The admin port of a service: `/livez`, `/readyz?verbose`, `/metrics`.

use std::{
    collections::BTreeMap,
    fmt::Write,
    io,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Router,
    extract::{RawQuery, State},
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::telemetry::Telemetry;

/// Whether a service can do its work: ready when every check passes.
#[derive(Clone, Default)]
pub struct Health {
    failing: Arc<Mutex<BTreeMap<&'static str, Option<String>>>>,
}

/// One thing that readiness depends on.
#[derive(Clone)]
pub struct Check {
    name: &'static str,
    health: Health,
}

impl Health {
    /// A check that fails until it is first told that it passes.
    pub fn check(&self, name: &'static str) -> Check {
        let check = Check { name, health: self.clone() };
        check.set(Some("not yet known".to_owned()));
        check
    }

    /// Every check by name, with the reason why it fails.
    fn checks(&self) -> BTreeMap<&'static str, Option<String>> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Check {
    /// From now on it passes. Tells whether that is new.
    pub fn pass(&self) -> bool {
        self.set(None)
    }

    /// From now on it fails, for this reason. Tells whether failing (not the reason) is new.
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

/// Serves the admin port until the token is cancelled. It should outlive the draining of the service, so that
/// the last figures can still be read.
pub async fn serve(
    listener: TcpListener,
    health: Health,
    telemetry: Telemetry,
    stop: CancellationToken,
) -> io::Result<()> {
    let router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(Admin { health, telemetry });
    // Not graceful: nobody's work is lost with a scrape, and an idle keep-alive connection must not hold up the end.
    tokio::select! {
        served = axum::serve(listener, router) => served,
        () = stop.cancelled() => Ok(()),
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
            tracing::error!(%error, "metrics could not be rendered");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
