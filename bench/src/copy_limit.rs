//! Upper limit of Postgres: binary COPY of the same rows into the table.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use devstack::postgres_server::connect;
use futures_util::SinkExt;
use shared::{postgres::copy_format, wire::like::Like};
use tokio::{pin, task::JoinSet};
use tokio_postgres::Client;

use crate::BenchError;

const COPY: &str = "COPY likes (user_id, post_id, created_at) FROM STDIN (FORMAT binary)";

/// Writes rows in order, in transactions of `batch_rows` over several connections, and returns the duration.
/// Encoding and connecting are not measured.
pub(crate) async fn run(
    database_url: &str,
    rows: &[Like],
    connections: usize,
    batch_rows: usize,
) -> Result<Duration, BenchError> {
    let batches: Arc<[Bytes]> = rows.chunks(batch_rows).map(copy_format::encode).collect();
    let mut clients = Vec::new();
    for _ in 0..connections {
        clients.push(connect(database_url).await?);
    }
    let next = Arc::new(AtomicUsize::new(0));
    let started = Instant::now();
    let mut writers = JoinSet::new();
    for client in clients {
        writers.spawn(write(client, Arc::clone(&batches), Arc::clone(&next)));
    }
    while let Some(written) = writers.join_next().await {
        written??;
    }
    Ok(started.elapsed())
}

async fn write(client: Client, batches: Arc<[Bytes]>, next: Arc<AtomicUsize>) -> Result<(), BenchError> {
    let copy = client.prepare(COPY).await?;
    while let Some(batch) = batches.get(next.fetch_add(1, Ordering::Relaxed)) {
        let sink = client.copy_in(&copy).await?;
        pin!(sink);
        sink.send(batch.clone()).await?;
        sink.finish().await?;
    }
    Ok(())
}
