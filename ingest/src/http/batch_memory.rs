//! Memory budget that all batches share. It is taken before the memory is allocated.

use std::sync::Arc;

use axum::response::Response;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::problem::{Kind, Problem};

/// Size of one permit.
const UNIT_BYTES: usize = 1 << 10;

pub(crate) struct BatchMemory {
    units: usize,
    free: Arc<Semaphore>,
}

impl BatchMemory {
    pub(crate) fn new(bytes: usize) -> Self {
        let units = bytes.div_ceil(UNIT_BYTES);
        Self { units, free: Arc::new(Semaphore::new(units)) }
    }

    /// Reserves one unit. The permit grows while the body arrives: `Content-Length` alone reserves nothing.
    pub(super) fn reserve(&self) -> Result<MemoryPermit, Problem> {
        let held = Arc::clone(&self.free).try_acquire_owned().map_err(|_| Kind::Overloaded)?;
        Ok(MemoryPermit { units: self.units, free: Arc::clone(&self.free), held })
    }
}

/// Memory of one batch: its body, its likes and its errors.
pub(super) struct MemoryPermit {
    units: usize,
    free: Arc<Semaphore>,
    held: OwnedSemaphorePermit,
}

impl MemoryPermit {
    /// Sets the size to `bytes`, if the budget has enough left. A batch that needs more than the whole budget takes all of
    /// it, so that it is processed while there is no other batch.
    pub(super) fn resize(&mut self, bytes: usize) -> Result<(), Problem> {
        let wanted = bytes.div_ceil(UNIT_BYTES).min(self.units);
        let held = self.held.num_permits();
        if wanted <= held {
            drop(self.held.split(held - wanted));
            return Ok(());
        }
        let more = u32::try_from(wanted - held).unwrap_or(u32::MAX);
        let more = Arc::clone(&self.free).try_acquire_many_owned(more);
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
        first.resize(2 * UNIT_BYTES).unwrap();
        let mut second = memory.reserve().unwrap();
        assert!(second.resize(2 * UNIT_BYTES).is_err() && memory.reserve().is_err());
        let response = first.hold_until_sent(Response::default());
        assert!(second.resize(2 * UNIT_BYTES).is_err());
        drop(response);
        second.resize(3 * UNIT_BYTES).unwrap();
    }

    #[test]
    fn a_smaller_permit_leaves_memory_to_others() {
        let memory = BatchMemory::new(3 * UNIT_BYTES);
        let mut first = memory.reserve().unwrap();
        first.resize(3 * UNIT_BYTES).unwrap();
        first.resize(UNIT_BYTES).unwrap();
        let mut second = memory.reserve().unwrap();
        second.resize(2 * UNIT_BYTES).unwrap();
        assert!(first.resize(2 * UNIT_BYTES).is_err());
    }

    #[test]
    fn a_batch_larger_than_the_budget_is_processed_alone() {
        let memory = BatchMemory::new(3 * UNIT_BYTES);
        let mut large = memory.reserve().unwrap();
        let small = memory.reserve().unwrap();
        assert!(large.resize(9 * UNIT_BYTES).is_err());
        drop(small);
        large.resize(9 * UNIT_BYTES).unwrap();
        assert!(memory.reserve().is_err());
    }
}
