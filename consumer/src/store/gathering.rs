//! Gathers entries into a batch.

use std::{future, mem, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

use crate::{entry::Entry, store::batch::Batch};

/// Limits of a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchLimits {
    /// Number of rows at which a batch is full.
    pub(crate) rows: usize,
    /// Maximum time, from the read of its first entry, that a batch waits for more entries.
    pub(crate) linger: Duration,
}

/// Reason why a batch was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flush {
    /// The batch is full.
    Full,
    /// The linger time has elapsed.
    Linger,
    /// The channel is closed and empty.
    Shutdown,
}

impl Flush {
    pub(crate) const ALL: [Self; 3] = [Self::Full, Self::Linger, Self::Shutdown];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Linger => "linger",
            Self::Shutdown => "shutdown",
        }
    }
}

/// Entries gathered for the next batch.
pub(crate) struct Gathering {
    limits: BatchLimits,
    entries: Vec<Entry>,
    likes: usize,
}

impl Gathering {
    pub(crate) fn new(limits: BatchLimits) -> Self {
        Self { limits, entries: Vec::new(), likes: 0 }
    }

    /// Gathers entries until the batch is full or its linger time has elapsed. Returns `None` if the channel is closed and no
    /// entry is left. Cancel safe: entries are kept for the next call.
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

    /// Gathers entries until the batch is full, without a time limit, while the previous batch is being written. Cancel safe:
    /// entries are kept for the next call.
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
