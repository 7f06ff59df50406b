//! Scan over all stream entries, acknowledged or not.

use consumer::entry::{EntryId, RawEntry};
use fred::prelude::Error;
use futures_util::future::LocalBoxFuture;
use shared::wire::partition::Partition;

use super::{Item, PAGE, Scan, ScanBound, cursor::ScanCursor, likes};
use crate::{context::Context, selection::Filter};

pub(crate) struct StreamEntry(pub(crate) RawEntry);

impl Item for StreamEntry {
    fn partition(&self) -> Partition {
        self.0.at.partition
    }

    fn id(&self) -> EntryId {
        self.0.at.id
    }

    fn line(&self) -> String {
        let likes = self.0.fields.as_deref().map_or(0, |fields| likes(fields).len());
        format!("{}  {likes} likes", self.entry())
    }
}

pub(crate) struct StreamScan<'a> {
    cursor: ScanCursor<'a>,
}

impl<'a> StreamScan<'a> {
    pub(crate) fn new(context: &'a Context, filter: &'a Filter, bound: Option<ScanBound>) -> Self {
        Self { cursor: ScanCursor::new(context, filter, bound) }
    }
}

impl Scan for StreamScan<'_> {
    type Item = StreamEntry;

    fn next_page(&mut self) -> LocalBoxFuture<'_, Result<Option<Vec<StreamEntry>>, Error>> {
        Box::pin(async move {
            while let Some((partition, range)) = self.cursor.range() {
                let found = self.cursor.context.streams.entries(partition, range, PAGE).await?;
                self.cursor.advance(found.last().map(|raw| raw.at.id), found.len() == PAGE);
                if !found.is_empty() {
                    return Ok(Some(found.into_iter().map(StreamEntry).collect()));
                }
            }
            Ok(None)
        })
    }
}
