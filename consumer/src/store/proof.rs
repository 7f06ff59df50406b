//! Proof of commit. Entries cannot be acknowledged without it.

use std::{
    collections::{HashMap, HashSet},
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

/// Proof that every row of its entries is in the table, was rejected by it, or was discarded by one of its triggers. Only
/// `store` can create it, after the commit. The entries of a batch can be acknowledged only with this proof.
#[derive(Debug)]
pub struct Committed {
    entries: Vec<SettledEntry>,
    tally: Tally,
    fell_back: bool,
}

/// Number of likes by what became of them. Rows of entries that are not settled yet are included once they are committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Rows that were not in the table before.
    pub inserted: u64,
    /// Likes that were in the batch already.
    pub deduplicated: u64,
    /// Rows that were in the table already.
    pub known: u64,
    /// Rows that triggers of the table discarded.
    pub discarded: u64,
    /// Rows that the table rejected.
    pub rejected: u64,
}

impl Committed {
    pub(super) fn new(entries: Vec<SettledEntry>, tally: Tally, fell_back: bool) -> Self {
        Self { entries, tally, fell_back }
    }

    /// Returns whether no entry is settled.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns whether the table took a row: it was inserted, was there already, or was discarded by a trigger.
    pub(crate) fn took_rows(&self) -> bool {
        let Tally { inserted, known, discarded, .. } = self.tally;
        inserted + known + discarded > 0
    }

    pub fn tally(&self) -> Tally {
        self.tally
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
    /// Returns whether one of its likes has one of these keys.
    pub(super) fn has_any(&self, keys: &HashSet<RowKey>) -> bool {
        self.keys().any(|key| keys.contains(&key))
    }

    /// Returns the keys of its likes.
    pub(super) fn keys(&self) -> impl Iterator<Item = RowKey> + '_ {
        codec::locate(&self.payload).map(|located| row_key(located.like))
    }

    /// Adds dead letters for the likes of this entry that were rejected.
    pub(super) fn dead_letter_rejected(&mut self, rejected: &HashMap<RowKey, String>) {
        let dead = codec::locate(&self.payload).filter_map(|LocatedLike { index, like, bytes }| {
            let why = rejected.get(&row_key(like))?;
            Some(DeadLike { index, why, bytes: self.payload.get(bytes).unwrap_or_default() })
        });
        self.dead_letters.extend(DeadLetter::of_likes(Reason::Rejected, dead));
    }
}
