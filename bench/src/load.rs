//! HTTP clients of `POST /likes` and `POST /likes/batch`.

use std::{
    fmt::Write,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use devstack::{http_client::HttpClient, latency::Latencies};
use hyper::StatusCode;
use shared::wire::partition::mix;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use crate::BenchError;

/// Number of clients and of likes in each request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clients {
    pub(crate) connections: u32,
    pub(crate) likes_per_request: u32,
}

impl Clients {
    pub(crate) const fn new(connections: u32, likes_per_request: u32) -> Self {
        Self { connections, likes_per_request }
    }

    /// Name of the case with these clients.
    pub(crate) fn name(self) -> String {
        let connections = if self.connections == 1 { "connection" } else { "connections" };
        let name = format!("{} {connections}", self.connections);
        if self.likes_per_request == 1 {
            name
        } else {
            format!("{name}, batches of {}", self.likes_per_request)
        }
    }
}

/// Requests of a load run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Clients with several likes per request use `POST /likes/batch`.
    pub(crate) clients: Clients,
    /// Open loop: total requests per second, independent of responses. None is a closed loop, in which each client waits
    /// for the response before its next request.
    pub(crate) per_second: Option<f64>,
    pub(crate) duration: Duration,
    /// First user id, so that no pair is sent twice.
    pub(crate) first_user: u64,
}

impl Load {
    pub(crate) const fn closed_loop(clients: Clients, duration: Duration) -> Self {
        Self { clients, per_second: None, duration, first_user: 1 }
    }
}

/// Result of a load run.
pub(crate) struct Responses {
    pub(crate) accepted: u64,
    pub(crate) elapsed: Duration,
    /// Measured from the time at which a request was due.
    pub(crate) latencies: Latencies,
}

impl Responses {
    pub(crate) fn per_second(&self) -> f64 {
        self.accepted as f64 / self.elapsed.as_secs_f64()
    }
}

/// Sends likes, all of which must be accepted.
pub(crate) async fn send(address: SocketAddr, load: Load) -> Result<Responses, BenchError> {
    let next = Arc::new(AtomicU64::new(0));
    let mut clients = JoinSet::new();
    let started = Instant::now();
    for _ in 0..load.clients.connections {
        clients.spawn(run_client(address, load, Arc::clone(&next), started));
    }
    let mut latencies = Latencies::default();
    while let Some(client) = clients.join_next().await {
        latencies += client??;
    }
    let accepted = latencies.count() * u64::from(load.clients.likes_per_request);
    Ok(Responses { accepted, elapsed: started.elapsed(), latencies })
}

async fn run_client(
    address: SocketAddr,
    load: Load,
    next: Arc<AtomicU64>,
    started: Instant,
) -> Result<Latencies, BenchError> {
    let mut client = HttpClient::new(address);
    let mut latencies = Latencies::default();
    loop {
        let index = next.fetch_add(1, Ordering::Relaxed);
        let mut due = Instant::now();
        if let Some(per_second) = load.per_second {
            let scheduled = started + Duration::from_secs_f64(index as f64 / per_second);
            if due < scheduled {
                // A late timer does not count as latency of the server; a client that was still busy does.
                sleep_until(scheduled).await;
                due = Instant::now();
            } else {
                due = scheduled;
            }
        }
        if started.elapsed() >= load.duration {
            return Ok(latencies);
        }
        let response = if load.clients.likes_per_request == 1 {
            client.post_like(load.first_user + index, post_of(index)).await?
        } else {
            client.post("/likes/batch", "application/x-ndjson", lines(load, index).into()).await?
        };
        if response.status != StatusCode::ACCEPTED {
            return Err(BenchError::Refused(response.status));
        }
        latencies.record(due.elapsed());
    }
}

fn post_of(index: u64) -> u64 {
    1 + mix(index) % 1_000
}

/// Body of a batch request with one like per line.
fn lines(load: Load, request: u64) -> String {
    let likes = u64::from(load.clients.likes_per_request);
    let mut body = String::new();
    for index in request * likes..(request + 1) * likes {
        let user = load.first_user + index;
        let post = post_of(index);
        // Writing to a String never fails.
        let _ = writeln!(body, r#"{{"user_id":{user},"post_id":{post}}}"#);
    }
    body
}
