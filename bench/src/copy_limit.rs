//! What Postgres can take: the same rows straight into the table, by binary COPY and nothing else.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::SinkExt;
use shared::{postgres::copy_format, wire::like::Like};
use tokio::{pin, task::JoinSet};
use tokio_postgres::{Client, NoTls};

use crate::BenchError;

const COPY: &str = "COPY likes (user_id, post_id, created_at) FROM STDIN (FORMAT binary)";

/// Writes rows, in the order in which they are given, in transactions of `batch_rows` over so many connections, and
/// tells how long that took. Everything but the writing is done before.
pub(crate) async fn run(
    database_url: &str,
    rows: &[Like],
    connections: usize,
    batch_rows: usize,
) -> Result<Duration, BenchError> {
    let batches: Arc<[Bytes]> = rows.chunks(batch_rows).map(copy_format::encode).collect();
    let mut clients = Vec::new();
    for _ in 0..connections {
        let (client, connection) = tokio_postgres::connect(database_url, NoTls).await?;
        tokio::spawn(connection);
        clients.push(client);
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
