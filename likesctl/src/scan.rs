//! Scans over pending entries, dead letters and streams: page by page, in bounded memory.
//!
//! Purpose: find the entries that match a `Filter`, in the order of partitions and ids. `cursor` keeps the position,
//! `pending`, `dead_letters` and `entries` read pages. May depend on `context`, `selection` and `output::printable`. Must
//! not know the actions on the entries.

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

/// Maximum number of entries per page.
pub(crate) const PAGE: usize = 500;

/// Last id of each partition that a scan may return, so that it finds no entries that are newer than the preview.
pub(crate) type ScanBound = BTreeMap<u16, EntryId>;

/// An entry that a scan returns.
pub(crate) trait Item {
    fn partition(&self) -> Partition;
    fn id(&self) -> EntryId;
    /// Describes the entry in one line.
    fn line(&self) -> String;

    fn entry(&self) -> EntryRef {
        EntryRef { partition: self.partition().number(), id: self.id() }
    }
}

/// A scan over all entries of a selection, page by page.
pub(crate) trait Scan {
    type Item: Item;

    /// Returns the next page, whose entries are of one partition and in the order of their ids. `None` ends the scan.
    fn next_page(&mut self) -> LocalBoxFuture<'_, Result<Option<Vec<Self::Item>>, Error>>;
}

/// Returns the valid likes of a payload.
pub(crate) fn likes(fields: &[(Bytes, Bytes)]) -> Vec<Like> {
    let payload = codec::payload(fields);
    payload.and_then(|payload| codec::decode(&payload).ok()).map(|decoded| decoded.likes).unwrap_or_default()
}
