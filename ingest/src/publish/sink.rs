//! Interface of publishing: the trait `LikeSink`, its results and its errors.

use std::sync::Arc;

use opentelemetry::trace::SpanContext;
use shared::wire::{like::Like, partition::Partition};
use thiserror::Error;

/// Span of the request that contains a like, if the request is sampled.
pub type RequestSpan = Option<Box<SpanContext>>;

/// Publishes likes.
pub trait LikeSink: Send + Sync + 'static {
    /// Publishes a like, and returns when it is as durable as configured.
    ///
    /// # Errors
    /// Returns an error if the like is not known to be durable. It may still be published.
    fn publish(
        &self,
        like: Like,
        span: RequestSpan,
    ) -> impl Future<Output = Result<Accepted, PublishError>> + Send;

    /// Publishes likes, and returns when all of them are as durable as configured.
    ///
    /// # Errors
    /// Returns an error if some of the likes are not known to be durable. Any of them may still be published.
    fn publish_batch(
        &self,
        likes: Vec<Like>,
        span: RequestSpan,
    ) -> impl Future<Output = Result<(), PublishError>> + Send;
}

/// Position of an accepted like.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// Id of the stream entry that contains the like.
    pub entry_id: Arc<str>,
    /// Partition of the entry's stream.
    pub partition: Partition,
}

/// Error of a like that was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PublishError {
    /// The like was not published.
    #[error("the partition queue is full")]
    QueueFull,
    #[error("Redis is out of memory")]
    OutOfMemory(Published),
    /// Redis is a replica.
    #[error("Redis is read-only")]
    ReadOnly(Published),
    /// Redis replied with another error, of this type.
    #[error("Redis rejected the entry: {0}")]
    Refused(&'static str, Published),
    /// The entry is in the stream, but not as durable as `REDIS_ACK` requires.
    #[error("Redis did not confirm the entry")]
    Unconfirmed,
    /// Redis did not reply, or was not ready; the last error has this type.
    #[error("Redis is unavailable: {0}")]
    Unavailable(&'static str, Published),
}

/// Whether a like that was not accepted may be in its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    No,
    Unknown,
}

impl PublishError {
    /// Returns the error of a batch, one part of which has this error: other parts may be in their streams.
    pub(super) fn of_one_part(self) -> Self {
        match self {
            Self::OutOfMemory(_) => Self::OutOfMemory(Published::Unknown),
            Self::ReadOnly(_) => Self::ReadOnly(Published::Unknown),
            Self::Refused(class, _) => Self::Refused(class, Published::Unknown),
            Self::Unavailable(class, _) => Self::Unavailable(class, Published::Unknown),
            Self::QueueFull | Self::Unconfirmed => self,
        }
    }
}
