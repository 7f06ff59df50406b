//! Activity of a connection: requests in flight, unsent responses, and the deadlines for idle and stalled connections.

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

/// Maximum part of a response body passed to hyper at once. The rest stays here and counts as unsent.
const MAX_FRAME_BYTES: usize = 16 << 10;

/// Maximum times without progress on a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    /// From accept to the end of the first request head.
    pub(crate) head: Duration,
    /// From the start to the end of sending a response.
    pub(crate) answer: Duration,
    /// Between requests.
    pub(crate) idle: Duration,
}

/// Result of a check of a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Check {
    /// The connection makes progress. The next check is due at this time.
    Active(Instant),
    /// No request arrived within the timeout.
    Idle,
    /// The client did not read a response within the timeout.
    Stalled,
}

/// Activity of one connection, with HTTP/1.1 or HTTP/2.
pub(super) struct Activity {
    timeouts: Timeouts,
    state: Mutex<State>,
}

struct State {
    /// Number of requests whose response is not completely sent.
    requests_in_flight: u32,
    /// Start of sending of each unsent response, by its sequence number.
    unsent: BTreeMap<u64, Instant>,
    answers: u64,
    /// Deadline of the next request, if no request is in flight.
    idle_at: Instant,
}

impl Activity {
    /// Starts with the timeout of the first request head.
    pub(super) fn new(timeouts: Timeouts) -> Self {
        let idle_at = Instant::now() + timeouts.head;
        let state = State { requests_in_flight: 0, unsent: BTreeMap::new(), answers: 0, idle_at };
        Self { timeouts, state: Mutex::new(state) }
    }

    /// Counts a request in flight. The guard is dropped when its response is sent, or can no longer be sent.
    pub(super) fn request(self: &Arc<Self>) -> InFlight {
        self.state().requests_in_flight += 1;
        InFlight { activity: Arc::clone(self), answer: None }
    }

    /// Returns the time at which the connection becomes idle or stalled, if nothing changes until then.
    pub(super) fn deadline(&self) -> Instant {
        let state = self.state();
        match state.unsent.first_key_value() {
            // Further requests do not extend it.
            Some((_, since)) => *since + self.timeouts.answer,
            None if state.requests_in_flight > 0 => Instant::now() + self.timeouts.idle,
            None => state.idle_at,
        }
    }

    /// Returns the time of the next check. It is at most the response timeout away, because a response can start at any time.
    pub(super) fn next_check(&self) -> Instant {
        self.deadline().min(Instant::now() + self.timeouts.answer)
    }

    pub(super) fn check(&self) -> Check {
        if Instant::now() < self.deadline() {
            Check::Active(self.next_check())
        } else if self.state().unsent.is_empty() {
            Check::Idle
        } else {
            Check::Stalled
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request whose response is not completely sent.
pub(super) struct InFlight {
    activity: Arc<Activity>,
    /// Sequence number of the response, once there is one.
    answer: Option<u64>,
}

impl InFlight {
    /// Records that sending of the response starts.
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
        state.idle_at = Instant::now() + self.activity.timeouts.idle;
    }
}

/// Body of a response. The request is in flight until the body is dropped.
pub(super) struct Sending {
    body: Body,
    /// Remaining bytes of the current frame.
    rest: Bytes,
    /// Holds permits in the extensions of the response until it is sent.
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
        let mut hint = self.body.size_hint();
        let rest = self.rest.len() as u64;
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn activity() -> Arc<Activity> {
        Arc::new(Activity::new(Timeouts { head: SECOND * 10, answer: SECOND * 20, idle: SECOND * 60 }))
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_request_has_the_head_timeout_and_later_ones_the_idle_timeout() {
        let activity = activity();
        assert_eq!(activity.check(), Check::Active(Instant::now() + SECOND * 10));
        advance(SECOND * 9).await;
        drop(activity.request());
        advance(SECOND * 59).await;
        assert_eq!(activity.check(), Check::Active(Instant::now() + SECOND));
        advance(SECOND).await;
        assert_eq!(activity.check(), Check::Idle);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_in_flight_keeps_a_connection_active() {
        let activity = activity();
        let in_flight = activity.request();
        advance(SECOND * 1_000).await;
        assert!(matches!(activity.check(), Check::Active(_)));
        drop(in_flight);
        assert!(matches!(activity.check(), Check::Active(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_unread_response_stalls_a_connection_despite_other_requests() {
        let activity = activity();
        let unread = activity.request().answered(Response::default());
        advance(SECOND * 19).await;
        let second = activity.request();
        assert!(matches!(activity.check(), Check::Active(_)));
        advance(SECOND).await;
        assert_eq!(activity.check(), Check::Stalled);
        drop(unread);
        assert!(matches!(activity.check(), Check::Active(_)));
        drop(second);
    }
}
