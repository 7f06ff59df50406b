//! Pending entries and dead letters, page by page: any number of them, in bounded memory.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use consumer::{
    entry::{self, EntryId},
    stream::{PendingEntry, text_field},
};
use fred::prelude::Error;
use futures_util::future::try_join_all;
use shared::wire::{codec, like::Like, partition::Partition};

use crate::{
    context::Context,
    output::printable,
    selection::{EntryRef, Filter},
};

/// So many entries are read at once.
pub(crate) const PAGE: usize = 500;

/// So many dead letters: they may be large.
const DEAD_PAGE: usize = 50;

/// So much of a dead letter's detail is in one line.
const DETAIL_CHARS: usize = 80;

/// Where a scan must end, as far as each partition was seen: what comes later was not.
pub(crate) type ScanBound = BTreeMap<u16, EntryId>;

/// Something that a scan brings.
pub(crate) trait Item {
    fn partition(&self) -> Partition;
    fn id(&self) -> EntryId;
    /// One line for people.
    fn line(&self) -> String;

    fn entry(&self) -> EntryRef {
        EntryRef { partition: self.partition().number(), id: self.id() }
    }
}

/// A scan from its beginning.
pub(crate) trait Scan {
    type Item: Item;

    /// Some more, of one partition and in order of their ids; nothing after the last.
    async fn next_page(&mut self) -> Result<Option<Vec<Self::Item>>, Error>;
}

/// An entry that is pending.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    pub(crate) partition: Partition,
    pub(crate) entry: PendingEntry,
    /// Its fields, where somebody has asked for them; nothing where the entry is no longer in the stream.
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

/// A dead letter.
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

/// The good likes of a payload.
pub(crate) fn likes(fields: &[(Bytes, Bytes)]) -> Vec<Like> {
    let payload = codec::payload(fields);
    payload.and_then(|payload| codec::decode(&payload).ok()).map(|decoded| decoded.likes).unwrap_or_default()
}

/// Where a scan is.
pub(crate) struct ScanCursor<'a> {
    context: &'a Context,
    filter: &'a Filter,
    bound: Option<ScanBound>,
    todo: VecDeque<Partition>,
    next: EntryId,
    left: u64,
}

impl<'a> ScanCursor<'a> {
    pub(crate) fn new(context: &'a Context, filter: &'a Filter, bound: Option<ScanBound>) -> Self {
        let todo = filter.partitions.iter().copied().collect();
        Self { context, filter, bound, todo, next: filter.span.0, left: filter.limit }
    }

    /// The next partition, with the first and the last id to look at. Nothing when all are done.
    pub(crate) fn stretch(&mut self) -> Option<(Partition, (EntryId, EntryId))> {
        while self.left > 0 {
            let partition = *self.todo.front()?;
            let mut last = self.filter.span.1;
            if let Some(bound) = &self.bound {
                let Some(seen) = bound.get(&partition.number()) else {
                    self.leave();
                    continue;
                };
                last = last.min(*seen);
            }
            if self.next <= last {
                return Some((partition, (self.next, last)));
            }
            self.leave();
        }
        None
    }

    fn leave(&mut self) {
        self.todo.pop_front();
        self.next = self.filter.span.0;
    }

    pub(crate) fn context(&self) -> &'a Context {
        self.context
    }

    /// A page was read, up to this id; one that is not full is the last of its partition.
    pub(crate) fn go_on(&mut self, last: Option<EntryId>, is_full: bool) {
        match last.and_then(EntryId::after) {
            Some(next) if is_full => self.next = next,
            _ => self.leave(),
        }
    }

    fn ids_of(&self, partition: Partition, (first, last): (EntryId, EntryId)) -> Option<Vec<EntryId>> {
        let ids = self.filter.ids.as_ref()?.get(&partition.number());
        Some(ids.map(|ids| ids.range(first..=last).take(PAGE).copied().collect()).unwrap_or_default())
    }

    fn fits_likes(&self, fields: &[(Bytes, Bytes)]) -> bool {
        let Filter { user_id, post_id, .. } = self.filter;
        let fits = |like: &Like| {
            user_id.is_none_or(|user| like.user_id() == user)
                && post_id.is_none_or(|post| like.post_id() == post)
        };
        !self.filter.is_by_likes() || likes(fields).iter().any(fits)
    }

    /// No more than are wanted.
    fn cut<T>(&mut self, page: &mut Vec<T>) {
        page.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= page.len() as u64;
    }
}

/// Pending entries.
pub(crate) struct PendingScan<'a> {
    cursor: ScanCursor<'a>,
    with_fields: bool,
}

impl<'a> PendingScan<'a> {
    pub(crate) fn new(
        context: &'a Context,
        filter: &'a Filter,
        bound: Option<ScanBound>,
        with_fields: bool,
    ) -> Self {
        Self {
            cursor: ScanCursor::new(context, filter, bound),
            with_fields: with_fields || filter.is_by_likes(),
        }
    }

    async fn page(
        &mut self,
        partition: Partition,
        stretch: (EntryId, EntryId),
    ) -> Result<Vec<PendingEntry>, Error> {
        let (streams, filter) = (&self.cursor.context.streams, self.cursor.filter);
        let consumer = filter.consumer.as_deref();
        if let Some(ids) = self.cursor.ids_of(partition, stretch) {
            let looks =
                ids.iter().map(|id| streams.pending(partition, (*id, *id), consumer, filter.min_idle_ms, 1));
            let found = try_join_all(looks).await?.into_iter().flatten().collect();
            self.cursor.go_on(ids.last().copied(), ids.len() == PAGE);
            return Ok(found);
        }
        let found = streams.pending(partition, stretch, consumer, filter.min_idle_ms, PAGE).await?;
        self.cursor.go_on(found.last().map(|entry| entry.id), found.len() == PAGE);
        Ok(found)
    }

    async fn with_fields(
        &self,
        partition: Partition,
        found: Vec<PendingEntry>,
    ) -> Result<Vec<Pending>, Error> {
        let streams = &self.cursor.context.streams;
        let read = found.into_iter().map(async |entry| {
            let fields = if self.with_fields {
                streams.entry(partition, entry.id).await?.and_then(|raw| raw.fields)
            } else {
                None
            };
            Ok::<_, Error>(Pending { partition, entry, fields })
        });
        try_join_all(read).await
    }
}

impl Scan for PendingScan<'_> {
    type Item = Pending;

    async fn next_page(&mut self) -> Result<Option<Vec<Pending>>, Error> {
        while let Some((partition, stretch)) = self.cursor.stretch() {
            let mut found = self.page(partition, stretch).await?;
            found.retain(|entry| entry.deliveries >= self.cursor.filter.min_deliveries);
            let mut page = self.with_fields(partition, found).await?;
            if self.cursor.filter.is_by_likes() {
                page.retain(|pending| {
                    pending.fields.as_ref().is_some_and(|fields| self.cursor.fits_likes(fields))
                });
            }
            self.cursor.cut(&mut page);
            if !page.is_empty() {
                return Ok(Some(page));
            }
        }
        Ok(None)
    }
}

/// Dead letters.
pub(crate) struct DeadScan<'a> {
    cursor: ScanCursor<'a>,
}

impl<'a> DeadScan<'a> {
    pub(crate) fn new(context: &'a Context, filter: &'a Filter, bound: Option<ScanBound>) -> Self {
        Self { cursor: ScanCursor::new(context, filter, bound) }
    }

    async fn page(
        &mut self,
        partition: Partition,
        stretch: (EntryId, EntryId),
    ) -> Result<Vec<DeadLetterEntry>, Error> {
        let streams = &self.cursor.context.streams;
        let found = if let Some(ids) = self.cursor.ids_of(partition, stretch) {
            let looks = ids.iter().map(|id| streams.dead_letters(partition, (*id, *id), 1));
            let found = try_join_all(looks).await?.into_iter().flatten().collect();
            self.cursor.go_on(ids.last().copied(), ids.len() == PAGE);
            found
        } else {
            let found = streams.dead_letters(partition, stretch, DEAD_PAGE).await?;
            self.cursor.go_on(found.last().map(|letter| letter.at.id), found.len() == DEAD_PAGE);
            found
        };
        let letter =
            |raw: entry::RawEntry| Some(DeadLetterEntry { partition, id: raw.at.id, fields: raw.fields? });
        Ok(found.into_iter().filter_map(letter).collect())
    }

    fn fits(&self, letter: &DeadLetterEntry) -> bool {
        let Filter { reason, consumer, min_deliveries, .. } = self.cursor.filter;
        reason.is_none_or(|reason| letter.text("reason") == reason.code())
            && consumer.as_ref().is_none_or(|consumer| letter.text("consumer") == *consumer)
            && letter.number("deliveries").unwrap_or(0) >= *min_deliveries
            && self.cursor.fits_likes(&letter.fields)
    }
}

impl Scan for DeadScan<'_> {
    type Item = DeadLetterEntry;

    async fn next_page(&mut self) -> Result<Option<Vec<DeadLetterEntry>>, Error> {
        while let Some((partition, stretch)) = self.cursor.stretch() {
            let mut page = self.page(partition, stretch).await?;
            page.retain(|letter| self.fits(letter));
            self.cursor.cut(&mut page);
            if !page.is_empty() {
                return Ok(Some(page));
            }
        }
        Ok(None)
    }
}
