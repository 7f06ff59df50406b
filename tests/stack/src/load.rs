//! The load: a celebrity posts, and everybody likes it at once.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use devstack::http_client::{HttpClient, HttpError};
use hdrhistogram::{CreationError, Histogram};
use hyper::StatusCode;
use thiserror::Error;
use tokio::{
    task::JoinSet,
    time::{sleep, sleep_until},
};

use crate::progress::Progress;

const CELEBRITY_POST: u64 = 1_000_000_007;
const OTHER_POSTS: u64 = 1_000;
const OTHER_POSTS_PERCENT: u64 = 10;

/// A post that a table may be told to reject.
pub(crate) const REJECTED_POST: u64 = 2_000_000_011;

/// A like is tried this often before its caller gives up, with this wait between.
const TRIES: u32 = 300;
const RETRY_WAIT: Duration = Duration::from_millis(200);

/// Which likes are sent. All of it follows from an index, so that nothing has to be kept in a list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) likes: u64,
    pub(crate) duplicate_percent: u8,
    /// How many of a thousand are for [`REJECTED_POST`].
    pub(crate) rejected_per_mille: u16,
}

/// How fast a load is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// So many callers, each with one request at a time.
    pub(crate) connections: u16,
    /// At most so many likes a second, over all callers.
    pub(crate) per_second: Option<u32>,
    /// When to send no new ones, though there be some left.
    pub(crate) until: Option<Instant>,
}

impl Pace {
    /// How long a caller waits from one like to its next.
    fn interval(self) -> Duration {
        self.per_second.map_or(Duration::ZERO, |rate| Duration::from_secs(1) * self.connections.into() / rate)
    }
}

impl Load {
    /// The like with this index as the index of the first like of the same pair: itself, unless it is a duplicate.
    pub(crate) fn first_of_pair(self, mut index: u64) -> u64 {
        while index > 0 && mix(index) % 100 < self.duplicate_percent.into() {
            index = mix(index ^ u64::MAX) % index;
        }
        index
    }

    /// Who likes what in a first like.
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

    /// Whether the pair with this first like is for [`REJECTED_POST`].
    pub(crate) fn is_rejected(self, first: u64) -> bool {
        self.pair(first).1 == REJECTED_POST
    }

    /// The first like with this pair, if the load has one.
    pub(crate) fn first_with(self, user_id: i64, post_id: i64) -> Option<u64> {
        let first = u64::try_from(user_id).ok()?.checked_sub(1)?;
        let sent = first < self.likes && self.first_of_pair(first) == first;
        (sent && i64::try_from(self.pair(first).1) == Ok(post_id)).then_some(first)
    }
}

/// A bijection of 64 bits that looks like chance: the `SplitMix64` output function.
fn mix(index: u64) -> u64 {
    let mut z = index.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A set of indexes.
pub(crate) struct IndexSet(Vec<AtomicU64>);

impl IndexSet {
    pub(crate) fn new(size: u64) -> Self {
        Self((0..=size / 64).map(|_| AtomicU64::new(0)).collect())
    }

    /// Whether it is new.
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

/// What the callers saw.
pub(crate) struct Sent {
    /// 202s.
    pub(crate) accepted: u64,
    /// The first likes of all pairs that got a 202.
    pub(crate) pairs: IndexSet,
    /// The first likes of pairs whose request got no answer at some time, so that they may be stored on no promise.
    pub(crate) unsure: IndexSet,
    /// Requests that were tried again.
    pub(crate) retries: u64,
    /// From request to 202, in microseconds, of the try that worked.
    pub(crate) latency_us: Histogram<u64>,
    pub(crate) started: Instant,
    pub(crate) elapsed: Duration,
}

impl Sent {
    /// Whether the pair with this first like was accepted, or may have been.
    pub(crate) fn may_have(&self, first: u64) -> bool {
        self.pairs.contains(first) || self.unsure.contains(first)
    }

    /// Pairs that are neither promised nor excluded.
    pub(crate) fn unsure_pairs(&self, load: Load) -> u64 {
        let unsure = |index: &u64| self.unsure.contains(*index) && !self.pairs.contains(*index);
        (0..load.likes).filter(unsure).count() as u64
    }
}

#[derive(Debug, Error)]
pub(crate) enum LoadError {
    #[error("ingest answered {status}: {body}")]
    Refused { status: StatusCode, body: String },
    #[error("ingest did not take a like in {TRIES} tries")]
    Exhausted(#[source] Option<HttpError>),
    #[error("latencies can't be recorded")]
    Histogram(#[from] CreationError),
    #[error("a caller crashed")]
    Crashed(#[from] tokio::task::JoinError),
}

struct Shared {
    load: Load,
    next: AtomicU64,
    accepted: AtomicU64,
    retries: AtomicU64,
    pairs: IndexSet,
    unsure: IndexSet,
}

/// Sends the load.
pub(crate) async fn send(load: Load, ingest: SocketAddr, pace: Pace) -> Result<Sent, LoadError> {
    let shared = Arc::new(Shared {
        load,
        next: AtomicU64::new(0),
        accepted: AtomicU64::new(0),
        retries: AtomicU64::new(0),
        pairs: IndexSet::new(load.likes),
        unsure: IndexSet::new(load.likes),
    });
    let started = Instant::now();
    let mut callers = JoinSet::new();
    for _ in 0..pace.connections {
        callers.spawn(call(Arc::clone(&shared), HttpClient::new(ingest), pace));
    }
    let mut progress = Progress::new("sending", load.likes);
    let mut latency_us = new_histogram()?;
    loop {
        tokio::select! {
            caller = callers.join_next() => match caller {
                Some(latencies) => latency_us += latencies??,
                None => break,
            },
            () = sleep(Duration::from_millis(100)) => progress.at(shared.accepted.load(Ordering::Relaxed)),
        }
    }
    let elapsed = started.elapsed();
    progress.at(shared.accepted.load(Ordering::Relaxed));
    progress.done();
    let accepted = shared.accepted.load(Ordering::Relaxed);
    let retries = shared.retries.load(Ordering::Relaxed);
    // Every caller has ended and let go of its share.
    let empty = || IndexSet::new(0);
    let (pairs, unsure) = Arc::into_inner(shared).map_or_else(|| (empty(), empty()), |s| (s.pairs, s.unsure));
    Ok(Sent { accepted, pairs, unsure, retries, latency_us, started, elapsed })
}

fn new_histogram() -> Result<Histogram<u64>, CreationError> {
    Histogram::new_with_bounds(1, 60_000_000, 3)
}

async fn call(shared: Arc<Shared>, mut client: HttpClient, pace: Pace) -> Result<Histogram<u64>, LoadError> {
    let mut latency_us = new_histogram()?;
    let mut next_at = Instant::now();
    loop {
        sleep_until(next_at.into()).await;
        next_at = Instant::now().max(next_at + pace.interval());
        if pace.until.is_some_and(|until| Instant::now() >= until) {
            return Ok(latency_us);
        }
        let index = shared.next.fetch_add(1, Ordering::Relaxed);
        if index >= shared.load.likes {
            return Ok(latency_us);
        }
        let first = shared.load.first_of_pair(index);
        let elapsed = post_until_accepted(&shared, &mut client, first).await?;
        latency_us.saturating_record(u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX));
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
        shared.unsure.insert(first);
        shared.retries.fetch_add(1, Ordering::Relaxed);
        sleep(RETRY_WAIT).await;
    }
    Err(LoadError::Exhausted(last_error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicates_repeat_earlier_likes_in_the_asked_share() {
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
    fn a_pair_leads_back_to_its_like_and_a_foreign_one_does_not() {
        let load = Load { likes: 1_000, duplicate_percent: 20, rejected_per_mille: 3 };
        for first in (0..1_000).filter(|index| load.first_of_pair(*index) == *index) {
            let (user, post) = load.pair(first);
            let (user, post) = (i64::try_from(user).unwrap(), i64::try_from(post).unwrap());
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
