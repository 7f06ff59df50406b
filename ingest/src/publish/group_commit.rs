//! Group commit into the streams.
//!
//! Each partition has at most one XADD in flight; likes that arrive meanwhile share the next entry. And entries of all
//! partitions depart together: a departure waits until the one before it is answered, though not for longer than
//! [`HOLD`], and until no more requests are at the door. So a like that comes alone leaves at once, and under a storm
//! entries fill, and share their way to Redis and back, by themselves.

use std::{
    collections::VecDeque,
    slice,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use fred::bytes::Bytes;
use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use opentelemetry::{
    KeyValue,
    trace::{SpanContext, SpanKind},
};
use shared::{
    error_chain::one_line,
    redis,
    telemetry::{
        log_rate::LogRate,
        names,
        spans::{self, Links, Span, SpanStart, Tracing},
    },
    wire::{
        codec,
        like::Like,
        partition::{KeyPrefix, Partition, PartitionCount},
    },
};
use thiserror::Error;
use tokio::{
    pin,
    sync::{mpsc, oneshot, watch},
    task::yield_now,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    config::Settings,
    http::routes::Keep,
    metrics::Metrics,
    publish::append::{Append, AppendError, AppendFactory},
};

/// How long at most a departure that is not answered yet holds up the next one, and so do requests that keep coming.
const HOLD: Duration = Duration::from_millis(1);

/// No more requests are at the door when all tasks had their turn so often and brought no like.
const QUIET_TURNS: u32 = 2;

/// How many likes are taken from the queue at once.
const RECEIVE_LIKES: usize = 1_024;

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

/// Hands likes to the appender, which ends when this is dropped and all that it holds is answered.
pub(crate) struct Publisher {
    queue: mpsc::Sender<Request>,
    /// For one entry.
    patience: Duration,
    entry_likes: usize,
}

/// The span of the request that brought a like, if it is sampled.
pub type RequestSpan = Option<Box<SpanContext>>;

/// What callers ask for.
enum Request {
    One(Like, RequestSpan, oneshot::Sender<Result<Accepted, PublishError>>),
    Many(Vec<Like>, RequestSpan, oneshot::Sender<Result<(), PublishError>>),
}

/// Likes of one partition whose caller waits for the answer. They fit into one entry.
struct Waiting {
    likes: Likes,
    span: RequestSpan,
    answer: Answer,
}

enum Likes {
    One(Like),
    Many(Vec<Like>),
}

/// Whom to tell.
enum Answer {
    One(oneshot::Sender<Result<Accepted, PublishError>>),
    Part(Arc<Batch>),
}

/// A batch that is spread over entries: it is answered when Redis has all of them, or when one has failed.
struct Batch {
    state: Mutex<BatchState>,
}

struct BatchState {
    parts_left: usize,
    /// Nothing once it is answered.
    answer: Option<oneshot::Sender<Result<(), PublishError>>>,
}

impl Likes {
    fn as_slice(&self) -> &[Like] {
        match self {
            Self::One(like) => slice::from_ref(like),
            Self::Many(likes) => likes,
        }
    }
}

impl Answer {
    /// Whether nobody waits for it any more.
    fn is_closed(&self) -> bool {
        match self {
            Self::One(answer) => answer.is_closed(),
            Self::Part(batch) => batch.lock().answer.as_ref().is_none_or(oneshot::Sender::is_closed),
        }
    }

    /// Whoever left meanwhile doesn't hear it.
    fn send(self, outcome: Result<Accepted, PublishError>) {
        match self {
            Self::One(answer) => {
                let _ = answer.send(outcome);
            }
            Self::Part(batch) => batch.part_ended(outcome.map(drop)),
        }
    }
}

impl Batch {
    fn lock(&self) -> std::sync::MutexGuard<'_, BatchState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn part_ended(&self, outcome: Result<(), PublishError>) {
        let mut state = self.lock();
        state.parts_left -= 1;
        if (outcome.is_err() || state.parts_left == 0)
            && let Some(answer) = state.answer.take()
        {
            let _ = answer.send(outcome);
        }
    }
}

impl Publisher {
    /// With the appender, which has to be run.
    pub(crate) fn new(
        appends: AppendFactory,
        settings: &Settings,
        metrics: Arc<Metrics>,
        tracing: Tracing,
        partitions: watch::Receiver<PartitionCount>,
    ) -> (Self, Appender) {
        let patience = appends.patience(settings.redis.redis_timeout);
        let queue_likes = settings.ingest_queue_likes as usize;
        // As many as all partitions together may have waiting: it is the lanes that say no.
        let (queue, waiting) = mpsc::channel(queue_likes * usize::from(partitions.borrow().get()));
        let mut appender = Appender {
            queue: waiting,
            partitions,
            placement: PartitionCount::DEFAULT,
            lanes: Vec::new(),
            due: Vec::new(),
            in_flight: FuturesUnordered::new(),
            keys: settings.streams.likes_stream.clone(),
            queue_likes,
            entry_likes: settings.ingest_entry_likes.into(),
            metrics,
            tracing,
            stream_template: settings.streams.likes_stream.stream_template(),
            failures: LogRate::default(),
            appends,
        };
        appender.grow();
        (Self { queue, patience, entry_likes: settings.ingest_entry_likes.into() }, appender)
    }
}

impl Keep for Publisher {
    /// Waits until Redis has the like.
    ///
    /// # Errors
    /// After most of them nobody knows whether Redis has it.
    async fn keep(&self, like: Like, span: RequestSpan) -> Result<Accepted, PublishError> {
        let (answer, answered) = oneshot::channel();
        self.queue.try_send(Request::One(like, span, answer)).map_err(|_| PublishError::QueueFull)?;
        // One entry may be in flight ahead of the like's own.
        answer_within(self.patience * 2, answered).await
    }

    async fn keep_all(&self, likes: Vec<Like>, span: RequestSpan) -> Result<(), PublishError> {
        let (answer, answered) = oneshot::channel();
        // At worst they all go into one partition, one entry after the other.
        let entries = u32::try_from(likes.len() / self.entry_likes).unwrap_or(u32::MAX).saturating_add(2);
        self.queue.try_send(Request::Many(likes, span, answer)).map_err(|_| PublishError::QueueFull)?;
        answer_within(self.patience.saturating_mul(entries), answered).await
    }
}

async fn answer_within<T>(
    patience: Duration,
    answered: oneshot::Receiver<Result<T, PublishError>>,
) -> Result<T, PublishError> {
    match timeout(patience, answered).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) | Err(_) => Err(PublishError::Unavailable),
    }
}

/// Appends entries to all partitions.
pub(crate) struct Appender {
    queue: mpsc::Receiver<Request>,
    partitions: watch::Receiver<PartitionCount>,
    placement: PartitionCount,
    /// One a partition.
    lanes: Vec<Lane>,
    /// The lanes on which likes wait and nothing is in flight.
    due: Vec<Partition>,
    in_flight: FuturesUnordered<BoxFuture<'static, Appended>>,
    keys: KeyPrefix,
    queue_likes: usize,
    entry_likes: usize,
    metrics: Arc<Metrics>,
    tracing: Tracing,
    stream_template: String,
    failures: LogRate,
    appends: AppendFactory,
}

/// What waits for a partition.
struct Lane {
    waiting: VecDeque<Waiting>,
    waiting_likes: usize,
    /// Not here while an entry is in flight.
    append: Option<Append>,
}

/// What became of an entry.
struct Appended {
    partition: Partition,
    append: Append,
    group: Vec<Waiting>,
    answer: Result<(String, u64), AppendError>,
    took: Duration,
    span: Option<Span>,
}

impl Appender {
    /// Runs until the publisher is gone and all that waits is answered.
    pub(crate) async fn run(mut self) {
        let (mut received, mut open) = (Vec::new(), true);
        let hold_end = sleep_until(Instant::now());
        pin!(hold_end);
        while open || !self.due.is_empty() || !self.in_flight.is_empty() {
            let held = !self.due.is_empty() && !self.in_flight.is_empty();
            if held && hold_end.is_elapsed() {
                hold_end.as_mut().reset(Instant::now() + HOLD);
            }
            tokio::select! {
                count = self.queue.recv_many(&mut received, RECEIVE_LIKES), if open => {
                    open = count > 0;
                    received.drain(..).for_each(|request| self.take(request));
                }
                Some(appended) = self.in_flight.next() => self.answer(appended),
                Ok(()) = self.partitions.changed() => self.grow(),
                () = &mut hold_end, if held => {}
            }
            if self.in_flight.is_empty() && !self.due.is_empty() {
                self.gather().await;
                self.depart();
            } else if held && hold_end.is_elapsed() {
                self.depart();
            }
        }
    }

    /// Takes what is at the door: requests that have been received and not yet read.
    async fn gather(&mut self) {
        let until = Instant::now() + HOLD;
        let mut quiet_turns = 0;
        while quiet_turns < QUIET_TURNS && Instant::now() < until {
            yield_now().await;
            quiet_turns += 1;
            while let Ok(request) = self.queue.try_recv() {
                self.take(request);
                quiet_turns = 0;
            }
        }
    }

    /// Makes lanes for partitions that have none yet.
    fn grow(&mut self) {
        self.placement = *self.partitions.borrow_and_update();
        for partition in self.placement.partitions().skip(self.lanes.len()) {
            let append = Some(self.appends.for_stream(self.keys.stream(partition)));
            self.lanes.push(Lane { waiting: VecDeque::new(), waiting_likes: 0, append });
        }
    }

    fn take(&mut self, request: Request) {
        match request {
            Request::One(like, span, answer) => {
                let partition = self.placement.of_user(like.user_id());
                if self.has_room(partition, 1) {
                    let (likes, answer) = (Likes::One(like), Answer::One(answer));
                    self.enqueue(partition, Waiting { likes, span, answer });
                } else {
                    let _ = answer.send(Err(PublishError::QueueFull));
                }
            }
            Request::Many(likes, span, answer) => self.take_batch(likes, &span, answer),
        }
    }

    /// All of a batch is taken or nothing.
    fn take_batch(
        &mut self,
        likes: Vec<Like>,
        span: &RequestSpan,
        answer: oneshot::Sender<Result<(), PublishError>>,
    ) {
        let mut by_partition: Vec<Vec<Like>> = vec![Vec::new(); self.lanes.len()];
        for like in likes {
            if let Some(of_it) = by_partition.get_mut(self.placement.of_user(like.user_id()).index()) {
                of_it.push(like);
            }
        }
        let placement = self.placement;
        let spread = || placement.partitions().zip(&by_partition).filter(|(_, likes)| !likes.is_empty());
        if !spread().all(|(partition, likes)| self.has_room(partition, likes.len())) {
            let _ = answer.send(Err(PublishError::QueueFull));
            return;
        }
        let parts_left = spread().map(|(_, likes)| likes.len().div_ceil(self.entry_likes)).sum();
        let state = Mutex::new(BatchState { parts_left, answer: Some(answer) });
        let batch = Arc::new(Batch { state });
        for (partition, likes) in placement.partitions().zip(&by_partition) {
            for part in likes.chunks(self.entry_likes) {
                let (likes, answer) = (Likes::Many(part.to_vec()), Answer::Part(Arc::clone(&batch)));
                self.enqueue(partition, Waiting { likes, span: span.clone(), answer });
            }
        }
    }

    /// Whether so many likes more may wait for a partition. A batch that is larger than that may wait alone.
    fn has_room(&self, partition: Partition, likes: usize) -> bool {
        let waiting = self.lanes.get(partition.index()).map_or(usize::MAX, |lane| lane.waiting_likes);
        waiting == 0 || waiting.saturating_add(likes) <= self.queue_likes
    }

    fn enqueue(&mut self, partition: Partition, waiting: Waiting) {
        let Some(lane) = self.lanes.get_mut(partition.index()) else { return };
        if lane.waiting.is_empty() && lane.append.is_some() {
            self.due.push(partition);
        }
        lane.waiting_likes += waiting.likes.as_slice().len();
        lane.waiting.push_back(waiting);
    }

    /// Sends off an entry for each partition that is due.
    fn depart(&mut self) {
        for partition in self.due.drain(..) {
            let Some(lane) = self.lanes.get_mut(partition.index()) else { continue };
            if let Some((append, group)) = lane.take_group(self.entry_likes) {
                let span = start_span(&self.tracing, (append.stream(), &self.stream_template), &group);
                self.in_flight.push(Box::pin(append_group(partition, append, group, span)));
            }
        }
    }

    fn answer(&mut self, appended: Appended) {
        let Appended { partition, append, group, answer, took, span } = appended;
        let answer = match answer {
            Ok((entry_id, sent)) => {
                self.metrics.entry_appended(likes_in(&group) as u64, took);
                self.metrics.append_repeated(sent - 1);
                if let Some(span) = &span {
                    span.set(names::MESSAGING_MESSAGE_ID, entry_id.clone());
                }
                Ok(Accepted { entry_id: entry_id.into(), partition })
            }
            Err(error) => {
                let (stream, error_type) = (append.stream(), error.error_type());
                self.metrics.append_failed(error_type, took);
                if let Some(span) = &span {
                    span.failed(error_type, &error);
                }
                if let Some(entries) = self.failures.note(1) {
                    let (why, trace_id) = (one_line(&error), spans::trace_id(span.as_ref()));
                    tracing::warn!(stream, error = why, entries, trace_id, "entries were not taken");
                }
                Err(publish_error(&error))
            }
        };
        for waiting in group {
            waiting.answer.send(answer.clone());
        }
        if let Some(lane) = self.lanes.get_mut(partition.index()) {
            lane.append = Some(append);
            if !lane.waiting.is_empty() {
                self.due.push(partition);
            }
        }
    }
}

impl Lane {
    /// The next entry's likes. If there are none, nothing waits any more, or an entry is in flight.
    fn take_group(&mut self, entry_likes: usize) -> Option<(Append, Vec<Waiting>)> {
        let append = self.append.take()?;
        let (mut group, mut likes) = (Vec::new(), 0);
        while let Some(waiting) =
            self.waiting.pop_front_if(|next| likes == 0 || likes + next.likes.as_slice().len() <= entry_likes)
        {
            self.waiting_likes -= waiting.likes.as_slice().len();
            // Callers that gave up waiting were told that Redis can't be reached: no need to store it behind them.
            if !waiting.answer.is_closed() {
                likes += waiting.likes.as_slice().len();
                group.push(waiting);
            }
        }
        if group.is_empty() {
            self.append = Some(append);
            return None;
        }
        Some((append, group))
    }
}

fn likes_in(group: &[Waiting]) -> usize {
    group.iter().map(|waiting| waiting.likes.as_slice().len()).sum()
}

async fn append_group(
    partition: Partition,
    mut append: Append,
    group: Vec<Waiting>,
    span: Option<Span>,
) -> Appended {
    let likes: Vec<Like> = group.iter().flat_map(|waiting| waiting.likes.as_slice()).copied().collect();
    let payload = Bytes::from(codec::encode(&likes));
    let context = span.as_ref().map(Span::context);
    let started = Instant::now();
    let answer = append.append(payload, context.as_ref()).await;
    Appended { partition, append, group, answer, took: started.elapsed(), span }
}

/// The span of an entry, if one of the requests in it is sampled: below the first of these, and linked to the others.
fn start_span(tracing: &Tracing, (stream, template): (&str, &str), group: &[Waiting]) -> Option<Span> {
    let mut sampled = group.iter().filter_map(|waiting| waiting.span.as_deref());
    let parent = sampled.next()?;
    let mut links = Links::default();
    // Parts of one batch may share an entry.
    sampled.filter(|context| *context != parent).for_each(|context| links.add(context.clone()));
    let (name, kind, at) = (format!("XADD {template}").into(), SpanKind::Producer, SystemTime::now());
    tracing.start(SpanStart { name, kind, parent: Some(parent), links, at }, || {
        vec![
            KeyValue::new(names::MESSAGING_SYSTEM, names::REDIS),
            KeyValue::new(names::MESSAGING_DESTINATION_NAME, stream.to_owned()),
            KeyValue::new(names::MESSAGING_DESTINATION_TEMPLATE, template.to_owned()),
            KeyValue::new(names::MESSAGING_OPERATION_NAME, "XADD"),
            KeyValue::new(names::MESSAGING_OPERATION_TYPE, "send"),
            KeyValue::new(names::LIKES, i64::try_from(likes_in(group)).unwrap_or(i64::MAX)),
        ]
    })
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
