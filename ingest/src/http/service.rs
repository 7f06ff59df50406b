//! State that all handlers share.

use std::{sync::Arc, time::Duration};

use axum::extract::Request;
use shared::telemetry::spans::Tracing;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;

use super::{
    batch_memory::BatchMemory,
    problem::{Kind, Problem},
};
use crate::{
    backlog::Backlog,
    edge::{auth::Authenticator, connections::Peer, quotas::Quotas},
    metrics::Metrics,
};

/// State of the HTTP service. `S` publishes likes.
pub(crate) struct Service<S> {
    pub(crate) sink: S,
    pub(crate) backlog: Arc<Backlog>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) tracing: Tracing,
    pub(crate) auth: Authenticator,
    pub(crate) limits: RequestLimits,
    /// Tracks the requests in flight.
    pub(crate) requests: TaskTracker,
}

pub(crate) struct RequestLimits {
    pub(crate) body_timeout: Duration,
    pub(crate) max_body_bytes: usize,
    pub(crate) max_batch_body_bytes: usize,
    pub(crate) max_batch_likes: usize,
    pub(crate) batch_memory: BatchMemory,
    pub(crate) quotas: Quotas,
    /// In-flight limit: one permit per request.
    pub(crate) in_flight: Arc<Semaphore>,
}

impl<S> Service<S> {
    /// Admits a request, unless its address exceeds a quota or too many requests are in flight.
    pub(super) fn admit(&self, request: &Request) -> Result<OwnedSemaphorePermit, Problem> {
        if let Some(Peer(address)) = request.extensions().get() {
            self.limits.quotas.charge_request(*address, request.headers())?;
        }
        let permit = Arc::clone(&self.limits.in_flight).try_acquire_owned();
        permit.map_err(|_| Kind::Overloaded.into())
    }

    pub(super) fn refuse_over_backlog_limit(&self) -> Result<(), Problem> {
        if self.backlog.is_full() { Err(Kind::BacklogFull.into()) } else { Ok(()) }
    }
}
