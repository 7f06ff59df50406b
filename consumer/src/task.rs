//! Tasks of this process.

use futures_util::future::BoxFuture;
use tokio_util::task::AbortOnDropHandle;

/// Spawns a task that is aborted when its handle is dropped.
///
/// The future is boxed: tokio's task machinery is compiled once for each result type instead of once for each task, and
/// the large futures of the state machines are not moved around.
pub(crate) fn spawn<T: Send + 'static>(task: BoxFuture<'static, T>) -> AbortOnDropHandle<T> {
    AbortOnDropHandle::new(tokio::spawn(task))
}
