//! Faults of ingest and the consumers.

use devstack::StackError;

use crate::chaos::{injector::Injector, plan::Fault};

impl Injector {
    /// Index of the consumer that a fault affects.
    fn consumer_of(&self, fault: Fault) -> usize {
        fault.target % self.stack.consumers.len()
    }

    pub(super) fn kill_consumer(&mut self, fault: Fault) -> Result<(), StackError> {
        let consumer = self.consumer_of(fault);
        self.stack.consumers[consumer].kill();
        self.pause(fault.outage);
        self.stack.replace_consumer(consumer)
    }

    pub(super) fn kill_ingest(&mut self) -> Result<(), StackError> {
        self.stack.ingest.kill();
        self.stack.replace_ingest()
    }

    pub(super) fn roll_out_consumers(&mut self) -> Result<(), StackError> {
        for consumer in 0..self.stack.consumers.len() {
            self.stack.consumers[consumer].stop()?;
            self.stack.replace_consumer(consumer)?;
        }
        Ok(())
    }

    pub(super) fn roll_out_ingest(&mut self) -> Result<(), StackError> {
        self.stack.ingest.stop()?;
        self.stack.replace_ingest()
    }

    pub(super) fn kill_consumer_at_frozen_postgres(&mut self, fault: Fault) -> Result<(), StackError> {
        let consumer = self.consumer_of(fault);
        self.stack.postgres.pause();
        self.pause(fault.outage);
        self.stack.consumers[consumer].kill();
        self.stack.postgres.resume();
        self.stack.replace_consumer(consumer)
    }

    pub(super) fn kill_consumer_at_frozen_redis(&mut self, fault: Fault) -> Result<(), StackError> {
        let consumer = self.consumer_of(fault);
        self.freeze_redis(fault, |injector| injector.stack.consumers[consumer].kill())?;
        self.stack.replace_consumer(consumer)
    }
}
