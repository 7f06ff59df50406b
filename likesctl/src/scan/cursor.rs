//! The position of a scan.

use std::collections::VecDeque;

use bytes::Bytes;
use consumer::entry::EntryId;
use shared::wire::{like::Like, partition::Partition};

use super::{PAGE, ScanBound, likes};
use crate::{context::Context, selection::Filter};

pub(super) struct ScanCursor<'a> {
    pub(super) context: &'a Context,
    pub(super) filter: &'a Filter,
    bound: Option<ScanBound>,
    partitions: VecDeque<Partition>,
    next: EntryId,
    /// Number of entries until the limit is reached.
    remaining: u64,
}

impl<'a> ScanCursor<'a> {
    pub(super) fn new(context: &'a Context, filter: &'a Filter, bound: Option<ScanBound>) -> Self {
        let partitions = filter.partitions.iter().copied().collect();
        Self { context, filter, bound, partitions, next: filter.range.0, remaining: filter.limit }
    }

    /// Returns the next partition to read, with the first and the last id. `None` ends the scan.
    pub(super) fn range(&mut self) -> Option<(Partition, (EntryId, EntryId))> {
        while self.remaining > 0 {
            let partition = *self.partitions.front()?;
            let last = match &self.bound {
                None => Some(self.filter.range.1),
                Some(bound) => bound.get(&partition.number()).map(|seen| self.filter.range.1.min(*seen)),
            };
            match last {
                Some(last) if self.next <= last => return Some((partition, (self.next, last))),
                _ => self.finish_partition(),
            }
        }
        None
    }

    /// Moves the position behind a page that ends with `last`. A page that is not full is the last of its partition.
    pub(super) fn advance(&mut self, last: Option<EntryId>, is_full: bool) {
        match last.and_then(EntryId::after) {
            Some(next) if is_full => self.next = next,
            _ => self.finish_partition(),
        }
    }

    fn finish_partition(&mut self) {
        self.partitions.pop_front();
        self.next = self.filter.range.0;
    }

    /// Returns the next page of selected ids in a range, or `None` if the filter does not select ids.
    pub(super) fn ids(
        &self,
        partition: Partition,
        (first, last): (EntryId, EntryId),
    ) -> Option<Vec<EntryId>> {
        let ids = self.filter.ids.as_ref()?.get(&partition.number());
        Some(ids.map(|ids| ids.range(first..=last).take(PAGE).copied().collect()).unwrap_or_default())
    }

    pub(super) fn matches_likes(&self, fields: &[(Bytes, Bytes)]) -> bool {
        let Filter { user_id, post_id, .. } = self.filter;
        let matches = |like: &Like| {
            user_id.is_none_or(|user| like.user_id() == user)
                && post_id.is_none_or(|post| like.post_id() == post)
        };
        !self.filter.is_by_likes() || likes(fields).iter().any(matches)
    }

    /// Truncates a page to the limit.
    pub(super) fn apply_limit<T>(&mut self, page: &mut Vec<T>) {
        page.truncate(usize::try_from(self.remaining).unwrap_or(usize::MAX));
        self.remaining -= page.len() as u64;
    }
}
