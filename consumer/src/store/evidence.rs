//! Evidence that the table takes rows at all. Without it, a rejected row proves nothing about the row: a column, constraint,
//! policy or trigger that rejects everything is a fault of the table.
//!
//! A rejection is a verdict if the row was rejected before, and another row was inserted in between. So a table that begins to
//! reject rows, or stops doing so, at any moment, causes no wrong verdict.

use std::time::Duration;

use tokio::time::Instant;

/// Number of rows that may become dead letters without evidence, so that a few bad likes in quiet times do not wait.
const ALLOWANCE: usize = 10;

/// The same number while an inserted row is recent: in quiet times no other row follows a group of bad likes.
const RECENT_ALLOWANCE: usize = 1_000;

/// Time for which an inserted row is recent.
const RECENT: Duration = Duration::from_secs(10);

/// Evidence from committed transactions.
#[derive(Debug)]
pub(super) struct Evidence {
    fingerprint: String,
    /// Number of the definition of the table.
    definition: u64,
    /// Number of pieces with inserted rows.
    insertions: u64,
    /// Time of the last insertion by this definition of the table.
    inserted_at: Option<Instant>,
    /// Number of rows that may still become dead letters without evidence.
    allowance: usize,
}

/// Rejection of a row: the definition of the table, and what was inserted before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rejection {
    definition: u64,
    insertions: u64,
}

impl Rejection {
    pub(super) fn is_by_definition_of(self, other: Self) -> bool {
        self.definition == other.definition
    }
}

impl Default for Evidence {
    fn default() -> Self {
        let fingerprint = String::new();
        Self { fingerprint, definition: 0, insertions: 0, inserted_at: None, allowance: ALLOWANCE }
    }
}

impl Evidence {
    /// Begins again if the definition of the table has changed.
    pub(super) fn table_verified(&mut self, fingerprint: &str) {
        if self.fingerprint != fingerprint {
            fingerprint.clone_into(&mut self.fingerprint);
            self.definition += 1;
            self.inserted_at = None;
        }
    }

    /// Records a committed piece that inserted rows. Rows that were in the table already are no evidence: not everything is
    /// checked for them.
    pub(super) fn inserted(&mut self, rows: u64) {
        if rows > 0 {
            self.insertions += 1;
            self.inserted_at = Some(Instant::now());
            self.allowance = RECENT_ALLOWANCE;
        }
    }

    /// Returns the record of a rejection at this moment.
    pub(super) fn rejection(&self) -> Rejection {
        Rejection { definition: self.definition, insertions: self.insertions }
    }

    /// Returns whether rows were inserted since a row was rejected first, by the same definition of the table.
    pub(super) fn proves(&self, first: Rejection) -> bool {
        first.definition == self.definition && first.insertions < self.insertions
    }

    /// Returns the number of rows that may become dead letters without evidence.
    pub(super) fn allowance(&self) -> usize {
        let is_recent = self.inserted_at.is_some_and(|at| at.elapsed() <= RECENT);
        if is_recent { self.allowance } else { self.allowance.min(ALLOWANCE) }
    }

    /// Returns whether `rows` rows become dead letters without evidence, which takes them off the allowance.
    pub(super) fn allows(&mut self, rows: usize) -> bool {
        let left = self.allowance().checked_sub(rows);
        self.allowance = left.unwrap_or(self.allowance);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[test]
    fn a_rejection_counts_if_rows_were_inserted_since_the_first_one() {
        let mut evidence = Evidence::default();
        evidence.inserted(1);
        let first = evidence.rejection();
        assert!(!evidence.proves(first), "the table may have begun to reject rows");
        evidence.inserted(0);
        assert!(!evidence.proves(first), "a duplicate is no evidence");
        evidence.inserted(1);
        assert!(evidence.proves(first));
    }

    #[test]
    fn rejections_by_an_earlier_definition_of_the_table_do_not_count() {
        let mut evidence = Evidence::default();
        evidence.table_verified("a");
        let first = evidence.rejection();
        evidence.table_verified("a");
        evidence.inserted(1);
        assert!(evidence.proves(first));
        evidence.table_verified("b");
        evidence.inserted(1);
        assert!(!evidence.proves(first));
        assert!(!first.is_by_definition_of(evidence.rejection()));
    }

    #[tokio::test(start_paused = true)]
    async fn few_rejections_count_without_evidence() {
        let mut evidence = Evidence::default();
        assert!(!evidence.allows(ALLOWANCE + 1));
        assert!(evidence.allows(ALLOWANCE - 1));
        assert!(evidence.allows(1));
        evidence.table_verified("b");
        assert!(!evidence.allows(1), "a change of the table does not renew the allowance");
    }

    #[tokio::test(start_paused = true)]
    async fn more_rejections_count_shortly_after_an_insertion_by_this_definition() {
        let mut evidence = Evidence::default();
        evidence.inserted(1);
        assert!(!evidence.allows(RECENT_ALLOWANCE + 1));
        assert!(evidence.allows(RECENT_ALLOWANCE - 1));
        assert!(evidence.allows(1) && !evidence.allows(1));
        evidence.inserted(1);
        evidence.table_verified("b");
        assert!(!evidence.allows(ALLOWANCE + 1), "inserted by another definition");
        evidence.inserted(1);
        advance(RECENT * 2).await;
        assert!(!evidence.allows(ALLOWANCE + 1), "too long ago");
        assert!(evidence.allows(ALLOWANCE) && !evidence.allows(1));
    }
}
