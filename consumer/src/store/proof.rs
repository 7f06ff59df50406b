//! Proof of commit. Entries cannot be acknowledged without it.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use shared::wire::{
    codec::{self, LocatedLike},
    dead_letter::{DeadLetter, DeadLike, Reason},
    like::Like,
    partition::Partition,
};

use crate::entry::Position;

/// Proof that every row of a batch is in the table or was rejected by it. Only `store` can create it, after the commit. The
/// entries of a batch can be acknowledged only with this proof.
#[derive(Debug)]
pub struct Committed {
    entries: Vec<SettledEntry>,
    inserted: u64,
    rejected: usize,
    fell_back: bool,
}

impl Committed {
    pub(super) fn new(entries: Vec<SettledEntry>, inserted: u64, rejected: usize, fell_back: bool) -> Self {
        Self { entries, inserted, rejected, fell_back }
    }

    /// Returns the number of rows that were not in the table before.
    pub fn inserted(&self) -> u64 {
        self.inserted
    }

    /// Returns the number of rejected rows.
    pub fn rejected(&self) -> usize {
        self.rejected
    }

    /// Returns whether a direct copy failed and the batch was staged.
    pub fn fell_back(&self) -> bool {
        self.fell_back
    }

    /// Returns the end-to-end latency of the oldest entry of each partition. Assumes that the clocks of Redis and this host
    /// agree.
    pub fn end_to_end_latencies(&self) -> Vec<Duration> {
        end_to_end_latencies(&self.entries, SystemTime::now())
    }

    /// Returns the entries, which may be acknowledged now.
    pub fn into_entries(self) -> Vec<SettledEntry> {
        self.entries
    }
}

pub(super) fn end_to_end_latencies(entries: &[SettledEntry], now: SystemTime) -> Vec<Duration> {
    let now_ms = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let now_ms = u64::try_from(now_ms).unwrap_or(u64::MAX);
    let mut oldest_ms: HashMap<Partition, u64> = HashMap::new();
    for SettledEntry { at, .. } in entries {
        oldest_ms.entry(at.partition).and_modify(|ms| *ms = at.id.ms.min(*ms)).or_insert(at.id.ms);
    }
    oldest_ms.into_values().map(|ms| Duration::from_millis(now_ms.saturating_sub(ms))).collect()
}

/// Entry whose rows are all stored or rejected.
#[derive(Debug)]
pub struct SettledEntry {
    pub at: Position,
    pub likes: usize,
    pub dead_letters: Vec<DeadLetter>,
    /// Encoded likes. A rejected like becomes a dead letter with its original bytes.
    pub(super) payload: Bytes,
}

/// Primary key of a row, in column order: post, then user.
pub(super) type RowKey = (i64, i64);

pub(super) fn row_key(like: Like) -> RowKey {
    (like.post_id(), like.user_id())
}

impl SettledEntry {
    /// Adds dead letters for the likes of this entry that were rejected.
    pub(super) fn dead_letter_rejected(&mut self, rejected: &HashMap<RowKey, String>) {
        let dead = codec::locate(&self.payload).filter_map(|LocatedLike { index, like, bytes }| {
            let why = rejected.get(&row_key(like))?;
            Some(DeadLike { index, why, bytes: self.payload.get(bytes).unwrap_or_default() })
        });
        self.dead_letters.extend(DeadLetter::of_likes(Reason::Rejected, dead));
    }
}
