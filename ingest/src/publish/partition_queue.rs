//! Partition queue: likes that wait for the next `XADD` of one partition, and their callers.

use std::{
    collections::VecDeque,
    slice,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use shared::wire::like::Like;
use tokio::sync::oneshot;

use super::sink::{Accepted, PublishError, RequestSpan};

/// Likes of one partition that fit into one entry, and the caller that waits for the result.
pub(super) struct Waiting {
    pub(super) likes: Likes,
    pub(super) span: RequestSpan,
    pub(super) answer: Answer,
}

pub(super) enum Likes {
    One(Like),
    Many(Vec<Like>),
}

impl Likes {
    pub(super) fn as_slice(&self) -> &[Like] {
        match self {
            Self::One(like) => slice::from_ref(like),
            Self::Many(likes) => likes,
        }
    }
}

/// Channel to the waiting caller.
pub(super) enum Answer {
    One(oneshot::Sender<Result<Accepted, PublishError>>),
    Part(Arc<Batch>),
}

impl Answer {
    /// Returns whether the caller has stopped waiting or has its result.
    fn is_closed(&self) -> bool {
        match self {
            Self::One(answer) => answer.is_closed(),
            Self::Part(batch) => batch.lock().answer.as_ref().is_none_or(oneshot::Sender::is_closed),
        }
    }

    /// Sends the result to the caller, if it still waits.
    pub(super) fn send(self, outcome: Result<Accepted, PublishError>) {
        match self {
            Self::One(answer) => drop(answer.send(outcome)),
            Self::Part(batch) => batch.part_ended(outcome.map(drop)),
        }
    }
}

/// A batch that is split into several entries. Its caller gets the result when all entries are in their streams, or when
/// one has failed.
pub(super) struct Batch(Mutex<BatchState>);

struct BatchState {
    parts: usize,
    parts_left: usize,
    /// `None` once the result is sent.
    answer: Option<oneshot::Sender<Result<(), PublishError>>>,
}

impl Batch {
    pub(super) fn new(parts: usize, answer: oneshot::Sender<Result<(), PublishError>>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(BatchState { parts, parts_left: parts, answer: Some(answer) })))
    }

    fn lock(&self) -> MutexGuard<'_, BatchState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn part_ended(&self, outcome: Result<(), PublishError>) {
        let mut state = self.lock();
        state.parts_left -= 1;
        if (outcome.is_err() || state.parts_left == 0)
            && let Some(answer) = state.answer.take()
        {
            let is_divided = state.parts > 1;
            let _ =
                answer.send(outcome.map_err(|error| if is_divided { error.of_one_part() } else { error }));
        }
    }
}

/// The queue of one partition. `L` appends to the partition's stream.
pub(super) struct PartitionQueue<L> {
    waiting: VecDeque<Waiting>,
    waiting_likes: usize,
    /// `None` while an entry is in flight.
    log: Option<L>,
}

impl<L> PartitionQueue<L> {
    pub(super) fn new(log: L) -> Self {
        Self { waiting: VecDeque::new(), waiting_likes: 0, log: Some(log) }
    }

    /// Returns whether the queue accepts this number of likes under `limit`. An empty queue accepts even a batch over the limit.
    pub(super) fn has_room(&self, likes: usize, limit: usize) -> bool {
        self.waiting_likes == 0 || self.waiting_likes.saturating_add(likes) <= limit
    }

    /// Adds to the queue. Returns whether the partition has become due.
    pub(super) fn push(&mut self, waiting: Waiting) -> bool {
        let becomes_due = self.waiting.is_empty() && self.log.is_some();
        self.waiting_likes += waiting.likes.as_slice().len();
        self.waiting.push_back(waiting);
        becomes_due
    }

    /// Takes the likes of the next entry. Returns `None` if an entry is in flight, or if no caller waits any longer.
    pub(super) fn next_entry(&mut self, max_likes: usize) -> Option<(L, Vec<Waiting>)> {
        let log = self.log.take()?;
        let mut entry = Vec::new();
        let mut likes = 0;
        while let Some(waiting) =
            self.waiting.pop_front_if(|next| likes == 0 || likes + next.likes.as_slice().len() <= max_likes)
        {
            self.waiting_likes -= waiting.likes.as_slice().len();
            // A caller that timed out already has the error that Redis is unavailable: its like is not appended afterwards.
            if !waiting.answer.is_closed() {
                likes += waiting.likes.as_slice().len();
                entry.push(waiting);
            }
        }
        if entry.is_empty() {
            self.log = Some(log);
            return None;
        }
        Some((log, entry))
    }

    /// Returns the log to the queue after an entry. Returns whether the partition is due again.
    pub(super) fn entry_ended(&mut self, log: L) -> bool {
        self.log = Some(log);
        !self.waiting.is_empty()
    }
}
