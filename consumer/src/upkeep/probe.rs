//! Probes Redis and Postgres for `/readyz`.

use std::time::Duration;

use deadpool_postgres::{Object, Pool, PoolError};
use shared::{error_chain::one_line, runtime::admin::Check};
use thiserror::Error;
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

use crate::{
    store::schema::{self, SchemaError},
    stream::Streams,
};

const INTERVAL: Duration = Duration::from_secs(2);

/// Timeout for a connection from the pool, and for the response of Postgres.
const LIMIT: Duration = Duration::from_secs(3);

#[derive(Debug, Error)]
enum ProbeError {
    #[error("cannot connect to Postgres")]
    Connect(#[from] PoolError),
    #[error(transparent)]
    Schema(#[from] SchemaError),
    #[error("no response within {} s", LIMIT.as_secs())]
    Timeout,
}

/// Probes both servers periodically until dropped.
pub(crate) async fn run(streams: Streams, pool: Pool, redis: Check, postgres: Check) {
    tokio::join!(watch_redis(streams, redis), watch_postgres(pool, postgres));
}

async fn watch_redis(streams: Streams, check: Check) {
    let mut ticks = ticks();
    loop {
        ticks.tick().await;
        report(&check, streams.ping().await, "Redis");
    }
}

async fn watch_postgres(pool: Pool, check: Check) {
    let mut ticks = ticks();
    loop {
        ticks.tick().await;
        report(&check, probe_postgres(&pool).await, "Postgres");
    }
}

fn ticks() -> Interval {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

async fn probe_postgres(pool: &Pool) -> Result<(), ProbeError> {
    let connection = timeout(LIMIT, pool.get()).await.map_err(|_| ProbeError::Timeout)??;
    let answer = timeout(LIMIT, schema::check(&**connection)).await;
    if answer.is_err() {
        // The response is still outstanding, so the connection cannot be reused.
        drop(Object::take(connection));
    }
    Ok(answer.map_err(|_| ProbeError::Timeout)??)
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
