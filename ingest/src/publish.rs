//! Group commit into the streams.
//!
//! Each partition has one appender with at most one XADD in flight. Likes that arrive meanwhile wait, and the reply
//! releases the next entry with all of them. So a like on a quiet partition leaves at once and alone, and under a
//! storm entries fill by themselves, with no timer.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use fred::bytes::Bytes;
use shared::{
    codec,
    like::Like,
    partition::{Partition, PartitionCount},
    redis,
    service::one_line,
};
use thiserror::Error;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::{
    append::{Append, AppendError, AppendFactory},
    config::Settings,
    metrics::Metrics,
};

/// The longest time between two log lines about entries that Redis did not take.
const FAILURE_LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Where an accepted like is now.
#[derive(Clone, Debug)]
pub(crate) struct Accepted {
    pub(crate) entry_id: Arc<str>,
    pub(crate) partition: Partition,
}

/// Why a like was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum PublishError {
    #[error("too many likes wait for Redis to answer")]
    QueueFull,
    #[error("Redis is out of memory")]
    OutOfMemory,
    /// Redis answers, with an error.
    #[error("Redis refuses the entry")]
    Refused,
    /// Redis has it, and too few others.
    #[error("the entry is not as safe as REDIS_ACK asks for")]
    Unconfirmed,
    /// No answer, or another one than yes. The entry may have been taken all the same.
    #[error("Redis can't be reached")]
    Unavailable,
}

/// Hands likes to the appenders.
pub(crate) struct Publisher {
    queues: Vec<mpsc::Sender<Waiting>>,
    partitions: PartitionCount,
    patience: Duration,
}

/// A like whose caller waits for the answer.
struct Waiting {
    like: Like,
    answer: oneshot::Sender<Result<Accepted, PublishError>>,
}

impl Publisher {
    /// Starts one appender a partition. They end when the publisher is dropped and all that they hold is answered.
    pub(crate) fn start(
        appends: &AppendFactory,
        settings: &Settings,
        metrics: &Arc<Metrics>,
    ) -> (Self, JoinSet<()>) {
        let partitions = settings.streams.likes_partitions;
        let failures = Arc::new(FailureLog::default());
        let mut appenders = JoinSet::new();
        let start = |partition| {
            let (queue, waiting) = mpsc::channel(settings.ingest_queue_likes as usize);
            let appender = Appender {
                append: appends.for_stream(settings.streams.likes_stream.stream(partition)),
                partition,
                entry_likes: settings.ingest_entry_likes.into(),
                metrics: Arc::clone(metrics),
                failures: Arc::clone(&failures),
            };
            appenders.spawn(appender.run(waiting));
            queue
        };
        let queues = partitions.partitions().map(start).collect();
        // One entry may be in flight ahead of the like's own.
        let patience = appends.patience(settings.redis.redis_timeout) * 2;
        (Self { queues, partitions, patience }, appenders)
    }

    /// Waits until Redis has the like.
    ///
    /// # Errors
    /// After most of them nobody knows whether Redis has it.
    pub(crate) async fn publish(&self, like: Like) -> Result<Accepted, PublishError> {
        let partition = self.partitions.of_user(like.user_id());
        let (answer, answered) = oneshot::channel();
        let queue = self.queues.get(partition.index()).ok_or(PublishError::Unavailable)?;
        queue.try_send(Waiting { like, answer }).map_err(|_| PublishError::QueueFull)?;
        match timeout(self.patience, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(PublishError::Unavailable),
        }
    }
}

/// Appends the entries of one partition, one after the other.
struct Appender {
    append: Append,
    partition: Partition,
    entry_likes: usize,
    metrics: Arc<Metrics>,
    failures: Arc<FailureLog>,
}

impl Appender {
    async fn run(mut self, mut queue: mpsc::Receiver<Waiting>) {
        let mut group = Vec::new();
        while queue.recv_many(&mut group, self.entry_likes).await > 0 {
            // Callers that gave up waiting were told that Redis can't be reached: no need to store it behind them.
            group.retain(|waiting| !waiting.answer.is_closed());
            if group.is_empty() {
                continue;
            }
            let answer = self.append_group(&group).await;
            for waiting in group.drain(..) {
                // Whoever left meanwhile doesn't hear it.
                let _ = waiting.answer.send(answer.clone());
            }
        }
    }

    async fn append_group(&mut self, group: &[Waiting]) -> Result<Accepted, PublishError> {
        let likes: Vec<Like> = group.iter().map(|waiting| waiting.like).collect();
        let payload = Bytes::from(codec::encode(&likes));
        let started = Instant::now();
        match self.append.append(payload).await {
            Ok(entry_id) => {
                self.metrics.entry_appended(likes.len() as u64, started.elapsed().as_secs_f64());
                Ok(Accepted { entry_id: entry_id.into(), partition: self.partition })
            }
            Err(error) => {
                self.metrics.append_failed();
                self.failures.note(self.append.stream(), &error);
                Err(publish_error(&error))
            }
        }
    }
}

fn publish_error(error: &AppendError) -> PublishError {
    match error {
        AppendError::Unconfirmed { .. } => PublishError::Unconfirmed,
        AppendError::Redis(error) => match redis::error_code(error) {
            Some("OOM") => PublishError::OutOfMemory,
            Some(_) => PublishError::Refused,
            None => PublishError::Unavailable,
        },
    }
}

/// Says that Redis doesn't take entries, without flooding the log: one line an interval, with what it leaves out.
#[derive(Default)]
struct FailureLog(Mutex<Failures>);

#[derive(Default)]
struct Failures {
    unlogged: u64,
    logged_at: Option<Instant>,
}

impl FailureLog {
    fn note(&self, stream: &str, error: &AppendError) {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failures.unlogged += 1;
        if failures.logged_at.is_none_or(|at| at.elapsed() >= FAILURE_LOG_INTERVAL) {
            let (why, entries) = (one_line(error), failures.unlogged);
            tracing::warn!(stream, error = why, entries, "entries were not taken");
            *failures = Failures { unlogged: 0, logged_at: Some(Instant::now()) };
        }
    }
}
