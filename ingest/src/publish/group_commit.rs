//! Group commit of likes into stream entries.
//!
//! Each partition has at most one XADD in flight; likes that arrive meanwhile share the next entry. Entries of all partitions
//! depart together. A departure waits for the replies to the previous one, at most for [`HOLD`], and until no more requests
//! arrive. So a single like departs at once, and under load entries fill up and share a network round trip to Redis.

use std::{pin::pin, sync::Arc, time::Duration};

use fred::bytes::Bytes;
use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use shared::{
    error_chain::one_line,
    telemetry::{
        log_rate::LogRate,
        names,
        spans::{self, Span, Tracing},
    },
    wire::{
        codec,
        like::Like,
        partition::{KeyPrefix, Partition, PartitionCount},
    },
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::yield_now,
    time::{Instant, sleep_until, timeout},
};

use super::{
    append::{AppendError, AppendLog, Appended},
    departure::{Departure, DeparturePolicy},
    entry_span,
    partition_queue::{Answer, Batch, Likes, PartitionQueue, Waiting},
    sink::{Accepted, LikeSink, PublishError, Published, RequestSpan},
};
use crate::metrics::Metrics;

/// Maximum time that a departure waits for the replies to the previous one, and for requests that keep arriving.
const HOLD: Duration = Duration::from_millis(1);

/// Number of scheduler turns without a new request after which requests count as no longer arriving.
const QUIET_TURNS: u32 = 2;

/// Maximum number of requests received from the channel at once.
const RECEIVE_REQUESTS: usize = 1_024;

/// Type of the error of a caller that got no answer in time.
const TIMED_OUT: &str = "timeout";

/// Bounds of group commit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GroupCommitLimits {
    /// Maximum number of likes in a partition queue.
    pub(crate) queue_likes: usize,
    /// Maximum number of likes in an entry.
    pub(crate) entry_likes: usize,
    /// Time that a caller waits for one entry.
    pub(crate) entry_timeout: Duration,
}

/// Sends likes to [`GroupCommit`], which ends when the publisher is dropped and every caller has its result.
pub(crate) struct Publisher {
    queue: mpsc::Sender<Request>,
    limits: GroupCommitLimits,
}

enum Request {
    One(Like, RequestSpan, oneshot::Sender<Result<Accepted, PublishError>>),
    Batch(Vec<Like>, RequestSpan, oneshot::Sender<Result<(), PublishError>>),
}

impl LikeSink for Publisher {
    async fn publish(&self, like: Like, span: RequestSpan) -> Result<Accepted, PublishError> {
        let (answer, answered) = oneshot::channel();
        self.queue.try_send(Request::One(like, span, answer)).map_err(|_| PublishError::QueueFull)?;
        // One entry may be in flight before the entry of this like.
        answer_within(self.limits.entry_timeout * 2, answered).await
    }

    async fn publish_batch(&self, likes: Vec<Like>, span: RequestSpan) -> Result<(), PublishError> {
        let (answer, answered) = oneshot::channel();
        // In the worst case, all likes belong to one partition, and its entries are appended one at a time.
        let entries = likes.len() / self.limits.entry_likes;
        let entries = u32::try_from(entries).unwrap_or(u32::MAX).saturating_add(2);
        self.queue.try_send(Request::Batch(likes, span, answer)).map_err(|_| PublishError::QueueFull)?;
        answer_within(self.limits.entry_timeout.saturating_mul(entries), answered).await
    }
}

async fn answer_within<T>(
    limit: Duration,
    answered: oneshot::Receiver<Result<T, PublishError>>,
) -> Result<T, PublishError> {
    match timeout(limit, answered).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) | Err(_) => Err(PublishError::Unavailable(TIMED_OUT, Published::Unknown)),
    }
}

/// Task that appends entries to all partitions.
pub(crate) struct GroupCommit<L> {
    requests: mpsc::Receiver<Request>,
    partitions: watch::Receiver<PartitionCount>,
    placement: PartitionCount,
    queues: Vec<PartitionQueue<L>>,
    /// Partitions with queued likes and no entry in flight.
    due: Vec<Partition>,
    in_flight: FuturesUnordered<BoxFuture<'static, EntryOutcome<L>>>,
    open: Box<dyn Fn(String) -> L + Send>,
    keys: KeyPrefix,
    stream_template: String,
    limits: GroupCommitLimits,
    metrics: Arc<Metrics>,
    tracing: Tracing,
    failures: LogRate,
}

struct EntryOutcome<L> {
    partition: Partition,
    log: L,
    entry: Vec<Waiting>,
    appended: Result<Appended, AppendError>,
    took: Duration,
    span: Option<Span>,
}

impl<L: AppendLog> GroupCommit<L> {
    /// Creates the task and its publisher. `open` opens the stream of a partition.
    pub(crate) fn new(
        open: impl Fn(String) -> L + Send + 'static,
        keys: KeyPrefix,
        partitions: watch::Receiver<PartitionCount>,
        limits: GroupCommitLimits,
        metrics: Arc<Metrics>,
        tracing: Tracing,
    ) -> (Publisher, Self) {
        // Holds as many requests as all partition queues together, so that only the partition queues refuse likes.
        let capacity = limits.queue_likes * usize::from(partitions.borrow().get());
        let (queue, requests) = mpsc::channel(capacity);
        let mut group_commit = Self {
            requests,
            partitions,
            placement: PartitionCount::DEFAULT,
            queues: Vec::new(),
            due: Vec::new(),
            in_flight: FuturesUnordered::new(),
            open: Box::new(open),
            stream_template: keys.stream_template(),
            keys,
            limits,
            metrics,
            tracing,
            failures: LogRate::default(),
        };
        group_commit.add_partitions();
        (Publisher { queue, limits }, group_commit)
    }

    /// Runs until the publisher is dropped and every caller has its result.
    pub(crate) async fn run(mut self) {
        let mut received = Vec::new();
        let mut is_open = true;
        let mut policy = DeparturePolicy::default();
        let mut hold = pin!(sleep_until(Instant::now()));
        // A timer that was never polled does not report that it has elapsed.
        hold.as_mut().await;
        while is_open || !self.due.is_empty() || !self.in_flight.is_empty() {
            let is_holding =
                match policy.next(!self.due.is_empty(), !self.in_flight.is_empty(), hold.is_elapsed()) {
                    Departure::Idle => false,
                    Departure::Hold => true,
                    Departure::StartHold => {
                        hold.as_mut().reset(Instant::now() + HOLD);
                        true
                    }
                    Departure::WhenQuiet => {
                        self.receive_until_quiet().await;
                        self.depart();
                        continue;
                    }
                    Departure::Now => {
                        self.depart();
                        continue;
                    }
                };
            tokio::select! {
                count = self.requests.recv_many(&mut received, RECEIVE_REQUESTS), if is_open => {
                    is_open = count > 0;
                    received.drain(..).for_each(|request| self.receive(request));
                }
                Some(outcome) = self.in_flight.next() => self.answer(outcome),
                Ok(()) = self.partitions.changed() => self.add_partitions(),
                () = &mut hold, if is_holding => {}
            }
        }
    }

    /// Receives requests while other tasks run, until no more arrive.
    async fn receive_until_quiet(&mut self) {
        let until = Instant::now() + HOLD;
        let mut quiet_turns = 0;
        while quiet_turns < QUIET_TURNS && Instant::now() < until {
            yield_now().await;
            quiet_turns += 1;
            while let Ok(request) = self.requests.try_recv() {
                self.receive(request);
                quiet_turns = 0;
            }
        }
    }

    /// Opens the streams of added partitions.
    fn add_partitions(&mut self) {
        self.placement = *self.partitions.borrow_and_update();
        for partition in self.placement.partitions().skip(self.queues.len()) {
            self.queues.push(PartitionQueue::new((self.open)(self.keys.stream(partition))));
        }
    }

    fn receive(&mut self, request: Request) {
        match request {
            Request::One(like, span, answer) => {
                let partition = self.placement.of_user(like.user_id());
                if self.has_room(partition, 1) {
                    let answer = Answer::One(answer);
                    self.enqueue(partition, Waiting { likes: Likes::One(like), span, answer });
                } else {
                    let _ = answer.send(Err(PublishError::QueueFull));
                }
            }
            Request::Batch(likes, span, answer) => self.receive_batch(likes, &span, answer),
        }
    }

    /// Queues all likes of a batch, or refuses the batch.
    fn receive_batch(
        &mut self,
        likes: Vec<Like>,
        span: &RequestSpan,
        answer: oneshot::Sender<Result<(), PublishError>>,
    ) {
        let placement = self.placement;
        let entry_likes = self.limits.entry_likes;
        let mut by_partition: Vec<Vec<Like>> = vec![Vec::new(); self.queues.len()];
        for like in likes {
            if let Some(likes) = by_partition.get_mut(placement.of_user(like.user_id()).index()) {
                likes.push(like);
            }
        }
        let spread = || placement.partitions().zip(&by_partition).filter(|(_, likes)| !likes.is_empty());
        if !spread().all(|(partition, likes)| self.has_room(partition, likes.len())) {
            let _ = answer.send(Err(PublishError::QueueFull));
            return;
        }
        let parts = spread().map(|(_, likes)| likes.len().div_ceil(entry_likes)).sum();
        let batch = Batch::new(parts, answer);
        for (partition, likes) in spread() {
            for part in likes.chunks(entry_likes) {
                let likes = Likes::Many(part.to_vec());
                let answer = Answer::Part(Arc::clone(&batch));
                self.enqueue(partition, Waiting { likes, span: span.clone(), answer });
            }
        }
    }

    fn has_room(&self, partition: Partition, likes: usize) -> bool {
        let queue = self.queues.get(partition.index());
        queue.is_some_and(|queue| queue.has_room(likes, self.limits.queue_likes))
    }

    fn enqueue(&mut self, partition: Partition, waiting: Waiting) {
        let Some(queue) = self.queues.get_mut(partition.index()) else { return };
        if queue.push(waiting) {
            self.due.push(partition);
        }
    }

    /// Sends an entry to each partition that is due.
    fn depart(&mut self) {
        for partition in self.due.drain(..) {
            let Some(queue) = self.queues.get_mut(partition.index()) else { continue };
            if let Some((log, entry)) = queue.next_entry(self.limits.entry_likes) {
                let sampled = entry.iter().filter_map(|waiting| waiting.span.as_deref());
                let likes = || like_count(&entry);
                let span =
                    entry_span::start(&self.tracing, log.stream(), &self.stream_template, sampled, likes);
                self.in_flight.push(Box::pin(append_entry(partition, log, entry, span)));
            }
        }
    }

    fn answer(&mut self, outcome: EntryOutcome<L>) {
        let EntryOutcome { partition, log, entry, appended, took, span } = outcome;
        let answer = match appended {
            Ok(Appended { entry_id, attempts }) => {
                self.metrics.entry_appended(like_count(&entry) as u64, took);
                self.metrics.append_retried(attempts - 1);
                if let Some(span) = &span {
                    span.set(names::MESSAGING_MESSAGE_ID, entry_id.clone());
                }
                Ok(Accepted { entry_id: entry_id.into(), partition })
            }
            Err(error) => {
                self.entry_failed(log.stream(), &error, took, span.as_ref());
                Err(PublishError::from(&error))
            }
        };
        for waiting in entry {
            waiting.answer.send(answer.clone());
        }
        if let Some(queue) = self.queues.get_mut(partition.index())
            && queue.entry_ended(log)
        {
            self.due.push(partition);
        }
    }

    fn entry_failed(&self, stream: &str, error: &AppendError, took: Duration, span: Option<&Span>) {
        let error_type = error.error_type();
        self.metrics.append_failed(error_type, took);
        if let Some(span) = span {
            span.failed(error_type, error);
        }
        if let Some(entries) = self.failures.record(1) {
            let trace_id = spans::trace_id(span);
            tracing::warn!(stream, error = one_line(error), entries, trace_id, "append failed");
        }
    }
}

fn like_count(entry: &[Waiting]) -> usize {
    entry.iter().map(|waiting| waiting.likes.as_slice().len()).sum()
}

async fn append_entry<L: AppendLog>(
    partition: Partition,
    mut log: L,
    entry: Vec<Waiting>,
    span: Option<Span>,
) -> EntryOutcome<L> {
    let likes: Vec<Like> = entry.iter().flat_map(|waiting| waiting.likes.as_slice()).copied().collect();
    let payload = Bytes::from(codec::encode(&likes));
    let context = span.as_ref().map(Span::context);
    let started = Instant::now();
    let appended = log.append(payload, context.as_ref()).await;
    EntryOutcome { partition, log, entry, appended, took: started.elapsed(), span }
}

#[cfg(test)]
mod tests;
