//! What callers see of publishing: the trait, its answers and its errors.

use std::sync::Arc;

use opentelemetry::trace::SpanContext;
use shared::wire::{like::Like, partition::Partition};
use thiserror::Error;

/// The span of the request that brought a like, if it is sampled.
pub type RequestSpan = Option<Box<SpanContext>>;

/// Accepts likes and answers when they are safe.
pub trait LikeSink: Send + Sync + 'static {
    /// Publishes a like and waits until it is safe.
    ///
    /// # Errors
    /// When the like is not known to be safe.
    fn publish(
        &self,
        like: Like,
        span: RequestSpan,
    ) -> impl Future<Output = Result<Accepted, PublishError>> + Send;

    /// Publishes likes and waits until all of them are safe.
    ///
    /// # Errors
    /// When not all of them are known to be safe. Some may be.
    fn publish_batch(
        &self,
        likes: Vec<Like>,
        span: RequestSpan,
    ) -> impl Future<Output = Result<(), PublishError>> + Send;
}

/// Where an accepted like is.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// The stream entry that contains it.
    pub entry_id: Arc<str>,
    /// The partition of the stream.
    pub partition: Partition,
}

/// Why a like was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PublishError {
    /// The like was not published.
    #[error("too many likes wait for Redis to answer")]
    QueueFull,
    /// The like was not published.
    #[error("Redis is out of memory")]
    OutOfMemory,
    /// Redis answered with an error.
    #[error("Redis refuses the entry")]
    Refused,
    /// The entry is in the stream, on too few servers.
    #[error("the entry is not as safe as REDIS_ACK asks for")]
    Unconfirmed,
    /// No answer, or not a clear one. The entry may be in the stream all the same.
    #[error("Redis can't be reached")]
    Unavailable,
}
