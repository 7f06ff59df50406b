//! The simple design, for comparison: one INSERT, and therefore one transaction, per like.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use devstack::postgres_server::connect;
use thiserror::Error;
use tokio::task::JoinSet;

use crate::{load::Load, progress::Progress};

const LIKES: u64 = 20_000;
const CONNECTIONS: usize = 32;

/// Throughput of the simple design.
pub(crate) struct InsertedEach {
    pub(crate) likes: u64,
    pub(crate) likes_per_second: f64,
}

#[derive(Debug, Error)]
pub(crate) enum InsertEachError {
    #[error("the comparison with single INSERTs failed")]
    Postgres(#[from] tokio_postgres::Error),
    #[error("the comparison with single INSERTs panicked")]
    Crashed(#[from] tokio::task::JoinError),
}

/// Inserts the first likes of the load into a copy of the table.
pub(crate) async fn run(load: Load, database_url: &str) -> Result<InsertedEach, InsertEachError> {
    let client = connect(database_url).await?;
    client.batch_execute("CREATE TABLE likes_inserted_each (LIKE likes INCLUDING ALL)").await?;

    let likes = LIKES.min(load.likes);
    let next = Arc::new(AtomicU64::new(0));
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        let client = connect(database_url).await?;
        let insert = "INSERT INTO likes_inserted_each VALUES ($1, $2, now()) ON CONFLICT DO NOTHING";
        let insert = client.prepare(insert).await?;
        connections.push((client, insert));
    }
    let mut progress = Progress::new("inserts", likes);
    let started = Instant::now();
    let mut writers = JoinSet::new();
    for (client, insert) in connections {
        let next = Arc::clone(&next);
        writers.spawn(async move {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= likes {
                    return Ok::<_, tokio_postgres::Error>(());
                }
                let (user, post) = load.pair(load.first_of_pair(index));
                client.execute(&insert, &[&user.cast_signed(), &post.cast_signed()]).await?;
            }
        });
    }
    while let Some(written) = writers.join_next().await {
        written??;
        progress.update(next.load(Ordering::Relaxed));
    }
    let seconds = started.elapsed().as_secs_f64();
    progress.update(likes);
    progress.finish();
    client.batch_execute("DROP TABLE likes_inserted_each").await?;
    Ok(InsertedEach { likes, likes_per_second: likes as f64 / seconds })
}
