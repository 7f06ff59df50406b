//! A batch: the rows of one transaction, and the entries that it settles.

use std::{
    collections::HashMap,
    future, mem,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use shared::{
    telemetry::spans::Links,
    wire::{
        codec::{self, LocatedLike},
        like::Like,
        partition::Partition,
    },
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
    /// All there are.
    pub(crate) const ALL: [Self; 3] = [Self::Full, Self::Linger, Self::Shutdown];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Linger => "linger",
            Self::Shutdown => "shutdown",
        }
    }
}

/// Entries that are to become a batch.
pub(crate) struct Gathering {
    limits: Limits,
    entries: Vec<Entry>,
    likes: usize,
}

impl Gathering {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, entries: Vec::new(), likes: 0 }
    }

    /// Takes entries until the limits say enough. Nothing when no entry will ever come. Dropped half way, it keeps what it
    /// has for the next call.
    pub(crate) async fn batch(
        &mut self,
        entries: &mut mpsc::UnboundedReceiver<Entry>,
    ) -> Option<(Batch, Flush)> {
        if self.entries.is_empty() {
            self.add(entries.recv().await?);
        }
        let first_read_at = self.entries.first().map_or_else(Instant::now, |first| first.read_at);
        let wait_until = first_read_at + self.limits.linger;
        let flush = loop {
            if self.is_full() {
                break Flush::Full;
            }
            match timeout_at(wait_until, entries.recv()).await {
                Ok(Some(entry)) => self.add(entry),
                Ok(None) => break Flush::Shutdown,
                Err(_) => break Flush::Linger,
            }
        };
        Some((self.close(), flush))
    }

    /// Takes entries until there are enough, however long that takes: for as long as no batch is wanted. Dropped half way,
    /// it keeps what it has for the next call.
    pub(crate) async fn full_batch(&mut self, entries: &mut mpsc::UnboundedReceiver<Entry>) -> Batch {
        while !self.is_full() {
            match entries.recv().await {
                Some(entry) => self.add(entry),
                None => future::pending().await,
            }
        }
        self.close()
    }

    fn add(&mut self, entry: Entry) {
        self.likes += entry.likes.len();
        self.entries.push(entry);
    }

    fn is_full(&self) -> bool {
        self.likes >= self.limits.rows
    }

    fn close(&mut self) -> Batch {
        Batch::new(mem::take(&mut self.entries), mem::take(&mut self.likes))
    }
}

/// Rows ready to be written, one a (user, post), in the order of the table's key; and what became of them so far.
#[derive(Debug)]
pub(crate) struct Batch {
    rows: Vec<Like>,
    entries: Vec<SettledEntry>,
    likes: usize,
    first_read_at: Instant,
    /// To the spans that sent the entries.
    links: Links,
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
    /// Of entries that are to be written once more.
    pub(crate) fn of(entries: Vec<Entry>) -> Self {
        let likes = entries.iter().map(|entry| entry.likes.len()).sum();
        Self::new(entries, likes)
    }

    fn new(entries: Vec<Entry>, likes: usize) -> Self {
        let first_read_at = entries.first().map_or_else(Instant::now, |entry| entry.read_at);
        let mut rows = Vec::with_capacity(likes);
        let mut settled = Vec::with_capacity(entries.len());
        let mut links = Links::default();
        for Entry { at, likes, dead_letters, alone, payload, producer, .. } in entries {
            if let Some(producer) = producer {
                links.add(*producer);
            }
            rows.extend_from_slice(&likes);
            settled.push(SettledEntry { at, likes: likes.len(), dead_letters, alone, payload });
        }
        // In the order of the key every consumer takes its locks in the same order, and index pages are touched one after
        // the other. Of equal pairs the earliest like is kept.
        rows.sort_unstable_by_key(|like| (pair(*like), like.created_at_us()));
        rows.dedup_by_key(|like| pair(*like));
        let progress =
            Progress { untried: Bisection::new(rows.len()), inserted: 0, rejected: HashMap::new() };
        Self { rows, entries: settled, likes, first_read_at, links, progress }
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

    /// How many entries it settles.
    pub(crate) fn entries(&self) -> usize {
        self.entries.len()
    }

    /// For how long the oldest entry of each partition has been in Redis, if that has the time that it is here.
    pub(crate) fn waited(&self, now: SystemTime) -> Vec<Duration> {
        let now_ms = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let now_ms = u64::try_from(now_ms).unwrap_or(u64::MAX);
        let mut oldest_ms: HashMap<Partition, u64> = HashMap::new();
        for SettledEntry { at, .. } in &self.entries {
            oldest_ms.entry(at.partition).and_modify(|ms| *ms = at.id.ms.min(*ms)).or_insert(at.id.ms);
        }
        oldest_ms.into_values().map(|ms| Duration::from_millis(now_ms.saturating_sub(ms))).collect()
    }

    /// What its span is to be linked to.
    pub(crate) fn take_links(&mut self) -> Links {
        mem::take(&mut self.links)
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

    /// How many rows the table does not take.
    pub(crate) fn rejected(&self) -> usize {
        self.progress.rejected.len()
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

impl<'a> Rows<'a> {
    pub(crate) fn likes(self) -> &'a [Like] {
        self.0
    }

    /// How many.
    pub(crate) fn len(self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests;
