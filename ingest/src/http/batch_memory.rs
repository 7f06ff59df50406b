//! Memory budget that the bodies of all batches share.

use std::sync::Arc;

use axum::response::Response;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::problem::{Kind, Problem};

/// Size of one permit.
const UNIT_BYTES: usize = 1 << 10;

pub(crate) struct BatchMemory(Arc<Semaphore>);

impl BatchMemory {
    pub(crate) fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes.div_ceil(UNIT_BYTES))))
    }

    /// Reserves one unit. The permit grows while the body arrives: `Content-Length` alone reserves nothing.
    pub(super) fn reserve(&self) -> Result<MemoryPermit, Problem> {
        let held = Arc::clone(&self.0).try_acquire_owned().map_err(|_| Kind::Overloaded)?;
        Ok(MemoryPermit { memory: Arc::clone(&self.0), held })
    }
}

/// Memory of one batch: its body and its errors.
pub(super) struct MemoryPermit {
    memory: Arc<Semaphore>,
    held: OwnedSemaphorePermit,
}

impl MemoryPermit {
    /// Grows to `bytes`, if the budget has enough left.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), Problem> {
        let more = bytes.div_ceil(UNIT_BYTES).saturating_sub(self.held.num_permits());
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        let more = Arc::clone(&self.memory).try_acquire_many_owned(more);
        self.held.merge(more.map_err(|_| Kind::Overloaded)?);
        Ok(())
    }

    /// Keeps the permit until the response is sent.
    pub(super) fn hold_until_sent(self, mut response: Response) -> Response {
        response.extensions_mut().insert(Arc::new(self));
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_released_when_the_response_is_dropped() {
        let memory = BatchMemory::new(3 * UNIT_BYTES);
        let mut first = memory.reserve().unwrap();
        first.grow(2 * UNIT_BYTES).unwrap();
        first.grow(UNIT_BYTES).unwrap();
        let mut second = memory.reserve().unwrap();
        assert!(second.grow(2 * UNIT_BYTES).is_err() && memory.reserve().is_err());
        let response = first.hold_until_sent(Response::default());
        assert!(second.grow(2 * UNIT_BYTES).is_err());
        drop(response);
        second.grow(3 * UNIT_BYTES).unwrap();
    }
}
