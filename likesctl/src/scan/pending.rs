//! Scan over pending entries.

use bytes::Bytes;
use consumer::{entry::EntryId, stream::PendingEntry};
use fred::prelude::Error;
use futures_util::future::{LocalBoxFuture, try_join_all};
use shared::wire::partition::Partition;

use super::{Item, PAGE, Scan, ScanBound, cursor::ScanCursor};
use crate::{context::Context, output::printable, selection::Filter};

#[derive(Clone, Debug)]
pub(crate) struct Pending {
    pub(crate) partition: Partition,
    pub(crate) entry: PendingEntry,
    /// Fields of the entry, if the scan reads them and the entry is still in the stream.
    pub(crate) fields: Option<Vec<(Bytes, Bytes)>>,
}

impl Item for Pending {
    fn partition(&self) -> Partition {
        self.partition
    }

    fn id(&self) -> EntryId {
        self.entry.id
    }

    fn line(&self) -> String {
        let PendingEntry { consumer, deliveries, .. } = &self.entry;
        let times = if *deliveries == 1 { "once".to_owned() } else { format!("{deliveries} times") };
        format!("{}  pending with {}, delivered {times}", self.entry(), printable(consumer))
    }
}

pub(crate) struct PendingScan<'a> {
    cursor: ScanCursor<'a>,
    reads_fields: bool,
}

impl<'a> PendingScan<'a> {
    /// Creates a scan. `reads_fields` is true for actions that need the payloads.
    pub(crate) fn new(
        context: &'a Context,
        filter: &'a Filter,
        bound: Option<ScanBound>,
        reads_fields: bool,
    ) -> Self {
        let reads_fields = reads_fields || filter.is_by_likes();
        Self { cursor: ScanCursor::new(context, filter, bound), reads_fields }
    }

    async fn read(
        &mut self,
        partition: Partition,
        range: (EntryId, EntryId),
    ) -> Result<Vec<PendingEntry>, Error> {
        let streams = &self.cursor.context.streams;
        let consumer = self.cursor.filter.consumer.as_deref();
        let min_idle_ms = self.cursor.filter.min_idle_ms;
        if let Some(ids) = self.cursor.ids(partition, range) {
            let reads = ids.iter().map(|id| streams.pending(partition, (*id, *id), consumer, min_idle_ms, 1));
            let found = try_join_all(reads).await?.into_iter().flatten().collect();
            self.cursor.advance(ids.last().copied(), ids.len() == PAGE);
            return Ok(found);
        }
        let found = streams.pending(partition, range, consumer, min_idle_ms, PAGE).await?;
        self.cursor.advance(found.last().map(|entry| entry.id), found.len() == PAGE);
        Ok(found)
    }

    async fn with_fields(
        &self,
        partition: Partition,
        found: Vec<PendingEntry>,
    ) -> Result<Vec<Pending>, Error> {
        let streams = &self.cursor.context.streams;
        let reads = found.into_iter().map(async |entry| {
            let fields = if self.reads_fields {
                streams.entry(partition, entry.id).await?.and_then(|raw| raw.fields)
            } else {
                None
            };
            Ok::<_, Error>(Pending { partition, entry, fields })
        });
        try_join_all(reads).await
    }
}

impl Scan for PendingScan<'_> {
    type Item = Pending;

    fn next_page(&mut self) -> LocalBoxFuture<'_, Result<Option<Vec<Pending>>, Error>> {
        Box::pin(async move {
            while let Some((partition, range)) = self.cursor.range() {
                let mut found = self.read(partition, range).await?;
                found.retain(|entry| entry.deliveries >= self.cursor.filter.min_deliveries);
                let mut page = self.with_fields(partition, found).await?;
                if self.cursor.filter.is_by_likes() {
                    page.retain(|pending| {
                        pending.fields.as_ref().is_some_and(|fields| self.cursor.matches_likes(fields))
                    });
                }
                self.cursor.apply_limit(&mut page);
                if !page.is_empty() {
                    return Ok(Some(page));
                }
            }
            Ok(None)
        })
    }
}
