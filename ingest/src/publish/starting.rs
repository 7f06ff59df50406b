//! The sink of a service that may not have reached Redis yet.

use std::sync::{Arc, OnceLock};

use shared::wire::like::Like;

use super::sink::{Accepted, LikeSink, PublishError, Published, RequestSpan};

const NOT_REACHED: PublishError = PublishError::Unavailable("connection", Published::No);

/// A sink that refuses likes until the real one is set.
pub(crate) struct StartingSink<S>(Arc<OnceLock<S>>);

impl<S> Clone for StartingSink<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S> Default for StartingSink<S> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<S> StartingSink<S> {
    /// Sets the real sink.
    pub(crate) fn open(self, sink: S) {
        // It is set only once.
        let _ = self.0.set(sink);
    }
}

impl<S: LikeSink> LikeSink for StartingSink<S> {
    async fn publish(&self, like: Like, span: RequestSpan) -> Result<Accepted, PublishError> {
        self.0.get().ok_or(NOT_REACHED)?.publish(like, span).await
    }

    async fn publish_batch(&self, likes: Vec<Like>, span: RequestSpan) -> Result<(), PublishError> {
        self.0.get().ok_or(NOT_REACHED)?.publish_batch(likes, span).await
    }
}
