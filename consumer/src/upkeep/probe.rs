//! Probes Redis and Postgres for `/readyz`.

use std::{pin::pin, time::Duration};

use shared::{
    error_chain::one_line,
    postgres::{ConnectError, Pool, PooledSession},
    runtime::admin::Check,
};
use thiserror::Error;
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

use crate::{
    store::schema::{self, SchemaError},
    stream::Streams,
};

const INTERVAL: Duration = Duration::from_secs(2);

/// Time after which Postgres counts as unavailable. The probe waits on: another one would need another connection.
const LIMIT: Duration = Duration::from_secs(3);

/// Time after which the probe closes its connection.
const GIVE_UP: Duration = Duration::from_secs(15);

#[derive(Debug, Error)]
enum ProbeError {
    #[error("cannot connect to Postgres")]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Schema(#[from] SchemaError),
    #[error("no response within {}", humantime::format_duration(*.0))]
    Timeout(Duration),
}

/// Probes both servers periodically until dropped.
pub(crate) async fn run(streams: Streams, pool: Pool, redis: Check, postgres: Check) {
    tokio::join!(watch_redis(streams, redis), watch_postgres(pool, postgres));
}

async fn watch_redis(streams: Streams, check: Check) {
    let mut ticks = ticks();
    loop {
        ticks.tick().await;
        report(&check, streams.check().await, "Redis");
    }
}

async fn watch_postgres(pool: Pool, check: Check) {
    let mut ticks = ticks();
    loop {
        ticks.tick().await;
        let mut probing = pin!(probe_postgres(&pool));
        if let Ok(answer) = timeout(LIMIT, &mut probing).await {
            report(&check, answer, "Postgres");
            continue;
        }
        report(&check, Err(ProbeError::Timeout(LIMIT)), "Postgres");
        report(&check, probing.await, "Postgres");
    }
}

fn ticks() -> Interval {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

async fn probe_postgres(pool: &Pool) -> Result<(), ProbeError> {
    let connection = pool.get().await?;
    let answer = timeout(GIVE_UP, schema::check(&**connection)).await;
    if answer.is_err() {
        // The response is still outstanding, so the connection cannot be reused.
        drop(PooledSession::take(connection));
    }
    Ok(answer.map_err(|_| ProbeError::Timeout(GIVE_UP))??)
}

fn report<E: std::error::Error + 'static>(check: &Check, answer: Result<(), E>, server: &str) {
    match answer {
        Ok(()) => {
            if check.pass() {
                tracing::info!(server, "server probe succeeded");
            }
        }
        Err(error) => {
            let error = one_line(&error);
            if check.fail(&error) {
                tracing::warn!(server, error, "server probe failed");
            }
        }
    }
}
