//! Evidence that the table takes rows at all. Without it, a rejected row proves nothing about the row: a column, constraint,
//! policy or trigger that rejects everything is a fault of the table.

use std::time::Duration;

use tokio::time::Instant;

/// Time for which an inserted row is evidence.
const RECENT: Duration = Duration::from_secs(10);

/// Number of rows that may become dead letters without evidence, so that a few bad likes in quiet times do not wait.
const ALLOWANCE: usize = 10;

/// Evidence from committed transactions, for one definition of the table.
#[derive(Debug)]
pub(super) struct Evidence {
    fingerprint: String,
    /// Number of the definition of the table.
    definition: u64,
    inserted_at: Option<Instant>,
    /// Number of rows that may still become dead letters without evidence.
    allowance: usize,
}

impl Default for Evidence {
    fn default() -> Self {
        Self { fingerprint: String::new(), definition: 0, inserted_at: None, allowance: ALLOWANCE }
    }
}

impl Evidence {
    /// Forgets the evidence if the definition of the table has changed.
    pub(super) fn table_verified(&mut self, fingerprint: &str) {
        if self.fingerprint != fingerprint {
            fingerprint.clone_into(&mut self.fingerprint);
            self.definition += 1;
            self.inserted_at = None;
        }
    }

    /// Returns the number of the current definition of the table.
    pub(super) fn definition(&self) -> u64 {
        self.definition
    }

    /// Records a committed transaction that inserted rows. Rows that were in the table already are no evidence: not
    /// everything is checked for them.
    pub(super) fn inserted(&mut self, rows: u64) {
        if rows > 0 {
            self.inserted_at = Some(Instant::now());
            self.allowance = ALLOWANCE;
        }
    }

    /// Returns whether the rejection of `rows` rows under this definition of the table is a verdict about them.
    pub(super) fn allows(&mut self, rows: usize, definition: u64) -> bool {
        if definition != self.definition {
            return false;
        }
        if self.inserted_at.is_some_and(|at| at.elapsed() <= RECENT) {
            return true;
        }
        let is_allowed = rows <= self.allowance;
        if is_allowed {
            self.allowance -= rows;
        }
        is_allowed
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn allows(evidence: &mut Evidence, rows: usize) -> bool {
        evidence.allows(rows, evidence.definition())
    }

    #[tokio::test(start_paused = true)]
    async fn rejections_count_while_the_table_takes_other_rows() {
        let mut evidence = Evidence::default();
        assert!(!allows(&mut evidence, 5_000));
        evidence.inserted(0);
        assert!(!allows(&mut evidence, 5_000), "a duplicate is no evidence");
        evidence.inserted(1);
        assert!(allows(&mut evidence, 5_000));
        advance(RECENT * 2).await;
        assert!(!allows(&mut evidence, 5_000), "too long ago");
    }

    #[tokio::test(start_paused = true)]
    async fn evidence_and_rejections_are_of_one_definition_of_the_table() {
        let mut evidence = Evidence::default();
        evidence.table_verified("a");
        let before = evidence.definition();
        evidence.inserted(1);
        evidence.table_verified("a");
        assert!(allows(&mut evidence, 5_000));
        evidence.table_verified("b");
        assert!(!allows(&mut evidence, 5_000), "the evidence is of another definition");
        evidence.inserted(1);
        assert!(!evidence.allows(1, before), "the rejection is of another definition");
    }

    #[tokio::test(start_paused = true)]
    async fn few_rejections_count_without_evidence() {
        let mut evidence = Evidence::default();
        assert!(!allows(&mut evidence, ALLOWANCE + 1));
        assert!(allows(&mut evidence, ALLOWANCE - 1));
        assert!(allows(&mut evidence, 1));
        evidence.table_verified("b");
        assert!(!allows(&mut evidence, 1), "a change of the table does not renew the allowance");
        evidence.inserted(1);
        evidence.table_verified("c");
        assert!(allows(&mut evidence, ALLOWANCE));
    }
}
