//! Batch: the rows of one transaction, and the entries that it settles.

use std::{collections::HashMap, mem};

use shared::{telemetry::spans::Links, wire::like::Like};
use tokio::time::Instant;

use crate::{
    entry::Entry,
    store::{
        bisection::Bisection,
        proof::{Committed, RowKey, SettledEntry, row_key},
    },
};

/// Rows of one transaction, one per (user, post), in the order of the table's primary key, with the outcomes that are
/// already committed.
#[derive(Debug)]
pub struct Batch {
    rows: Vec<Like>,
    entries: Vec<SettledEntry>,
    likes: usize,
    first_read_at: Instant,
    /// Links to the producer spans of the entries.
    links: Links,
    /// Rows without a committed outcome. All others are stored or rejected.
    untried: Bisection,
    inserted: u64,
    /// Rows that the table rejects, with the reason.
    rejected: HashMap<RowKey, String>,
}

/// Outcome of one statement on the next piece of a batch.
#[derive(Debug)]
pub enum PieceOutcome {
    /// All rows of the piece are in the table. `inserted` of them are new.
    Stored { inserted: u64 },
    /// The table rejects the piece. If it has several rows, its halves are tried next.
    Rejected {
        /// Error message of Postgres.
        why: String,
    },
}

impl Batch {
    /// Creates a batch of entries that are written again.
    pub fn of(entries: Vec<Entry>) -> Self {
        let likes = entries.iter().map(|entry| entry.likes.len()).sum();
        Self::new(entries, likes)
    }

    pub(super) fn new(entries: Vec<Entry>, likes: usize) -> Self {
        let first_read_at = entries.first().map_or_else(Instant::now, |entry| entry.read_at);
        let mut rows = Vec::with_capacity(likes);
        let mut settled = Vec::with_capacity(entries.len());
        let mut links = Links::default();
        for Entry { at, likes, dead_letters, payload, producer, .. } in entries {
            if let Some(producer) = producer {
                links.add(*producer);
            }
            rows.extend_from_slice(&likes);
            settled.push(SettledEntry { at, likes: likes.len(), dead_letters, payload });
        }
        // Key order: all consumers lock rows in the same order, and index pages are visited sequentially. Among likes with
        // the same key the earliest is kept.
        rows.sort_unstable_by_key(|like| (row_key(*like), like.created_at_us()));
        rows.dedup_by_key(|like| row_key(*like));
        let untried = Bisection::new(rows.len());
        let rejected = HashMap::new();
        Self { rows, entries: settled, likes, first_read_at, links, untried, inserted: 0, rejected }
    }

    /// Returns the number of rows, without duplicates.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Returns the number of likes of its entries, duplicates included.
    pub fn likes(&self) -> usize {
        self.likes
    }

    /// Returns the number of entries that the batch settles.
    pub fn entries(&self) -> usize {
        self.entries.len()
    }

    /// Takes the links to the producer spans.
    pub fn take_links(&mut self) -> Links {
        mem::take(&mut self.links)
    }

    /// Returns the time at which the first entry was read.
    pub fn first_read_at(&self) -> Instant {
        self.first_read_at
    }

    /// Returns all rows if none has a committed outcome; `None` otherwise, or for a batch without rows.
    pub(super) fn all_untried(&self) -> Option<&[Like]> {
        self.next_rows().filter(|rows| rows.len() == self.rows.len())
    }

    /// Returns the next piece to try; `None` if every row is stored or rejected.
    pub(super) fn next_rows(&self) -> Option<&[Like]> {
        self.rows.get(self.untried.next_piece()?)
    }

    /// Returns the remaining pieces, for a transaction that tries several of them.
    pub(super) fn pieces(&self) -> Pieces<'_> {
        Pieces { rows: &self.rows, untried: self.untried.clone() }
    }

    /// Records the committed outcomes of the next pieces, in order.
    pub(super) fn record(&mut self, outcomes: impl IntoIterator<Item = PieceOutcome>) {
        for outcome in outcomes {
            match outcome {
                PieceOutcome::Stored { inserted } => {
                    self.untried.stored();
                    self.inserted += inserted;
                }
                PieceOutcome::Rejected { why } => {
                    if let Some(like) = self.untried.rejected().and_then(|row| self.rows.get(row)) {
                        self.rejected.insert(row_key(*like), why);
                    }
                }
            }
        }
    }

    /// Returns the proof of commit if every row has a committed outcome: all entries are settled, and rejected likes are dead
    /// letters. Otherwise returns the batch.
    #[expect(clippy::result_large_err, reason = "not an error: the batch is written further")]
    pub(super) fn into_committed(self, fell_back: bool) -> Result<Committed, Self> {
        if self.next_rows().is_some() {
            return Err(self);
        }
        let Self { mut entries, rejected, inserted, .. } = self;
        if !rejected.is_empty() {
            for entry in &mut entries {
                entry.dead_letter_rejected(&rejected);
            }
        }
        Ok(Committed::new(entries, inserted, rejected.len(), fell_back))
    }
}

/// Remaining pieces of a batch, for a transaction that tries several of them before it commits.
pub(super) struct Pieces<'a> {
    rows: &'a [Like],
    untried: Bisection,
}

impl<'a> Pieces<'a> {
    pub(super) fn next_rows(&self) -> Option<&'a [Like]> {
        self.rows.get(self.untried.next_piece()?)
    }

    pub(super) fn stored(&mut self, inserted: u64) -> PieceOutcome {
        self.untried.stored();
        PieceOutcome::Stored { inserted }
    }

    pub(super) fn rejected(&mut self, why: String) -> PieceOutcome {
        self.untried.rejected();
        PieceOutcome::Rejected { why }
    }
}

#[cfg(test)]
mod tests;
