//! Batch: rows that are written together, and the entries that they settle.
//!
//! In a pass, each row is untried, stored, or obstructed: not stored although it was sent alone. At the end of the pass, an
//! obstructed row is rejected, if that is a verdict about the row, or waits for the next pass.

use std::{
    collections::{HashMap, HashSet},
    mem,
};

use shared::{
    error_chain::one_line,
    postgres::{FailureClass, RowsFailure},
    telemetry::spans::Links,
    wire::like::Like,
};
use tokio::time::Instant;

use crate::{
    entry::{Entry, Position},
    store::{
        error::WriteError,
        pieces::Pieces,
        proof::{Committed, RowKey, SettledEntry, Tally, row_key},
    },
};

/// Rows, one per (user, post), in the order of the table's primary key, with the outcomes that are already committed.
#[derive(Debug)]
pub struct Batch {
    rows: Vec<Like>,
    entries: Vec<SettledEntry>,
    likes: usize,
    first_read_at: Instant,
    /// Links to the producer spans of the entries.
    links: Links,
    untried: Pieces,
    /// Rows that were not stored although they were sent alone.
    obstructed: Vec<(usize, Obstacle)>,
    /// Rejected rows among them.
    rejections: Option<Rejections>,
    /// Obstacle of the last piece that was not stored.
    failure: Option<Obstacle>,
    /// Rows that the table rejects, with the reason.
    rejected: HashMap<RowKey, String>,
    tally: Tally,
    /// Number of earlier passes over these rows.
    passes: u32,
}

/// Outcome of one statement on the next piece of a batch.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Number of rows of the piece.
    pub(super) rows: usize,
    /// If the piece was not stored and has several rows, its halves are tried next.
    pub(super) result: Result<Stored, Obstacle>,
}

/// Rows that the table rejected in this pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rejections {
    pub(super) rows: usize,
    /// Number of the definition of the table at the first rejection.
    pub(super) definition: u64,
}

/// Result of a statement that stored a piece. All other rows of the piece were in the table already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) inserted: u64,
    /// Number of rows that triggers of the table discarded.
    pub(super) discarded: u64,
}

/// Reason why rows were not stored.
#[derive(Clone, Debug)]
pub struct Obstacle {
    /// [`FailureClass::Reject`] if it is a verdict about the rows.
    pub class: FailureClass,
    /// Error message of Postgres.
    pub why: String,
}

/// Result of one pass over a batch.
#[derive(Debug)]
pub struct Written {
    /// Entries that are settled, and what was stored.
    pub committed: Committed,
    /// Rows that are not settled.
    pub remainder: Option<Remainder>,
}

/// Rows that a pass did not settle, with their entries.
#[derive(Debug)]
pub struct Remainder {
    pub batch: Batch,
    /// The obstacle of one of the rows: a rejection, if there is one.
    pub obstacle: Obstacle,
}

impl Obstacle {
    /// Returns the obstacle that an error is for rows, or the error if it is not about rows.
    pub(super) fn of(error: WriteError) -> Result<Self, WriteError> {
        match error.about_rows() {
            RowsFailure::Server => Err(error),
            RowsFailure::Rejected => Ok(Self { class: FailureClass::Reject, ..Self::unknown(&error) }),
            RowsFailure::Unknown => Ok(Self::unknown(&error)),
        }
    }

    /// Returns an obstacle without a verdict about the rows.
    pub(super) fn unknown(error: &WriteError) -> Self {
        let class = match error.class() {
            FailureClass::Halt => FailureClass::Halt,
            FailureClass::Retry | FailureClass::Reject => FailureClass::Retry,
        };
        let why = match error {
            WriteError::Rows(error) => one_line(error),
            error => one_line(error),
        };
        Self { class, why }
    }

    /// Returns the obstacle of rows that were not tried.
    fn no_time() -> Self {
        Self { class: FailureClass::Retry, why: "Postgres is too slow for all rows of the batch".to_owned() }
    }

    /// Returns the action that an operator must take, unless the error is transient.
    pub(crate) fn remedy(&self) -> &'static str {
        match self.class {
            FailureClass::Reject => "fix the table; consumers continue by themselves",
            FailureClass::Halt | FailureClass::Retry => {
                "fix the schema, the privileges or the connection settings"
            }
        }
    }
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
        let all = rows.len();
        // Key order: all consumers lock rows in the same order, and index pages are visited sequentially. Among likes with
        // the same key the earliest is kept.
        rows.sort_unstable_by_key(|like| (row_key(*like), like.created_at_us()));
        rows.dedup_by_key(|like| row_key(*like));
        let tally = Tally { deduplicated: (all - rows.len()) as u64, ..Tally::default() };
        Self { links, tally, ..Self::of_distinct(rows, settled, first_read_at) }
    }

    /// Creates a batch of untried rows with distinct keys.
    fn of_distinct(rows: Vec<Like>, entries: Vec<SettledEntry>, first_read_at: Instant) -> Self {
        Self {
            untried: Pieces::new(rows.len()),
            likes: entries.iter().map(|entry| entry.likes).sum(),
            rows,
            entries,
            first_read_at,
            links: Links::default(),
            obstructed: Vec::new(),
            failure: None,
            rejections: None,
            rejected: HashMap::new(),
            tally: Tally::default(),
            passes: 0,
        }
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

    /// Returns the positions of the entries that the batch settles.
    pub fn positions(&self) -> impl Iterator<Item = Position> + '_ {
        self.entries.iter().map(|entry| entry.at)
    }

    /// Takes the links to the producer spans.
    pub fn take_links(&mut self) -> Links {
        mem::take(&mut self.links)
    }

    /// Returns the time at which the first entry was read.
    pub fn first_read_at(&self) -> Instant {
        self.first_read_at
    }

    /// Returns the number of earlier passes over these rows.
    pub(super) fn passes(&self) -> u32 {
        self.passes
    }

    /// Returns all rows if none was tried and they fit into one piece; `None` otherwise, or for a batch without rows.
    pub(super) fn whole(&self, max: usize) -> Option<&[Like]> {
        self.next_rows(max).filter(|rows| rows.len() == self.rows.len() && self.passes == 0)
    }

    /// Returns the next piece, of at most `max` rows; `None` if every row was tried.
    pub(super) fn next_rows(&self, max: usize) -> Option<&[Like]> {
        self.rows.get(self.untried.next(max)?)
    }

    /// Returns the pieces that are not tried yet.
    pub(super) fn untried(&self) -> Untried<'_> {
        Untried { rows: &self.rows, pieces: self.untried.clone() }
    }

    /// Records the outcomes of the next pieces, in order. A stored piece must be committed. `definition` is the number of the
    /// definition of the table.
    pub(super) fn record(&mut self, outcomes: impl IntoIterator<Item = Outcome>, definition: u64) {
        for Outcome { rows, result } in outcomes {
            match result {
                Ok(Stored { inserted, discarded }) => {
                    self.untried.stored(rows);
                    self.tally.inserted += inserted;
                    self.tally.discarded += discarded;
                    let known = (rows as u64).saturating_sub(inserted).saturating_sub(discarded);
                    self.tally.deduplicated += known;
                }
                Err(obstacle) => {
                    self.failure = Some(obstacle.clone());
                    let Some(row) = self.untried.failed(rows) else { continue };
                    if obstacle.class == FailureClass::Reject {
                        self.rejections.get_or_insert(Rejections { rows: 0, definition }).rows += 1;
                    }
                    self.obstructed.push((row, obstacle));
                }
            }
        }
    }

    /// Returns the rejected rows of this pass; `None` if there are none.
    pub(super) fn rejections(&self) -> Option<Rejections> {
        self.rejections
    }

    /// Ends a pass. Entries without waiting or untried rows are settled. Rejected rows become dead letters if
    /// `rejections_count`; otherwise they wait like the others.
    pub(super) fn settle(mut self, rejections_count: bool, fell_back: bool) -> Written {
        // Untried rows come first in the next pass, so that every row gets its turn.
        let mut waiting: Vec<Like> =
            self.untried.rows().filter_map(|row| self.rows.get(row).copied()).collect();
        let mut cause: Option<Obstacle> = None;
        for (row, obstacle) in mem::take(&mut self.obstructed) {
            let Some(like) = self.rows.get(row).copied() else { continue };
            if rejections_count && obstacle.class == FailureClass::Reject {
                self.tally.rejected += 1;
                self.rejected.insert(row_key(like), obstacle.why);
            } else {
                waiting.push(like);
                let is_worse = |cause: &Obstacle| cause.class != FailureClass::Reject;
                if cause.as_ref().is_none_or(is_worse) {
                    cause = Some(obstacle);
                }
            }
        }
        let keys: HashSet<RowKey> = waiting.iter().copied().map(row_key).collect();
        let (unsettled, mut settled): (Vec<_>, Vec<_>) = if keys.is_empty() {
            (Vec::new(), self.entries)
        } else {
            self.entries.into_iter().partition(|entry| entry.has_any(&keys))
        };
        if !self.rejected.is_empty() {
            for entry in &mut settled {
                entry.dead_letter_rejected(&self.rejected);
            }
        }
        let committed = Committed::new(settled, self.tally, fell_back);
        let remainder = (!waiting.is_empty()).then(|| {
            let batch = Self::of_distinct(waiting, unsettled, self.first_read_at);
            let batch = Self { rejected: self.rejected, passes: self.passes + 1, ..batch };
            Remainder { batch, obstacle: cause.or(self.failure).unwrap_or_else(Obstacle::no_time) }
        });
        Written { committed, remainder }
    }

    /// Adds the remainder of another batch. All rows are untried afterwards.
    pub(crate) fn merge(mut self, other: Self) -> Self {
        self.rows.extend(other.rows);
        self.entries.extend(other.entries);
        self.rejected.extend(other.rejected);
        let first_read_at = self.first_read_at.min(other.first_read_at);
        let mut keys = HashSet::new();
        self.rows.retain(|like| keys.insert(row_key(*like)));
        // A row that waits has no verdict yet, whatever the other batch was told.
        self.rejected.retain(|key, _| !keys.contains(key));
        let merged = Self::of_distinct(self.rows, self.entries, first_read_at);
        Self { rejected: self.rejected, passes: self.passes.min(other.passes), ..merged }
    }
}

/// Pieces of a batch that are not tried yet, for a transaction that tries several of them before it commits.
pub(super) struct Untried<'a> {
    rows: &'a [Like],
    pieces: Pieces,
}

impl<'a> Untried<'a> {
    pub(super) fn next_rows(&self, max: usize) -> Option<&'a [Like]> {
        self.rows.get(self.pieces.next(max)?)
    }

    /// Applies an outcome, which [`Batch::record`] repeats after the commit.
    pub(super) fn apply(&mut self, outcome: &Outcome) {
        if outcome.result.is_ok() {
            self.pieces.stored(outcome.rows);
        } else {
            self.pieces.failed(outcome.rows);
        }
    }
}

#[cfg(test)]
mod tests;
