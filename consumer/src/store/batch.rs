//! Batch: rows that are written together, and the entries that they settle.
//!
//! In a pass, each row is untried, stored, or obstructed: not stored although it was sent alone. A row that the table rejects is
//! tried twice. At the end of the pass, an obstructed row is rejected, if that is a verdict about the row, or waits for the next
//! pass.

use std::{
    collections::{HashMap, HashSet},
    mem,
};

use shared::{
    error_chain::one_line,
    postgres::{FailureClass, RowsFailure},
    telemetry::spans::Links,
    wire::{like::Like, partition::Partition},
};
use tokio::time::Instant;

use crate::{
    entry::{Entry, Position},
    store::{
        error::WriteError,
        evidence::{Evidence, Rejection},
        pieces::Pieces,
        proof::{Committed, RowKey, SettledEntry, Tally, row_key},
    },
};

/// Rows, one per (user, post), with the outcomes that are already committed.
///
/// The rows are tried in two runs, each in the order of the table's primary key: rows that had no turn yet, then those that an
/// earlier pass sent alone. So every row gets its turn, and all consumers lock rows in one order.
#[derive(Debug)]
pub struct Batch {
    rows: Vec<Like>,
    entries: Vec<SettledEntry>,
    first_read_at: Instant,
    /// Links to the producer spans of the entries.
    links: Links,
    untried: Pieces,
    /// Number of rows in the first run.
    first_run: usize,
    /// Rows that were not stored although they were sent alone.
    obstructed: Vec<Obstructed>,
    /// First rejection of each row without a verdict.
    first_rejections: HashMap<RowKey, Rejection>,
    /// Obstacle of the last piece that was not stored.
    failure: Option<Obstacle>,
    /// Rows that the table rejects, with the reason.
    rejected: HashMap<RowKey, String>,
    /// Number of likes by what became of them since entries were last taken.
    tally: Tally,
    /// Number of earlier passes over these rows.
    passes: u32,
    /// Whether a direct copy failed.
    fell_back: bool,
}

/// Row that was not stored although it was sent alone.
#[derive(Debug)]
struct Obstructed {
    row: usize,
    obstacle: Obstacle,
    /// First rejection of a row that was rejected again.
    rejected_before: Option<Rejection>,
}

/// Outcome of one statement on the next piece of a batch.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Number of rows of the piece.
    pub(super) rows: usize,
    /// If the piece was not stored and has several rows, its halves are tried next.
    pub(super) result: Result<Stored, Obstacle>,
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

/// Result of one write of a batch.
#[derive(Debug)]
pub struct Written {
    /// Entries that are settled, and what was stored.
    pub committed: Committed,
    pub rest: Rest,
}

/// Rest of a batch after a write.
#[derive(Debug)]
pub enum Rest {
    /// All entries are settled.
    Nothing,
    /// The pass is not over: some rows are not tried yet, or there was an error that says nothing about the rows. The batch may
    /// be stored despite an error, if only the reply to COMMIT was lost.
    Unwritten(Batch, Option<WriteError>),
    /// The pass is over, and some rows were not stored.
    Obstructed(Remainder),
}

/// Rows that a pass did not settle, with their entries.
#[derive(Debug)]
pub struct Remainder {
    pub batch: Batch,
    /// The obstacle of one of the rows: a rejection, if there is one.
    pub obstacle: Obstacle,
}

impl Remainder {
    pub(crate) fn is_rejected(&self) -> bool {
        self.obstacle.class == FailureClass::Reject
    }
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
        let deduplicated = sort_distinct(&mut rows);
        let tally = Tally { deduplicated, ..Tally::default() };
        Self { links, tally, ..Self::of_runs(rows, Vec::new(), settled, first_read_at) }
    }

    /// Creates a batch of untried rows with distinct keys, in two sorted runs.
    fn of_runs(
        first: Vec<Like>,
        second: Vec<Like>,
        entries: Vec<SettledEntry>,
        first_read_at: Instant,
    ) -> Self {
        let first_run = first.len();
        let mut rows = first;
        rows.extend(second);
        Self {
            untried: Pieces::new([0..first_run, first_run..rows.len()]),
            first_run,
            rows,
            entries,
            first_read_at,
            links: Links::default(),
            obstructed: Vec::new(),
            first_rejections: HashMap::new(),
            failure: None,
            rejected: HashMap::new(),
            tally: Tally::default(),
            passes: 0,
            fell_back: false,
        }
    }

    /// Returns the number of rows, without duplicates.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Returns the number of likes of its entries, duplicates included.
    pub fn likes(&self) -> usize {
        self.entries.iter().map(|entry| entry.likes).sum()
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

    /// Records that a direct copy failed.
    pub(super) fn fell_back(&mut self) {
        self.fell_back = true;
    }

    /// Records the outcomes of the next pieces, in order. A stored piece must be committed.
    pub(super) fn record(&mut self, outcomes: impl IntoIterator<Item = Outcome>, evidence: &mut Evidence) {
        for Outcome { rows, result } in outcomes {
            match result {
                Ok(Stored { inserted, discarded }) => {
                    self.untried.stored(rows);
                    self.tally.inserted += inserted;
                    self.tally.discarded += discarded;
                    let known = (rows as u64).saturating_sub(inserted).saturating_sub(discarded);
                    self.tally.known += known;
                    evidence.inserted(inserted);
                }
                Err(obstacle) => {
                    self.failure = Some(obstacle.clone());
                    let Some(row) = self.untried.failed(rows) else { continue };
                    let is_rejected = obstacle.class == FailureClass::Reject;
                    let rejected_before = if is_rejected { self.reject(row, evidence) } else { None };
                    self.obstructed.push(Obstructed { row, obstacle, rejected_before });
                }
            }
        }
    }

    /// Records that a row was rejected. Returns its first rejection if it was rejected before, by the same definition of the table.
    fn reject(&mut self, row: usize, evidence: &Evidence) -> Option<Rejection> {
        let (key, rejection) = (row_key(*self.rows.get(row)?), evidence.rejection());
        let first = self.first_rejections.get(&key).copied();
        let first = first.filter(|first| first.is_by_definition_of(rejection));
        if first.is_none() {
            self.first_rejections.insert(key, rejection);
        }
        first
    }

    /// Makes the rows that were rejected for the first time untried again, each alone, for another transaction. Does nothing if
    /// that cannot bring verdicts. Returns whether there are such rows.
    pub(super) fn retry_rejected(&mut self, evidence: &Evidence) -> bool {
        let is_new =
            |one: &Obstructed| one.obstacle.class == FailureClass::Reject && one.rejected_before.is_none();
        let rows: Vec<usize> = self.obstructed.iter().filter(|one| is_new(one)).map(|one| one.row).collect();
        let first_rejections =
            || rows.iter().filter_map(|row| self.rows.get(*row)).map(|like| row_key(*like));
        let mut first_rejections = first_rejections().filter_map(|key| self.first_rejections.get(&key));
        let may_count =
            rows.len() <= evidence.allowance() || first_rejections.any(|one| evidence.proves(*one));
        if rows.is_empty() || !may_count {
            return false;
        }
        self.obstructed.retain(|one| !is_new(one));
        self.untried.try_alone(rows);
        true
    }

    /// Decides about the rows that were rejected twice. Their rejections are verdicts if there is evidence that the table took
    /// other rows in between; without it, only a few are.
    pub(super) fn judge(&mut self, evidence: &mut Evidence) {
        let (rejected, mut others): (Vec<_>, Vec<_>) =
            mem::take(&mut self.obstructed).into_iter().partition(|one| one.rejected_before.is_some());
        let is_proven = |one: &Obstructed| one.rejected_before.is_some_and(|first| evidence.proves(first));
        let (mut verdicts, unproven): (Vec<_>, Vec<_>) = rejected.into_iter().partition(is_proven);
        if evidence.allows(unproven.len()) {
            verdicts.extend(unproven);
        } else {
            others.extend(unproven);
        }
        self.obstructed = others;
        for Obstructed { row, obstacle, .. } in verdicts {
            let Some(like) = self.rows.get(row) else { continue };
            self.tally.rejected += 1;
            self.rejected.insert(row_key(*like), obstacle.why);
        }
    }

    /// Takes the entries whose rows are all stored or rejected.
    pub(super) fn take_settled(&mut self) -> Committed {
        let undecided = self.untried.rows().chain(self.obstructed.iter().map(|one| one.row));
        let undecided = undecided.filter_map(|row| self.rows.get(row));
        let keys: HashSet<RowKey> = undecided.map(|like| row_key(*like)).collect();
        let mut settled = mem::take(&mut self.entries);
        if !keys.is_empty() {
            (self.entries, settled) = settled.into_iter().partition(|entry| entry.has_any(&keys));
        }
        if !self.rejected.is_empty() {
            for entry in &mut settled {
                entry.dead_letter_rejected(&self.rejected);
            }
        }
        Committed::new(settled, mem::take(&mut self.tally), mem::take(&mut self.fell_back))
    }

    /// Ends a pass. Returns the rows that are not settled; `None` if all are.
    pub(super) fn remainder(mut self) -> Option<Remainder> {
        let like = |row: usize| self.rows.get(row).copied();
        let first: Vec<Like> = self.untried.rows().filter_map(like).collect();
        let second: Vec<Like> = self.obstructed.iter().filter_map(|one| like(one.row)).collect();
        if first.is_empty() && second.is_empty() {
            return None;
        }
        let obstacles = || self.obstructed.iter().map(|one| &one.obstacle);
        let rejection = obstacles().find(|obstacle| obstacle.class == FailureClass::Reject);
        let obstacle = rejection.or_else(|| obstacles().next()).or(self.failure.as_ref()).cloned();
        let batch = Self {
            first_rejections: mem::take(&mut self.first_rejections),
            rejected: mem::take(&mut self.rejected),
            passes: self.passes + 1,
            ..Self::waiting(first, second, mem::take(&mut self.entries), self.first_read_at)
        };
        Some(Remainder { batch, obstacle: obstacle.unwrap_or_else(Obstacle::no_time) })
    }

    /// Creates a batch of rows that wait. Those in `second` had their turn.
    fn waiting(
        mut first: Vec<Like>,
        second: Vec<Like>,
        entries: Vec<SettledEntry>,
        first_read_at: Instant,
    ) -> Self {
        let had_turn: HashSet<RowKey> = second.iter().copied().map(row_key).collect();
        first.extend(second);
        let deduplicated = sort_distinct(&mut first);
        let (second, first) = first.into_iter().partition(|like| had_turn.contains(&row_key(*like)));
        let tally = Tally { deduplicated, ..Tally::default() };
        Self { tally, ..Self::of_runs(first, second, entries, first_read_at) }
    }

    /// Adds the remainder of another batch. All rows are untried afterwards.
    pub(crate) fn merge(mut self, mut other: Self) -> Self {
        let mut second = self.rows.split_off(self.first_run);
        second.extend(other.rows.split_off(other.first_run));
        let mut first = self.rows;
        first.extend(other.rows);
        self.entries.extend(other.entries);
        self.rejected.extend(other.rejected);
        self.first_rejections.extend(other.first_rejections);
        let first_read_at = self.first_read_at.min(other.first_read_at);
        let merged = Self::waiting(first, second, self.entries, first_read_at);
        // A row that waits has no verdict yet, whatever the other batch was told.
        for like in &merged.rows {
            self.rejected.remove(&row_key(*like));
        }
        Self {
            rejected: self.rejected,
            first_rejections: self.first_rejections,
            passes: self.passes.max(other.passes),
            ..merged
        }
    }

    /// Splits off the entries of other partitions than these, which are in order, with the rows that only they have. Between two
    /// passes: all rows are untried. Returns `None` if there are no such entries.
    pub(crate) fn split_off_others(&mut self, own: &[Partition]) -> Option<Self> {
        let is_own = |entry: &SettledEntry| own.binary_search(&entry.at.partition).is_ok();
        let (kept, others): (Vec<_>, Vec<_>) = mem::take(&mut self.entries).into_iter().partition(is_own);
        if others.is_empty() {
            self.entries = kept;
            return None;
        }
        let keys: HashSet<RowKey> = kept.iter().flat_map(SettledEntry::keys).collect();
        let is_kept = |like: &Like| keys.contains(&row_key(*like));
        let second = self.rows.split_off(self.first_run);
        let (first, other_first) = mem::take(&mut self.rows).into_iter().partition(is_kept);
        let (second, other_second) = second.into_iter().partition(is_kept);
        *self = Self {
            first_rejections: mem::take(&mut self.first_rejections),
            rejected: mem::take(&mut self.rejected),
            tally: mem::take(&mut self.tally),
            passes: self.passes,
            ..Self::of_runs(first, second, kept, self.first_read_at)
        };
        Some(Self::of_runs(other_first, other_second, others, self.first_read_at))
    }
}

/// Sorts rows in key order: all consumers lock rows in the same order, and index pages are visited sequentially. Among likes with
/// the same key the earliest is kept. Returns the number of the others.
fn sort_distinct(rows: &mut Vec<Like>) -> u64 {
    let all = rows.len();
    rows.sort_unstable_by_key(|like| (row_key(*like), like.created_at_us()));
    rows.dedup_by_key(|like| row_key(*like));
    (all - rows.len()) as u64
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
