//! Group commit into the streams.
//!
//! Each partition has one appender with at most one XADD in flight. Likes that arrive meanwhile wait, and the reply
//! releases the next entry with all of them. So a like on a quiet partition leaves at once and alone, and under a
//! storm entries fill by themselves, with no timer.

use std::{
    sync::{Arc, Mutex, PoisonError, RwLock, Weak},
    time::Duration,
};

use fred::bytes::Bytes;
use shared::{
    codec,
    like::Like,
    partition::{KeyPrefix, Partition, PartitionCount},
    redis,
    service::one_line,
};
use thiserror::Error;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::{
    append::{Append, AppendError, AppendFactory},
    config::Settings,
    http::Keep,
    metrics::Metrics,
};

/// The longest time between two log lines about entries that Redis did not take.
const FAILURE_LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Where an accepted like is now.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// The stream entry.
    pub entry_id: Arc<str>,
    /// Whose stream it is in.
    pub partition: Partition,
}

/// Why a like was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PublishError {
    /// Nothing was taken.
    #[error("too many likes wait for Redis to answer")]
    QueueFull,
    /// Nothing was taken.
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

/// Hands likes to the appenders. They end when it is dropped and all that they hold is answered.
pub(crate) struct Publisher {
    placement: Arc<RwLock<Placement>>,
    patience: Duration,
}

/// Which likes go where.
struct Placement {
    partitions: PartitionCount,
    /// One a partition.
    queues: Vec<mpsc::Sender<Waiting>>,
}

/// A like whose caller waits for the answer.
struct Waiting {
    like: Like,
    answer: oneshot::Sender<Result<Accepted, PublishError>>,
}

impl Publisher {
    /// With the appenders, which have to be run.
    pub(crate) fn new(
        appends: AppendFactory,
        settings: &Settings,
        metrics: Arc<Metrics>,
        partitions: watch::Receiver<PartitionCount>,
    ) -> (Self, Appenders) {
        let mut appenders = Appenders {
            placement: Weak::new(),
            running: JoinSet::new(),
            partitions,
            keys: settings.streams.likes_stream.clone(),
            queue_likes: settings.ingest_queue_likes as usize,
            entry_likes: settings.ingest_entry_likes.into(),
            metrics,
            failures: Arc::default(),
            appends,
        };
        let partitions = *appenders.partitions.borrow_and_update();
        let mut queues = Vec::new();
        appenders.start(partitions, &mut queues);
        let placement = Arc::new(RwLock::new(Placement { partitions, queues }));
        appenders.placement = Arc::downgrade(&placement);
        // One entry may be in flight ahead of the like's own.
        let patience = appenders.appends.patience(settings.redis.redis_timeout) * 2;
        (Self { placement, patience }, appenders)
    }

}

impl Keep for Publisher {
    /// Waits until Redis has the like.
    ///
    /// # Errors
    /// After most of them nobody knows whether Redis has it.
    async fn keep(&self, like: Like) -> Result<Accepted, PublishError> {
        let (answer, answered) = oneshot::channel();
        {
            let placement = self.placement.read().unwrap_or_else(PoisonError::into_inner);
            let partition = placement.partitions.of_user(like.user_id());
            let queue = placement.queues.get(partition.index()).ok_or(PublishError::Unavailable)?;
            queue.try_send(Waiting { like, answer }).map_err(|_| PublishError::QueueFull)?;
        }
        match timeout(self.patience, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(PublishError::Unavailable),
        }
    }
}

/// One appender a partition; more when the partitions grow.
pub(crate) struct Appenders {
    /// Gone with the publisher.
    placement: Weak<RwLock<Placement>>,
    running: JoinSet<()>,
    partitions: watch::Receiver<PartitionCount>,
    keys: KeyPrefix,
    queue_likes: usize,
    entry_likes: usize,
    metrics: Arc<Metrics>,
    failures: Arc<FailureLog>,
    appends: AppendFactory,
}

/// An appender has panicked.
pub(crate) struct AppenderCrashed;

impl Appenders {
    /// Runs until the publisher is gone and all that the appenders hold is answered.
    pub(crate) async fn run(mut self) -> Result<(), AppenderCrashed> {
        loop {
            tokio::select! {
                ended = self.running.join_next() => match ended {
                    Some(ended) => ended.map_err(|_| AppenderCrashed)?,
                    None => return Ok(()),
                },
                Ok(()) = self.partitions.changed() => self.grow(),
            }
        }
    }

    fn grow(&mut self) {
        let partitions = *self.partitions.borrow_and_update();
        let Some(placement) = self.placement.upgrade() else { return };
        let mut placement = placement.write().unwrap_or_else(PoisonError::into_inner);
        self.start(partitions, &mut placement.queues);
        placement.partitions = partitions;
    }

    /// Starts appenders on the partitions that have no queue yet.
    fn start(&mut self, partitions: PartitionCount, queues: &mut Vec<mpsc::Sender<Waiting>>) {
        for partition in partitions.partitions().skip(queues.len()) {
            let (queue, waiting) = mpsc::channel(self.queue_likes);
            let appender = Appender {
                append: self.appends.for_stream(self.keys.stream(partition)),
                partition,
                entry_likes: self.entry_likes,
                metrics: Arc::clone(&self.metrics),
                failures: Arc::clone(&self.failures),
            };
            self.running.spawn(appender.run(waiting));
            queues.push(queue);
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
            Ok((entry_id, sent)) => {
                self.metrics.entry_appended(likes.len() as u64, started.elapsed().as_secs_f64());
                self.metrics.append_repeated(sent - 1);
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
        AppendError::Redis(error) if redis::is_away(error) => PublishError::Unavailable,
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
