//! Spawns tasks.

use futures_util::future::BoxFuture;
use tokio_util::task::AbortOnDropHandle;

/// Spawns a task that is aborted when its handle is dropped.
///
/// The future is boxed, so that tokio's task code is compiled once per result type instead of once per task, and the large
/// futures of the state machines are not moved.
pub(crate) fn spawn<T: Send + 'static>(task: BoxFuture<'static, T>) -> AbortOnDropHandle<T> {
    AbortOnDropHandle::new(tokio::spawn(task))
}
