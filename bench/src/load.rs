//! Callers of `POST /likes` and `POST /likes/batch`.

use std::{
    fmt::Write,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use devstack::http_client::HttpClient;
use hdrhistogram::Histogram;
use hyper::StatusCode;
use shared::wire::partition::mix;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use crate::BenchError;

/// How many callers there are, and how many likes they send with each request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Callers {
    pub(crate) connections: u32,
    pub(crate) likes_per_request: u32,
}

impl Callers {
    pub(crate) const fn new(connections: u32, likes_per_request: u32) -> Self {
        Self { connections, likes_per_request }
    }

    /// As cases are called.
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

/// How callers call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// By `POST /likes/batch` where they send several likes with a request.
    pub(crate) callers: Callers,
    /// Requests a second in all, whether earlier ones are answered or not; or else each caller sends its next like when it
    /// has an answer.
    pub(crate) per_second: Option<f64>,
    pub(crate) duration: Duration,
    /// Where the ids of users begin: no pair is sent twice.
    pub(crate) first_user: u64,
}

/// What callers saw.
pub(crate) struct Answers {
    pub(crate) accepted: u64,
    pub(crate) elapsed: Duration,
    /// From when a like was due, in microseconds.
    pub(crate) latency_us: Histogram<u64>,
}

impl Answers {
    pub(crate) fn per_second(&self) -> f64 {
        self.accepted as f64 / self.elapsed.as_secs_f64()
    }

    pub(crate) fn latency_ms(&self, quantile: f64) -> f64 {
        self.latency_us.value_at_quantile(quantile) as f64 / 1e3
    }
}

/// Sends likes, all of which must be accepted.
pub(crate) async fn send(address: SocketAddr, load: Load) -> Result<Answers, BenchError> {
    let next = Arc::new(AtomicU64::new(0));
    let mut callers = JoinSet::new();
    let started = Instant::now();
    for _ in 0..load.callers.connections {
        callers.spawn(call(address, load, Arc::clone(&next), started));
    }
    let mut latency_us = histogram()?;
    while let Some(called) = callers.join_next().await {
        latency_us.add(called??)?;
    }
    let accepted = latency_us.len() * u64::from(load.callers.likes_per_request);
    Ok(Answers { accepted, elapsed: started.elapsed(), latency_us })
}

fn histogram() -> Result<Histogram<u64>, BenchError> {
    Ok(Histogram::new_with_bounds(1, 60_000_000, 3)?)
}

async fn call(
    address: SocketAddr,
    load: Load,
    next: Arc<AtomicU64>,
    started: Instant,
) -> Result<Histogram<u64>, BenchError> {
    let mut client = HttpClient::new(address);
    let mut latency_us = histogram()?;
    loop {
        let index = next.fetch_add(1, Ordering::Relaxed);
        let mut due = Instant::now();
        if let Some(per_second) = load.per_second {
            let scheduled = started + Duration::from_secs_f64(index as f64 / per_second);
            if due < scheduled {
                // That the timer is late is not the server's fault; that this caller was still busy is.
                sleep_until(scheduled).await;
                due = Instant::now();
            } else {
                due = scheduled;
            }
        }
        if started.elapsed() >= load.duration {
            return Ok(latency_us);
        }
        let response = if load.callers.likes_per_request == 1 {
            client.post_like(load.first_user + index, post_of(index)).await?
        } else {
            client.post("/likes/batch", "application/x-ndjson", lines(load, index).into()).await?
        };
        if response.status != StatusCode::ACCEPTED {
            return Err(BenchError::Refused(response.status));
        }
        latency_us.saturating_record(u64::try_from(due.elapsed().as_micros()).unwrap_or(u64::MAX));
    }
}

fn post_of(index: u64) -> u64 {
    1 + mix(index) % 1_000
}

/// The body of a request of several likes, each a line.
fn lines(load: Load, request: u64) -> String {
    let likes = u64::from(load.callers.likes_per_request);
    let mut body = String::new();
    for index in request * likes..(request + 1) * likes {
        let (user, post) = (load.first_user + index, post_of(index));
        // A String takes every write.
        let _ = writeln!(body, r#"{{"user_id":{user},"post_id":{post}}}"#);
    }
    body
}
