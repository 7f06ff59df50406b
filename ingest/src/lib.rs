//! The ingest service: likes come in over HTTP and go out into Redis Streams, grouped, and answered only when Redis
//! has them.
//!
//! `http` takes a request, `like_request` reads its body, `publish` groups and appends, `backlog` says when it is
//! too much, `problem` says no.

mod backlog;
pub mod config;
mod http;
pub mod like_request;
mod metrics;
mod problem;
mod publish;

use std::{io, net::SocketAddr, sync::Arc};

use fred::prelude::Client;
use shared::{
    admin::{self, Health},
    agreement::{self, AgreementError},
    cli::SettingError,
    redis::{Redis, Use},
    service::{Unreachable, wait_for},
    telemetry::Telemetry,
};
use thiserror::Error;
use tokio::{net::TcpListener, time::sleep};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{backlog::Backlog, config::Settings, metrics::Metrics, publish::Publisher};

/// Why ingest ended other than by a signal.
#[derive(Debug, Error)]
pub enum IngestError {
    /// A setting can't be used.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// An address can't be had.
    #[error("{setting}: can't listen on '{address}'")]
    Listen {
        /// The setting's name.
        setting: &'static str,
        /// Its value.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Redis did not come up.
    #[error(transparent)]
    Redis(#[from] Unreachable<fred::error::Error>),
    /// Other programs work on other settings.
    #[error(transparent)]
    Agreement(#[from] AgreementError),
    /// The HTTP server failed.
    #[error("the HTTP server failed")]
    Serve(#[from] io::Error),
    /// Some request would not end.
    #[error("requests were still in flight after DRAIN_TIMEOUT, {0}: they got no answer")]
    Drain(humantime::FormattedDuration),
}

/// Runs ingest until `shutdown`, and then until the requests in flight are answered.
pub async fn run(
    settings: Settings,
    telemetry: Telemetry,
    shutdown: CancellationToken,
) -> Result<(), IngestError> {
    let redis = Redis::new(&settings.redis)?;
    let listener = listen("INGEST_LISTEN", settings.ingest_listen).await?;
    let admin_listener = listen("INGEST_ADMIN_LISTEN", settings.ingest_admin_listen).await?;
    tracing::info!(
        listen = %listener.local_addr()?,
        admin_listen = %admin_listener.local_addr()?,
        "listening"
    );
    let health = Health::default();
    let redis_check = health.check("redis");
    let stop_admin = CancellationToken::new();
    let _admin_ends_with_this = stop_admin.clone().drop_guard();
    tokio::spawn(admin::serve(admin_listener, health, telemetry.clone(), stop_admin));

    let Some(client) = shutdown.run_until_cancelled(connect(&redis, &settings)).await.transpose()? else {
        return Ok(());
    };
    let metrics = Arc::new(Metrics::new(&telemetry.meter()));
    let backlog = Arc::new(Backlog::new(settings.ingest_backlog_limit));
    let sampling = backlog::sample(
        client.clone(),
        settings.streams.clone(),
        Arc::clone(&backlog),
        redis_check,
        Arc::clone(&metrics),
    );
    let _sampling_ends_with_this = AbortOnDropHandle::new(tokio::spawn(sampling));
    let (publisher, appenders) = Publisher::start(&client, &settings, &metrics);
    let service = http::Service { publisher, backlog, metrics, max_body_bytes: settings.ingest_max_body.0 };

    let work = async {
        http::serve(listener, service, shutdown.clone()).await?;
        // The server was the only one with a publisher: its end lets the appenders finish what they hold.
        appenders.join_all().await;
        Ok(())
    };
    let deadline = async {
        shutdown.cancelled().await;
        sleep(settings.drain_timeout).await;
    };
    tokio::select! {
        served = work => served,
        () = deadline => Err(IngestError::Drain(humantime::format_duration(settings.drain_timeout))),
    }
}

async fn listen(setting: &'static str, address: SocketAddr) -> Result<TcpListener, IngestError> {
    TcpListener::bind(address).await.map_err(|source| IngestError::Listen { setting, address, source })
}

async fn connect(redis: &Redis, settings: &Settings) -> Result<Client, IngestError> {
    let server = format!("Redis at {}", redis.address());
    let client =
        wait_for(server, "REDIS_URL", settings.startup_timeout, || redis.connect(Use::Commands)).await?;
    agreement::settle(&client, &settings.streams).await?;
    agreement::warn_of_eviction(&client).await?;
    Ok(client)
}
