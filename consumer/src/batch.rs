//! A batch: the rows of one transaction, and the entries that it settles.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use shared::like::Like;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

use crate::{
    dead_letter::DeadLetter,
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

/// Rows ready to be written: one a (user, post), in the order of the table's key.
#[derive(Debug)]
pub(crate) struct Batch {
    rows: Vec<Like>,
    entries: Vec<SettledEntry>,
    likes: usize,
    first_read_at: Instant,
}

/// What is to be done with an entry once the rows of its batch are committed.
#[derive(Debug)]
pub(crate) struct SettledEntry {
    pub(crate) at: Position,
    pub(crate) likes: usize,
    pub(crate) dead_letters: Vec<DeadLetter>,
}

impl Batch {
    /// Takes entries until the limits say enough. Nothing when no entry will ever come.
    pub(crate) async fn collect(
        entries: &mut mpsc::Receiver<Entry>,
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
        for Entry { at, likes, dead_letters, .. } in entries {
            rows.extend_from_slice(&likes);
            settled.push(SettledEntry { at, likes: likes.len(), dead_letters });
        }
        // In the order of the key every consumer takes its locks in the same order, so they can't deadlock, and
        // index pages are touched one after the other. Of equal pairs the earliest like is kept.
        rows.sort_unstable_by_key(|like| (like.post_id(), like.user_id(), like.created_at_us()));
        rows.dedup_by_key(|like| (like.post_id(), like.user_id()));
        Self { rows, entries: settled, likes, first_read_at }
    }

    /// How many rows will be offered to the table.
    pub(crate) fn rows(&self) -> usize {
        self.rows.len()
    }

    /// How many likes its entries held, duplicates included.
    pub(crate) fn likes(&self) -> usize {
        self.likes
    }

    /// When its first entry was read.
    pub(crate) fn first_read_at(&self) -> Instant {
        self.first_read_at
    }

    /// What it settles.
    pub(crate) fn into_entries(self) -> Vec<SettledEntry> {
        self.entries
    }

    /// The rows as `COPY … (FORMAT binary)` wants them: a header, then for each row the number of columns and each
    /// column's length and bytes, then a trailer. Columns: user id, post id, time.
    ///
    /// Source: Postgres manual, COPY, "Binary Format".
    pub(crate) fn copy_data(&self) -> Bytes {
        const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
        const ROW_BYTES: usize = 2 + 3 * (4 + 8);
        /// Postgres counts microseconds from 2000-01-01.
        const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

        let mut data = BytesMut::with_capacity(SIGNATURE.len() + 8 + self.rows.len() * ROW_BYTES + 2);
        data.put_slice(SIGNATURE);
        data.put_i32(0); // flags
        data.put_i32(0); // length of the header's extension
        for like in &self.rows {
            data.put_i16(3);
            for column in [like.user_id(), like.post_id(), like.created_at_us() - POSTGRES_EPOCH_US] {
                data.put_i32(8);
                data.put_i64(column);
            }
        }
        data.put_i16(-1);
        data.freeze()
    }
}

#[cfg(test)]
mod tests;
