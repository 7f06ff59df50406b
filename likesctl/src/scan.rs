//! Scans over pending entries, dead letters and streams: page by page, in bounded memory.
//!
//! Purpose: find the entries that match a `Filter`, in the order of partitions and ids. `cursor` keeps the position,
//! `pending`, `dead_letters` and `entries` read pages. May depend on `context`, `selection` and `output::printable`. Must
//! not know what is done to the entries.

mod cursor;
mod dead_letters;
mod entries;
mod pending;

use std::collections::BTreeMap;

use bytes::Bytes;
use consumer::entry::EntryId;
use fred::prelude::Error;
use futures_util::future::LocalBoxFuture;
use shared::wire::{codec, like::Like, partition::Partition};

pub(crate) use self::{
    dead_letters::{DeadLetterEntry, DeadScan},
    entries::{StreamEntry, StreamScan},
    pending::{Pending, PendingScan},
};
use crate::selection::EntryRef;

/// Number of entries per page.
pub(crate) const PAGE: usize = 500;

/// The last id of each partition that a scan may return: an earlier scan has seen no more.
pub(crate) type ScanBound = BTreeMap<u16, EntryId>;

/// An entry that a scan returns.
pub(crate) trait Item {
    fn partition(&self) -> Partition;
    fn id(&self) -> EntryId;
    /// Describes it in one line.
    fn line(&self) -> String;

    fn entry(&self) -> EntryRef {
        EntryRef { partition: self.partition().number(), id: self.id() }
    }
}

/// A scan that starts at the beginning of its selection.
pub(crate) trait Scan {
    type Item: Item;

    /// Returns the next entries, all of one partition and in order of their ids, or nothing at the end.
    fn next_page(&mut self) -> LocalBoxFuture<'_, Result<Option<Vec<Self::Item>>, Error>>;
}

/// Returns the valid likes of a payload.
pub(crate) fn likes(fields: &[(Bytes, Bytes)]) -> Vec<Like> {
    let payload = codec::payload(fields);
    payload.and_then(|payload| codec::decode(&payload).ok()).map(|decoded| decoded.likes).unwrap_or_default()
}
