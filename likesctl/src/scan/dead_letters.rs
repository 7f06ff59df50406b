//! Scan over dead letters.

use bytes::Bytes;
use consumer::{
    entry::{EntryId, RawEntry},
    stream::text_field,
};
use fred::prelude::Error;
use futures_util::future::{LocalBoxFuture, try_join_all};
use shared::wire::partition::Partition;

use super::{Item, PAGE, Scan, ScanBound, cursor::ScanCursor};
use crate::{context::Context, output::printable, selection::Filter};

/// Maximum number of dead letters per page. Small, because dead letters may be large.
const DEAD_PAGE: usize = 50;

/// Maximum length of the detail in a one-line description.
const DETAIL_CHARS: usize = 80;

#[derive(Clone, Debug)]
pub(crate) struct DeadLetterEntry {
    pub(crate) partition: Partition,
    pub(crate) id: EntryId,
    pub(crate) fields: Vec<(Bytes, Bytes)>,
}

impl DeadLetterEntry {
    pub(crate) fn text(&self, name: &str) -> String {
        text_field(&self.fields, name).unwrap_or_default()
    }

    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        self.text(name).parse().ok()
    }
}

impl Item for DeadLetterEntry {
    fn partition(&self) -> Partition {
        self.partition
    }

    fn id(&self) -> EntryId {
        self.id
    }

    fn line(&self) -> String {
        let detail: String = self.text("detail").chars().take(DETAIL_CHARS).collect();
        format!("{}  {}: {}", self.entry(), printable(&self.text("reason")), printable(&detail))
    }
}

pub(crate) struct DeadScan<'a> {
    cursor: ScanCursor<'a>,
}

impl<'a> DeadScan<'a> {
    pub(crate) fn new(context: &'a Context, filter: &'a Filter, bound: Option<ScanBound>) -> Self {
        Self { cursor: ScanCursor::new(context, filter, bound) }
    }

    async fn read(
        &mut self,
        partition: Partition,
        range: (EntryId, EntryId),
    ) -> Result<Vec<DeadLetterEntry>, Error> {
        let streams = &self.cursor.context.streams;
        let found = if let Some(ids) = self.cursor.ids(partition, range) {
            let reads = ids.iter().map(|id| streams.dead_letters(partition, (*id, *id), 1));
            let found = try_join_all(reads).await?.into_iter().flatten().collect();
            self.cursor.advance(ids.last().copied(), ids.len() == PAGE);
            found
        } else {
            let found = streams.dead_letters(partition, range, DEAD_PAGE).await?;
            self.cursor.advance(found.last().map(|raw| raw.at.id), found.len() == DEAD_PAGE);
            found
        };
        let dead_letter =
            |raw: RawEntry| Some(DeadLetterEntry { partition, id: raw.at.id, fields: raw.fields? });
        Ok(found.into_iter().filter_map(dead_letter).collect())
    }

    fn matches(&self, dead_letter: &DeadLetterEntry) -> bool {
        let Filter { reason, consumer, min_deliveries, .. } = self.cursor.filter;
        reason.is_none_or(|reason| dead_letter.text("reason") == reason.code())
            && consumer.as_ref().is_none_or(|consumer| dead_letter.text("consumer") == *consumer)
            && dead_letter.number("deliveries").unwrap_or(0) >= *min_deliveries
            && self.cursor.matches_likes(&dead_letter.fields)
    }
}

impl Scan for DeadScan<'_> {
    type Item = DeadLetterEntry;

    fn next_page(&mut self) -> LocalBoxFuture<'_, Result<Option<Vec<DeadLetterEntry>>, Error>> {
        Box::pin(async move {
            while let Some((partition, range)) = self.cursor.range() {
                let mut page = self.read(partition, range).await?;
                page.retain(|dead_letter| self.matches(dead_letter));
                self.cursor.apply_limit(&mut page);
                if !page.is_empty() {
                    return Ok(Some(page));
                }
            }
            Ok(None)
        })
    }
}
