//! Held rows: they were tried and not stored, while Postgres may take other rows. They are tried again between batches, and
//! their entries stay in flight, so the in-flight limit bounds them.

use std::future;

use shared::{backoff::Backoff, postgres::FailureClass, wire::partition::Partition};
use tokio::time::{Instant, sleep_until};

use crate::{
    entry::Position,
    store::batch::{Batch, Obstacle, Remainder},
};

/// Ratio of the time for other batches to the time of a pass over held rows that stored nothing.
const TIME_FOR_OTHERS: u32 = 4;

/// Rows of one or more batches that wait for their next pass.
pub(super) struct Held {
    batch: Batch,
    obstacle: Obstacle,
    backoff: Backoff,
    /// End of the time for other batches.
    earliest: Instant,
    due: Instant,
}

impl Held {
    /// Holds rows after their first pass.
    pub(super) fn new(remainder: Remainder) -> Self {
        let Remainder { batch, obstacle } = remainder;
        let mut backoff = backoff_of(&obstacle);
        let earliest = Instant::now();
        let due = earliest + backoff.next_delay();
        Self { batch, obstacle, backoff, earliest, due }
    }

    /// Adds rows of another batch, which wait for the same pass. They may hasten it, but take no time from other batches.
    pub(super) fn merge(self, remainder: Remainder) -> Self {
        let is_rejected = self.is_rejected();
        let other = Self::new(remainder);
        Self {
            batch: self.batch.merge(other.batch),
            obstacle: if is_rejected { self.obstacle } else { other.obstacle },
            due: self.due.min(other.due).max(self.earliest),
            ..self
        }
    }

    /// Returns whether the table rejected one of the rows.
    pub(super) fn is_rejected(&self) -> bool {
        self.obstacle.class == FailureClass::Reject
    }

    /// Makes rejected rows due, because the table was seen to take other rows.
    pub(super) fn table_took_rows(&mut self) {
        if self.is_rejected() {
            self.due = Instant::now();
        }
    }

    pub(super) fn rows(&self) -> usize {
        self.batch.rows()
    }

    /// Returns the entries of the rows.
    pub(super) fn positions(&self) -> impl Iterator<Item = Position> + '_ {
        self.batch.positions()
    }

    /// Splits off the rows and entries of other partitions than these, which are in order.
    pub(super) fn split_off_others(&mut self, own: &[Partition]) -> Option<Batch> {
        self.batch.split_off_others(own)
    }

    pub(super) fn is_due(&self) -> bool {
        self.due <= Instant::now()
    }

    /// Returns the reason why the rows are held.
    pub(super) fn reason(&self) -> String {
        let Obstacle { class, why } = &self.obstacle;
        match class {
            FailureClass::Retry => why.clone(),
            FailureClass::Halt => format!("writes to Postgres are halted: {why}; {}", self.obstacle.remedy()),
            FailureClass::Reject => {
                let remedy = self.obstacle.remedy();
                format!("writes to Postgres are halted: the table rejects every row: {why}; {remedy}")
            }
        }
    }

    /// Waits until rows are due; forever if none are held.
    pub(super) async fn due(held: Option<&Self>) {
        match held {
            Some(held) => sleep_until(held.due).await,
            None => future::pending().await,
        }
    }

    /// Starts a pass.
    pub(super) fn begin(self) -> (Batch, HeldPass) {
        (self.batch, HeldPass { backoff: self.backoff, started: Instant::now() })
    }
}

fn backoff_of(obstacle: &Obstacle) -> Backoff {
    match obstacle.class {
        FailureClass::Retry => Backoff::retry(),
        FailureClass::Halt | FailureClass::Reject => Backoff::halt(),
    }
}

/// Pass over held rows.
pub(super) struct HeldPass {
    backoff: Backoff,
    started: Instant,
}

impl HeldPass {
    /// Holds the rows that the pass did not store.
    pub(super) fn end(self, remainder: Remainder, progressed: bool) -> Held {
        if progressed {
            return Held::new(remainder);
        }
        let Self { mut backoff, started } = self;
        let Remainder { batch, obstacle } = remainder;
        let now = Instant::now();
        let earliest = now + (now - started) * TIME_FOR_OTHERS;
        let due = earliest.max(now + backoff.next_delay());
        Held { batch, obstacle, backoff, earliest, due }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;

    use super::*;

    fn remainder(class: FailureClass) -> Remainder {
        Remainder { batch: Batch::of(Vec::new()), obstacle: Obstacle { class, why: String::new() } }
    }

    #[tokio::test(start_paused = true)]
    async fn rows_of_another_batch_hasten_a_pass_and_hide_no_rejection() {
        let held = Held::new(remainder(FailureClass::Reject));
        let due = held.due;
        let merged = held.merge(remainder(FailureClass::Retry));
        assert!(merged.is_rejected());
        assert!(merged.due < due);
        let merged = Held::new(remainder(FailureClass::Retry)).merge(remainder(FailureClass::Reject));
        assert!(merged.is_rejected());
    }

    #[tokio::test(start_paused = true)]
    async fn rows_of_another_batch_take_no_time_from_others() {
        let (_, held_pass) = Held::new(remainder(FailureClass::Retry)).begin();
        advance(Duration::from_secs(1)).await;
        let held = held_pass.end(remainder(FailureClass::Retry), false).merge(remainder(FailureClass::Retry));
        advance(Duration::from_millis(999) * TIME_FOR_OTHERS).await;
        assert!(!held.is_due());
        advance(Duration::from_millis(1) * TIME_FOR_OTHERS).await;
        assert!(held.is_due());
    }
}
