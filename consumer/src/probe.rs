//! Looks now and then whether Redis and Postgres are there, for `/readyz`.

use std::time::Duration;

use deadpool_postgres::{Pool, PoolError};
use shared::{admin::Check, service::one_line};
use thiserror::Error;
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    schema::{self, SchemaError},
    stream::Streams,
};

const INTERVAL: Duration = Duration::from_secs(2);

#[derive(Debug, Error)]
enum ProbeError {
    #[error("no connection to Postgres")]
    Connect(#[from] PoolError),
    #[error(transparent)]
    Schema(#[from] SchemaError),
}

/// Looks for ever.
pub(crate) async fn run(streams: Streams, pool: Pool, redis: Check, postgres: Check) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let (redis_answers, postgres_answers) = tokio::join!(streams.ping(), probe_postgres(&pool));
        report(&redis, redis_answers, "Redis");
        report(&postgres, postgres_answers, "Postgres");
    }
}

async fn probe_postgres(pool: &Pool) -> Result<(), ProbeError> {
    Ok(schema::check(&**pool.get().await?).await?)
}

fn report<E: std::error::Error>(check: &Check, answer: Result<(), E>, server: &str) {
    match answer {
        Ok(()) => {
            if check.pass() {
                tracing::info!(server, "answers");
            }
        }
        Err(error) => {
            let why = one_line(&error);
            if check.fail(&why) {
                tracing::warn!(server, error = why, "does not answer");
            }
        }
    }
}
