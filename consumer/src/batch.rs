//! A batch: the rows of one transaction, and the entries that it settles.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use shared::{
    codec::{self, LocatedLike},
    like::Like,
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

use crate::{
    bisection::Bisection,
    dead_letter::{DeadLetter, DeadLike, Reason},
    entry::{Entry, Position},
};

/// When a batch is done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Entries are added until there are this many rows.
    pub(crate) rows: usize,
    /// How long after its first entry was read a batch waits for more.
    pub(crate) linger: Duration,
}

/// Why a batch was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flush {
    /// It has its rows.
    Full,
    /// It has waited long enough.
    Linger,
    /// Nothing more will come.
    Shutdown,
}

impl Flush {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Linger => "linger",
            Self::Shutdown => "shutdown",
        }
    }
}

/// Rows ready to be written, one a (user, post), in the order of the table's key; and what became of them so far.
#[derive(Debug)]
pub(crate) struct Batch {
    rows: Vec<Like>,
    entries: Vec<SettledEntry>,
    likes: usize,
    first_read_at: Instant,
    progress: Progress,
}

/// What became of the rows of a batch: all that is not said to be untried is stored or rejected.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    untried: Bisection,
    inserted: u64,
    /// Why the table will never take these rows.
    rejected: HashMap<Pair, String>,
}

/// Post and user: what a row is one of.
type Pair = (i64, i64);

/// What is to be done with an entry once every row of its batch is stored or rejected.
#[derive(Debug)]
pub(crate) struct SettledEntry {
    pub(crate) at: Position,
    pub(crate) likes: usize,
    pub(crate) dead_letters: Vec<DeadLetter>,
    pub(crate) alone: bool,
    payload: Bytes,
}

impl Batch {
    /// Takes entries until the limits say enough. Nothing when no entry will ever come.
    pub(crate) async fn collect(
        entries: &mut mpsc::UnboundedReceiver<Entry>,
        limits: Limits,
    ) -> Option<(Self, Flush)> {
        let first = entries.recv().await?;
        let wait_until = first.read_at + limits.linger;
        let mut collected = vec![first];
        let mut likes = collected.iter().map(|entry| entry.likes.len()).sum();
        let flush = loop {
            if likes >= limits.rows {
                break Flush::Full;
            }
            match timeout_at(wait_until, entries.recv()).await {
                Ok(Some(entry)) => {
                    likes += entry.likes.len();
                    collected.push(entry);
                }
                Ok(None) => break Flush::Shutdown,
                Err(_) => break Flush::Linger,
            }
        };
        Some((Self::new(collected, likes), flush))
    }

    fn new(entries: Vec<Entry>, likes: usize) -> Self {
        let first_read_at = entries.first().map_or_else(Instant::now, |entry| entry.read_at);
        let mut rows = Vec::with_capacity(likes);
        let mut settled = Vec::with_capacity(entries.len());
        for Entry { at, likes, dead_letters, alone, payload, .. } in entries {
            rows.extend_from_slice(&likes);
            settled.push(SettledEntry { at, likes: likes.len(), dead_letters, alone, payload });
        }
        // In the order of the key every consumer takes its locks in the same order, so they can't deadlock, and
        // index pages are touched one after the other. Of equal pairs the earliest like is kept.
        rows.sort_unstable_by_key(|like| (pair(*like), like.created_at_us()));
        rows.dedup_by_key(|like| pair(*like));
        let progress =
            Progress { untried: Bisection::new(rows.len()), inserted: 0, rejected: HashMap::new() };
        Self { rows, entries: settled, likes, first_read_at, progress }
    }

    /// How many rows there are for the table.
    pub(crate) fn rows(&self) -> usize {
        self.rows.len()
    }

    /// All rows, as long as none was tried; nothing for a batch without rows.
    pub(crate) fn all_untried(&self) -> Option<&[Like]> {
        let next = self.progress.next_rows(self)?;
        (next.len() == self.rows.len()).then_some(next.0)
    }

    /// How many likes its entries held, duplicates included.
    pub(crate) fn likes(&self) -> usize {
        self.likes
    }

    /// When its first entry was read.
    pub(crate) fn first_read_at(&self) -> Instant {
        self.first_read_at
    }

    /// The entry that has this batch for itself, because it may have killed others.
    pub(crate) fn alone(&self) -> Option<Position> {
        self.entries.first().filter(|entry| entry.alone).map(|entry| entry.at)
    }

    /// What became of its rows so far.
    pub(crate) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Rows were tried and that is committed.
    pub(crate) fn advance(&mut self, progress: Progress) {
        self.progress = progress;
    }

    /// How many rows were not in the table before.
    pub(crate) fn inserted(&self) -> u64 {
        self.progress.inserted
    }

    /// What it settles, when every row is stored or rejected: likes that were rejected are dead letters now.
    pub(crate) fn into_entries(self) -> Vec<SettledEntry> {
        let Self { mut entries, progress: Progress { rejected, .. }, .. } = self;
        if !rejected.is_empty() {
            for entry in &mut entries {
                entry.bury(&rejected);
            }
        }
        entries
    }
}

impl Progress {
    /// Rows to try next; nothing when every row is stored or rejected.
    pub(crate) fn next_rows<'a>(&self, batch: &'a Batch) -> Option<Rows<'a>> {
        self.untried.next_piece().and_then(|piece| batch.rows.get(piece)).map(Rows)
    }

    /// The next rows are in the table, this many of them newly.
    pub(crate) fn stored(&mut self, inserted: u64) {
        self.untried.stored();
        self.inserted += inserted;
    }

    /// The table does not take the next rows, which are these. Unless that is one row alone, they will be tried in
    /// halves.
    pub(crate) fn rejected(&mut self, rows: Rows<'_>, why: String) {
        if self.untried.rejected().is_some()
            && let [like] = rows.0
        {
            self.rejected.insert(pair(*like), why);
        }
    }
}

impl SettledEntry {
    /// Makes dead letters of those of its likes that were rejected.
    fn bury(&mut self, rejected: &HashMap<Pair, String>) {
        let dead =
            codec::locate(&self.payload).into_iter().filter_map(|LocatedLike { index, like, bytes }| {
                let why = rejected.get(&pair(like))?.clone();
                Some(DeadLike { index, why, bytes: self.payload.get(bytes).unwrap_or_default() })
            });
        self.dead_letters.extend(DeadLetter::of_likes(Reason::Rejected, dead.collect()));
    }
}

fn pair(like: Like) -> Pair {
    (like.post_id(), like.user_id())
}

/// Rows of one statement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows<'a>(&'a [Like]);

/// Rows, column by column.
pub(crate) struct Columns {
    pub(crate) user_id: Vec<i64>,
    pub(crate) post_id: Vec<i64>,
    pub(crate) created_at: Vec<SystemTime>,
}

impl Rows<'_> {
    /// How many.
    pub(crate) fn len(self) -> usize {
        self.0.len()
    }

    /// As arrays.
    pub(crate) fn columns(self) -> Columns {
        let created_at =
            |like: &Like| UNIX_EPOCH + Duration::from_micros(like.created_at_us().unsigned_abs());
        Columns {
            user_id: self.0.iter().map(Like::user_id).collect(),
            post_id: self.0.iter().map(Like::post_id).collect(),
            created_at: self.0.iter().map(created_at).collect(),
        }
    }
}

#[cfg(test)]
mod tests;
