//! Comparison of acknowledged entries with the table, for `verify` and `doctor`.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    time::Duration,
};

use consumer::{
    entry::{EntryId, RawEntry},
    stream::Fate,
};
use serde::Serialize;
use shared::wire::{codec, like::Like, partition::Partition};
use tokio::time::sleep;
use tokio_postgres::Client;

use crate::{
    context::Context,
    dead_letter_record::LikeRecord,
    exit::CliError,
    likes_table::missing,
    output::{Column, Row},
    scan::{self, DeadScan, PAGE, Scan},
    selection::{EntryRef, Filter},
};

/// Maximum number of missing likes that are listed.
const LISTED: usize = 1_000;

/// Maximum number of draws per wanted sample, because a draw may find no entry, or one that is already drawn.
const SAMPLE_TRIES: u64 = 4;

/// Number of entries per draw, of which one is chosen.
const SAMPLE_PAGE: usize = 20;

/// Delay before missing likes are checked again. They may be in transit, for example during `dead retry`.
const RECHECK_DELAY: Duration = Duration::from_secs(2);

/// User and post.
type Pair = (i64, i64);

/// First and last id.
type IdRange = (EntryId, EntryId);

/// Result of a comparison.
#[derive(Default, Serialize)]
pub(crate) struct Verdict {
    /// Number of compared acknowledged entries.
    pub(crate) entries: u64,
    /// Number of likes in these entries.
    pub(crate) likes: u64,
    /// Number of undelivered and pending entries in the compared range.
    pub(crate) backlog: u64,
    /// Number of likes that are not in the table but in dead letters.
    pub(crate) dead: u64,
    /// Number of acknowledged entries that cannot be fully decoded.
    pub(crate) unreadable: u64,
    /// Number of likes that are neither in the table nor in dead letters nor in the backlog.
    pub(crate) missing: u64,
    /// The first thousand missing likes.
    pub(crate) missing_likes: Vec<MissingLike>,
}

#[derive(Serialize)]
pub(crate) struct MissingLike {
    pub(crate) entry: EntryRef,
    #[serde(flatten)]
    record: LikeRecord,
    #[serde(skip)]
    like: Like,
}

impl Row for MissingLike {
    const COLUMNS: &'static [Column] = &[Column::whole("ENTRY"), Column::text("MISSING LIKE")];

    fn cells(&self) -> Vec<String> {
        vec![self.entry.to_string(), format!("user {} post {}", self.like.user_id(), self.like.post_id())]
    }
}

pub(crate) struct Verifier<'a> {
    context: &'a Context,
    client: &'a Client,
    /// Likes in the dead letters of each partition.
    dead: BTreeMap<u16, HashSet<Pair>>,
    verdict: Verdict,
}

impl<'a> Verifier<'a> {
    pub(crate) fn new(context: &'a Context, client: &'a Client) -> Self {
        Self { context, client, dead: BTreeMap::new(), verdict: Verdict::default() }
    }

    /// Compares all entries of a range.
    pub(crate) async fn range(
        &mut self,
        partition: Partition,
        (mut first, last): IdRange,
    ) -> Result<(), CliError> {
        loop {
            let page = self.context.streams.range_with_fate(partition, (first, last), PAGE).await?;
            let end = page.last().map(|(entry, _)| entry.at.id);
            let is_full = page.len() == PAGE;
            self.compare(partition, page).await?;
            match end.and_then(EntryId::after) {
                Some(next) if is_full && next <= last => first = next,
                _ => return Ok(()),
            }
        }
    }

    /// Compares about `entries` entries at random times of a range.
    pub(crate) async fn sample(
        &mut self,
        partitions: &[Partition],
        (first, last): IdRange,
        entries: u64,
    ) -> Result<(), CliError> {
        let streams = &self.context.streams;
        let mut populated = Vec::new();
        for partition in partitions {
            let oldest = streams.entries(*partition, (first, last), 1).await?;
            let info = streams.inspect(*partition).await?;
            if let Some(oldest) = oldest.first() {
                let newest_ms = info.last_generated.ms.min(last.ms).max(oldest.at.id.ms);
                populated.push((*partition, oldest.at.id.ms..=newest_ms, info.length.max(1)));
            }
        }
        let total: u64 = populated.iter().map(|(.., length)| length).sum();
        let mut compared = HashSet::new();
        for (partition, times_ms, length) in populated {
            let share = u128::from(entries) * u128::from(length) / u128::from(total.max(1));
            // At least one entry per partition, and at most its length.
            let share = u64::try_from(share).unwrap_or(u64::MAX).clamp(1, length);
            let mut drawn = 0;
            for _ in 0..share.saturating_mul(SAMPLE_TRIES) {
                let from = EntryId { ms: rand::random_range(times_ms.clone()), seq: 0 }.max(first);
                let found = streams.range_with_fate(partition, (from, last), SAMPLE_PAGE).await?;
                // Not always the first entry: many entries may have the same time.
                let index = rand::random_range(0..found.len().max(1));
                if let Some(entry) = found.into_iter().nth(index)
                    && compared.insert(entry.0.at)
                {
                    drawn += 1;
                    self.compare(partition, vec![entry]).await?;
                }
                if drawn == share {
                    break;
                }
            }
        }
        Ok(())
    }

    async fn compare(&mut self, partition: Partition, page: Vec<(RawEntry, Fate)>) -> Result<(), CliError> {
        let likes = self.acknowledged_likes(page);
        let all: Vec<Like> = likes.iter().map(|(_, like)| *like).collect();
        let missing: HashSet<Like> = missing(self.client, &all).await?.into_iter().collect();
        if missing.is_empty() {
            return Ok(());
        }
        let number = partition.number();
        if !self.dead.contains_key(&number) {
            let dead = self.dead_pairs(partition).await?;
            self.dead.insert(number, dead);
        }
        let dead = self.dead.entry(number).or_default();
        for (id, like) in likes.into_iter().filter(|(_, like)| missing.contains(like)) {
            if dead.contains(&pair(&like)) {
                self.verdict.dead += 1;
                continue;
            }
            self.verdict.missing += 1;
            if self.verdict.missing_likes.len() < LISTED {
                let entry = EntryRef { partition: number, id };
                let record = LikeRecord::from(&like);
                self.verdict.missing_likes.push(MissingLike { entry, record, like });
            }
        }
        Ok(())
    }

    /// Counts the entries of a page, and returns the likes of the acknowledged ones.
    fn acknowledged_likes(&mut self, page: Vec<(RawEntry, Fate)>) -> Vec<(EntryId, Like)> {
        let mut likes = Vec::new();
        for (raw, fate) in page {
            if fate != Fate::Acknowledged {
                self.verdict.backlog += 1;
                continue;
            }
            self.verdict.entries += 1;
            let payload = raw.fields.as_deref().and_then(codec::payload);
            let decoded = payload.and_then(|payload| codec::decode(&payload).ok());
            self.verdict.unreadable += u64::from(decoded.as_ref().is_none_or(|decoded| decoded.bad > 0));
            likes.extend(decoded.into_iter().flat_map(|decoded| decoded.likes).map(|like| (raw.at.id, like)));
        }
        self.verdict.likes += likes.len() as u64;
        likes
    }

    async fn dead_pairs(&self, partition: Partition) -> Result<HashSet<Pair>, CliError> {
        let filter = Filter::all_of(vec![partition]);
        let mut scan = DeadScan::new(self.context, &filter, None);
        let mut pairs = HashSet::new();
        while let Some(page) = scan.next_page().await? {
            let likes = page.iter().flat_map(|dead_letter| scan::likes(&dead_letter.fields));
            pairs.extend(likes.map(|like| pair(&like)));
        }
        Ok(pairs)
    }

    /// Removes pairs that are in the backlog, for example from a retried dead letter.
    async fn remove_backlog(&self, partition: Partition, pairs: &mut HashSet<Pair>) -> Result<(), CliError> {
        let mut first = Some(EntryId::default());
        while let Some(from) = first.filter(|_| !pairs.is_empty()) {
            let page = self.context.streams.range_with_fate(partition, (from, EntryId::MAX), PAGE).await?;
            first = page.last().filter(|_| page.len() == PAGE).and_then(|(last, _)| last.at.id.after());
            for (raw, _) in page.into_iter().filter(|(_, fate)| *fate != Fate::Acknowledged) {
                for like in scan::likes(&raw.fields.unwrap_or_default()) {
                    pairs.remove(&pair(&like));
                }
            }
        }
        Ok(())
    }

    /// Returns the verdict, after a second check of missing likes, which may have been in transit.
    pub(crate) async fn verdict(mut self) -> Result<Verdict, CliError> {
        let mut verdict = std::mem::take(&mut self.verdict);
        if verdict.missing_likes.is_empty() {
            return Ok(verdict);
        }
        sleep(RECHECK_DELAY).await;
        let partitions: BTreeSet<u16> =
            verdict.missing_likes.iter().map(|missing| missing.entry.partition).collect();
        let mut nowhere = HashSet::new();
        for number in partitions {
            let partition = self.context.partition(number)?;
            let listed = verdict.missing_likes.iter().filter(|missing| missing.entry.partition == number);
            let mut pairs: HashSet<Pair> = listed.map(|missing| pair(&missing.like)).collect();
            self.remove_backlog(partition, &mut pairs).await?;
            let dead = self.dead_pairs(partition).await?;
            nowhere.extend(pairs.difference(&dead).copied());
        }
        // The table is checked last, because it is the final destination of a like.
        let all: Vec<Like> = verdict.missing_likes.iter().map(|missing| missing.like).collect();
        let missing = missing(self.client, &all).await?;
        let missing: HashSet<Pair> = missing.iter().map(pair).filter(|pair| nowhere.contains(pair)).collect();
        let before = verdict.missing_likes.len();
        verdict.missing_likes.retain(|listed| missing.contains(&pair(&listed.like)));
        verdict.missing -= (before - verdict.missing_likes.len()) as u64;
        Ok(verdict)
    }
}

fn pair(like: &Like) -> Pair {
    (like.user_id(), like.post_id())
}
