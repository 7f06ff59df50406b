//! Whether anything happens on a connection.

use std::{
    collections::BTreeMap,
    mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, HttpBody},
    http::Extensions,
    response::Response,
};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::time::Instant;

use crate::edge::connections::ConnectionLimits;

/// How much of a body is handed over at once: the rest waits with us, and is seen to wait.
const MAX_FRAME_BYTES: usize = 16 << 10;

/// What happens on one connection, whichever version of HTTP it speaks.
pub(super) struct Activity {
    idle_timeout: Duration,
    answer_timeout: Duration,
    state: Mutex<State>,
}

struct State {
    /// Those whose answer is not wholly sent.
    requests_in_flight: u32,
    /// When their sending began, in that order.
    unsent: BTreeMap<u64, Instant>,
    answers: u64,
    /// When it is idle for too long, if there is none in flight.
    idle_at: Instant,
}

impl Activity {
    /// Of a connection that was just accepted: its first request has less time than the others.
    pub(super) fn new(limits: &ConnectionLimits) -> Self {
        let idle_at = Instant::now() + limits.head_timeout;
        let state = State { requests_in_flight: 0, unsent: BTreeMap::new(), answers: 0, idle_at };
        let ConnectionLimits { idle_timeout, answer_timeout, .. } = *limits;
        Self { idle_timeout, answer_timeout, state: Mutex::new(state) }
    }

    /// A request has come; all of its answer is sent, or can't be, when the guard is dropped.
    pub(super) fn request(self: &Arc<Self>) -> InFlight {
        self.state().requests_in_flight += 1;
        InFlight { activity: Arc::clone(self), answer: None }
    }

    /// When it is idle for too long, by what is known now.
    pub(super) fn idle_at(&self) -> Instant {
        let state = self.state();
        match state.unsent.first_key_value() {
            // Whatever else is asked meanwhile.
            Some((_, since)) => *since + self.answer_timeout,
            None if state.requests_in_flight > 0 => Instant::now() + self.idle_timeout,
            None => state.idle_at,
        }
    }

    /// When it is to be looked at again: an answer that is not read has less time than a connection without a request.
    pub(super) fn look_at(&self) -> Instant {
        self.idle_at().min(Instant::now() + self.answer_timeout)
    }

    /// Whether there is an answer that is not read.
    pub(super) fn has_unsent(&self) -> bool {
        !self.state().unsent.is_empty()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request whose answer is not wholly sent.
pub(super) struct InFlight {
    activity: Arc<Activity>,
    /// The number of its answer, once there is one.
    answer: Option<u64>,
}

impl InFlight {
    /// From now on the answer is sent.
    pub(super) fn answered(mut self, mut response: Response) -> Response<Sending> {
        let mut state = self.activity.state();
        state.answers += 1;
        let answer = state.answers;
        state.unsent.insert(answer, Instant::now());
        drop(state);
        self.answer = Some(answer);
        let held = mem::take(response.extensions_mut());
        response.map(|body| Sending { body, rest: Bytes::new(), _held: (held, self) })
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut state = self.activity.state();
        state.requests_in_flight -= 1;
        if let Some(answer) = self.answer {
            state.unsent.remove(&answer);
        }
        state.idle_at = Instant::now() + self.activity.idle_timeout;
    }
}

/// The body of an answer, which is in flight until it is wholly sent.
pub(super) struct Sending {
    body: Body,
    /// Of the frame that was begun.
    rest: Bytes,
    /// What the answer came with, such as permits for what it takes, is held for as long.
    _held: (Extensions, InFlight),
}

impl HttpBody for Sending {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                other => return other,
            }
        }
        let bytes = self.rest.len().min(MAX_FRAME_BYTES);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(bytes)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (mut hint, rest) = (self.body.size_hint(), self.rest.len() as u64);
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}
