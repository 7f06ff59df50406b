//! Load of a demo or chaos run: many users like the same post at the same time.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use devstack::{
    http_client::{HttpClient, HttpError},
    latency::Latencies,
};
use hyper::StatusCode;
use shared::wire::partition::mix;
use thiserror::Error;
use tokio::{
    task::JoinSet,
    time::{sleep, sleep_until},
};

use crate::progress::Progress;

const CELEBRITY_POST: u64 = 1_000_000_007;
const OTHER_POSTS: u64 = 1_000;
const OTHER_POSTS_PERCENT: u64 = 10;

/// Post that the table rejects in a chaos run.
pub(crate) const REJECTED_POST: u64 = 2_000_000_011;

/// Attempts per like and the time between them.
const TRIES: u32 = 300;
const RETRY_WAIT: Duration = Duration::from_millis(200);

/// Likes of a run. Each like is computed from its index, so no list is kept in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) likes: u64,
    pub(crate) duplicate_percent: u8,
    /// Likes per thousand that are for [`REJECTED_POST`].
    pub(crate) rejected_per_mille: u16,
}

/// Rate and concurrency of a load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Number of clients, each with one request at a time.
    pub(crate) connections: u16,
    /// Maximum rate over all clients.
    pub(crate) per_second: Option<u32>,
    /// Time to stop, even if likes are left.
    pub(crate) until: Option<Instant>,
}

impl Pace {
    /// Time between two likes of a client.
    fn interval(self) -> Duration {
        self.per_second.map_or(Duration::ZERO, |rate| Duration::from_secs(1) * self.connections.into() / rate)
    }
}

impl Load {
    /// Index of the first like with the same pair: the like itself, unless it is a duplicate.
    pub(crate) fn first_of_pair(self, mut index: u64) -> u64 {
        while index > 0 && mix(index) % 100 < self.duplicate_percent.into() {
            index = mix(index ^ u64::MAX) % index;
        }
        index
    }

    /// User and post of a like that is not a duplicate.
    pub(crate) fn pair(self, first: u64) -> (u64, u64) {
        let draw = mix(first.wrapping_mul(31).wrapping_add(17));
        let post = if (draw >> 48) % 1_000 < self.rejected_per_mille.into() {
            REJECTED_POST
        } else if draw % 100 < OTHER_POSTS_PERCENT {
            1 + (draw >> 32) % OTHER_POSTS
        } else {
            CELEBRITY_POST
        };
        (first + 1, post)
    }

    /// Returns whether the pair with this first like is for [`REJECTED_POST`].
    pub(crate) fn is_rejected(self, first: u64) -> bool {
        self.pair(first).1 == REJECTED_POST
    }

    /// Index of the first like with this pair, if the load contains one.
    pub(crate) fn first_with(self, user_id: i64, post_id: i64) -> Option<u64> {
        let first = u64::try_from(user_id).ok()?.checked_sub(1)?;
        let sent = first < self.likes && self.first_of_pair(first) == first;
        (sent && i64::try_from(self.pair(first).1) == Ok(post_id)).then_some(first)
    }
}

/// Concurrent set of indexes.
pub(crate) struct IndexSet(Vec<AtomicU64>);

impl IndexSet {
    pub(crate) fn new(size: u64) -> Self {
        Self((0..=size / 64).map(|_| AtomicU64::new(0)).collect())
    }

    /// Adds an index and returns whether it is new.
    pub(crate) fn insert(&self, index: u64) -> bool {
        let (word, bit) = Self::place(index);
        self.0.get(word).is_some_and(|word| word.fetch_or(bit, Ordering::Relaxed) & bit == 0)
    }

    pub(crate) fn contains(&self, index: u64) -> bool {
        let (word, bit) = Self::place(index);
        self.0.get(word).is_some_and(|word| word.load(Ordering::Relaxed) & bit != 0)
    }

    pub(crate) fn len(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.load(Ordering::Relaxed).count_ones())).sum()
    }

    #[allow(clippy::cast_possible_truncation, reason = "an index was less than the length of a list")]
    fn place(index: u64) -> (usize, u64) {
        ((index / 64) as usize, 1 << (index % 64))
    }
}

/// Result of a load run.
pub(crate) struct Sent {
    /// Number of 202 responses.
    pub(crate) accepted: u64,
    /// First likes of all accepted pairs.
    pub(crate) pairs: IndexSet,
    /// First likes of pairs with a failed request. They may be stored without having been accepted.
    pub(crate) indeterminate: IndexSet,
    /// Number of requests that were retried.
    pub(crate) retries: u64,
    /// Latency from the start of the last attempt to its 202.
    pub(crate) latencies: Latencies,
    pub(crate) started: Instant,
    pub(crate) elapsed: Duration,
}

impl Sent {
    /// Returns whether the pair with this first like may be stored.
    pub(crate) fn may_have(&self, first: u64) -> bool {
        self.pairs.contains(first) || self.indeterminate.contains(first)
    }

    /// Number of pairs that may be stored without having been accepted.
    pub(crate) fn indeterminate_pairs(&self, load: Load) -> u64 {
        let is_indeterminate =
            |index: &u64| self.indeterminate.contains(*index) && !self.pairs.contains(*index);
        (0..load.likes).filter(is_indeterminate).count() as u64
    }
}

#[derive(Debug, Error)]
pub(crate) enum LoadError {
    #[error("ingest returned {status}: {body}")]
    Refused { status: StatusCode, body: String },
    #[error("ingest did not accept a like in {TRIES} attempts")]
    Exhausted(#[source] Option<HttpError>),
    #[error("a client panicked")]
    Crashed(#[from] tokio::task::JoinError),
}

struct Shared {
    load: Load,
    next: AtomicU64,
    accepted: AtomicU64,
    retries: AtomicU64,
    pairs: IndexSet,
    indeterminate: IndexSet,
}

/// Sends a load and waits for all responses.
pub(crate) async fn send(load: Load, ingest: SocketAddr, pace: Pace) -> Result<Sent, LoadError> {
    let shared = Arc::new(Shared {
        load,
        next: AtomicU64::new(0),
        accepted: AtomicU64::new(0),
        retries: AtomicU64::new(0),
        pairs: IndexSet::new(load.likes),
        indeterminate: IndexSet::new(load.likes),
    });
    let started = Instant::now();
    let mut clients = JoinSet::new();
    for _ in 0..pace.connections {
        clients.spawn(run_client(Arc::clone(&shared), HttpClient::new(ingest), pace));
    }
    let mut progress = Progress::new("sending", load.likes);
    let mut latencies = Latencies::default();
    loop {
        tokio::select! {
            client = clients.join_next() => match client {
                Some(client) => latencies += client??,
                None => break,
            },
            () = sleep(Duration::from_millis(100)) => progress.update(shared.accepted.load(Ordering::Relaxed)),
        }
    }
    let elapsed = started.elapsed();
    let accepted = shared.accepted.load(Ordering::Relaxed);
    progress.update(accepted);
    progress.finish();
    let retries = shared.retries.load(Ordering::Relaxed);
    #[expect(clippy::expect_used, reason = "every client has ended and dropped its reference")]
    let Shared { pairs, indeterminate, .. } = Arc::into_inner(shared).expect("the only reference");
    Ok(Sent { accepted, pairs, indeterminate, retries, latencies, started, elapsed })
}

async fn run_client(shared: Arc<Shared>, mut client: HttpClient, pace: Pace) -> Result<Latencies, LoadError> {
    let mut latencies = Latencies::default();
    let mut next_at = Instant::now();
    loop {
        sleep_until(next_at.into()).await;
        next_at = Instant::now().max(next_at + pace.interval());
        if pace.until.is_some_and(|until| Instant::now() >= until) {
            return Ok(latencies);
        }
        let index = shared.next.fetch_add(1, Ordering::Relaxed);
        if index >= shared.load.likes {
            return Ok(latencies);
        }
        let first = shared.load.first_of_pair(index);
        latencies.record(post_until_accepted(&shared, &mut client, first).await?);
        shared.pairs.insert(first);
        shared.accepted.fetch_add(1, Ordering::Relaxed);
    }
}

async fn post_until_accepted(
    shared: &Shared,
    client: &mut HttpClient,
    first: u64,
) -> Result<Duration, LoadError> {
    let (user_id, post_id) = shared.load.pair(first);
    let mut last_error = None;
    for _ in 0..TRIES {
        let started = Instant::now();
        match client.post_like(user_id, post_id).await {
            Ok(response) if response.status == StatusCode::ACCEPTED => return Ok(started.elapsed()),
            Ok(response) if response.status == StatusCode::SERVICE_UNAVAILABLE => {}
            Ok(response) => {
                let body = String::from_utf8_lossy(&response.body).into_owned();
                return Err(LoadError::Refused { status: response.status, body });
            }
            Err(error) => last_error = Some(error),
        }
        shared.indeterminate.insert(first);
        shared.retries.fetch_add(1, Ordering::Relaxed);
        sleep(RETRY_WAIT).await;
    }
    Err(LoadError::Exhausted(last_error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicates_repeat_earlier_likes_in_the_requested_proportion() {
        for percent in [0_u8, 5, 50, 100] {
            let load = Load { likes: 100_000, duplicate_percent: percent, rejected_per_mille: 0 };
            let mut duplicates = 0_u64;
            for index in 0..load.likes {
                let first = load.first_of_pair(index);
                assert!(first <= index && load.first_of_pair(first) == first);
                duplicates += u64::from(first < index);
            }
            let expected = u64::from(percent) * 1_000;
            assert!(duplicates.abs_diff(expected) <= 500, "{duplicates} at {percent} %");
        }
    }

    #[test]
    fn a_pair_identifies_its_like_and_an_unexpected_pair_identifies_none() {
        let load = Load { likes: 1_000, duplicate_percent: 20, rejected_per_mille: 3 };
        for first in (0..1_000).filter(|index| load.first_of_pair(*index) == *index) {
            let (user, post) = load.pair(first);
            let user = i64::try_from(user).unwrap();
            let post = i64::try_from(post).unwrap();
            assert_eq!(load.first_with(user, post), Some(first));
            assert_eq!(load.first_with(user, post + 1), None);
        }
        assert_eq!(load.first_with(1_001, 1), None);
        assert_eq!(load.first_with(0, 1), None);
    }

    #[test]
    fn an_index_set_counts_each_index_once() {
        let set = IndexSet::new(100);
        assert!(set.insert(0) && set.insert(64) && !set.insert(64) && set.insert(100));
        assert!(set.contains(100) && !set.contains(1));
        assert_eq!(set.len(), 3);
    }
}
