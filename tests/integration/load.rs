//! A steady load of likes over HTTP. Every like is sent until it is accepted.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use devstack::{http_client::HttpClient, program::Program};
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::harness::{Setup, eventually, wait_until_drained};

const CALLERS: u64 = 8;

/// Delay before a client retries a refused like.
const RETRY_DELAY: Duration = Duration::from_millis(20);

/// Running clients.
pub(crate) struct Load {
    accepted: Arc<AtomicU64>,
    stop: CancellationToken,
    callers: JoinSet<()>,
}

impl Load {
    /// Starts to send `per_second` likes per second, each for a different user.
    pub(crate) fn start(ingest: SocketAddr, per_second: u64) -> Self {
        let (accepted, stop) = (Arc::new(AtomicU64::new(0)), CancellationToken::new());
        let mut callers = JoinSet::new();
        for caller in 0..CALLERS {
            let pace = Duration::from_secs(CALLERS) / u32::try_from(per_second).unwrap();
            callers.spawn(call(ingest, caller, pace, Arc::clone(&accepted), stop.clone()));
        }
        Self { accepted, stop, callers }
    }

    /// Number of likes accepted so far.
    pub(crate) fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Waits until this number of further likes is accepted.
    pub(crate) async fn wait_for(&self, likes: u64) {
        let until = self.accepted() + likes;
        eventually("likes are accepted", async || self.accepted() >= until).await;
    }

    /// Stops the clients once their current likes are accepted, and returns the number of accepted likes. Each of them must
    /// be in the table exactly once.
    pub(crate) async fn finish(mut self) -> usize {
        self.stop.cancel();
        while let Some(ended) = self.callers.join_next().await {
            ended.unwrap();
        }
        usize::try_from(self.accepted()).unwrap()
    }

    /// Stops the clients, and checks that every like is in the table exactly once, the backlog is empty and no entry is
    /// lost.
    pub(crate) async fn finish_stored(self, setup: &Setup, redis_url: &str, consumers: &[Program]) {
        let sent = self.finish().await;
        setup.wait_for_rows(sent).await;
        wait_until_drained(redis_url).await;
        for consumer in consumers {
            assert_eq!(consumer.metrics().unwrap().sum("likestream_entries_lost_total"), 0.0);
        }
    }
}

async fn call(
    ingest: SocketAddr,
    caller: u64,
    pace: Duration,
    accepted: Arc<AtomicU64>,
    stop: CancellationToken,
) {
    let mut client = HttpClient::new(ingest);
    let mut ticks = interval(pace);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for number in 0.. {
        if stop.run_until_cancelled(ticks.tick()).await.is_none() {
            return;
        }
        let user = 1 + caller + number * CALLERS;
        while !client.post_like(user, 42).await.is_ok_and(|response| response.status == 202) {
            sleep(RETRY_DELAY).await;
        }
        accepted.fetch_add(1, Ordering::Relaxed);
    }
}

/// Longest time without a change of a number.
pub(crate) struct Stalls {
    last: (i64, Instant),
    pub(crate) longest: Duration,
}

impl Stalls {
    pub(crate) fn new() -> Self {
        Self { last: (0, Instant::now()), longest: Duration::ZERO }
    }

    pub(crate) fn saw(&mut self, number: i64) {
        self.longest = self.longest.max(self.last.1.elapsed());
        if number != self.last.0 {
            self.last = (number, Instant::now());
        }
    }
}
