//! `likesctl verify`: the streams and the dead letters against the table.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    time::Duration,
};

use clap::Args;
use consumer::{
    entry::{EntryId, RawEntry},
    group::static_assignment::StaticAssignment,
    stream::Fate,
};
use serde::Serialize;
use shared::{
    settings::args::PostgresArgs,
    wire::{codec, like::Like, partition::Partition},
};
use tokio::time::sleep;
use tokio_postgres::Client;

use crate::{
    context::{self, Context, RedisAccess},
    dead_letter_record::LikeRecord,
    exit::{CliError, Exit},
    output::{Column, OutputArgs, Row, count, many, print_document, table},
    scan::{self, DeadScan, PAGE, Scan},
    selection::{EntryRef, Filter, TimeRange, TimeSpec},
    table::missing,
};

/// So many missing likes are named.
const NAMED: usize = 1_000;

/// How often a sample is drawn for each that is wanted, and from how many entries.
const SAMPLE_TRIES: u64 = 4;
const SAMPLE_PAGE: usize = 20;

/// A like that was just being moved, by `dead retry` say, is looked for once more after so long.
const SECOND_LOOK: Duration = Duration::from_secs(2);

#[derive(Args)]
pub(crate) struct Options {
    /// In these partitions, like 3 or 0-3,8
    #[arg(short, long, value_name = "PARTITIONS", help_heading = "Selection")]
    partition: Option<StaticAssignment>,

    /// Not before: a time (2026-01-31T12:00:00Z), a duration ago (2h), Unix milliseconds, or an id
    #[arg(long, value_name = "TIME", help_heading = "Selection")]
    from: Option<TimeSpec>,

    /// Not after
    #[arg(long, value_name = "TIME", help_heading = "Selection")]
    to: Option<TimeSpec>,

    /// Only so many entries, chosen at random
    #[arg(long, value_name = "COUNT", help_heading = "Selection", value_parser = clap::value_parser!(u64).range(1..))]
    sample: Option<u64>,

    #[command(flatten)]
    output: OutputArgs,

    #[command(flatten)]
    redis: RedisAccess,

    #[command(flatten)]
    postgres: PostgresArgs,
}

/// User and post.
type Pair = (i64, i64);

/// What was found.
#[derive(Default, Serialize)]
pub(crate) struct Verdict {
    /// Acknowledged entries that were looked at.
    pub(crate) entries: u64,
    /// Their likes.
    pub(crate) likes: u64,
    /// Entries that are still to be stored.
    pub(crate) waiting: u64,
    /// Likes of acknowledged entries that are dead letters.
    pub(crate) dead: u64,
    /// Acknowledged entries with something that can't be read, and so not be looked for.
    pub(crate) unreadable: u64,
    /// Likes of acknowledged entries that are neither in the table nor dead letters nor waiting once more.
    pub(crate) missing: u64,
    /// The first thousand of them.
    pub(crate) missing_likes: Vec<MissingLike>,
}

/// A like that is nowhere.
#[derive(Serialize)]
pub(crate) struct MissingLike {
    pub(crate) entry: EntryRef,
    #[serde(flatten)]
    like: LikeRecord,
    #[serde(skip)]
    raw: Like,
}

impl Row for MissingLike {
    const COLUMNS: &'static [Column] = &[Column::whole("ENTRY"), Column::text("MISSING LIKE")];

    fn cells(&self) -> Vec<String> {
        vec![self.entry.to_string(), format!("user {} post {}", self.raw.user_id(), self.raw.post_id())]
    }
}

pub(crate) async fn run(options: Options) -> Result<Exit, CliError> {
    let context = options.redis.open().await?;
    let limit = options.redis.startup_timeout;
    let (client, _) = context::postgres(&options.postgres, "likesctl verify", limit).await?;
    let partitions = context.partitions_of(options.partition.as_ref())?;
    let span = TimeRange { since: options.from, until: options.to };
    let span = span.ids(context.now_ms().await?)?;
    let mut verifier = Verifier::new(&context, &client);
    match options.sample {
        None => {
            for partition in partitions {
                verifier.range(partition, span).await?;
            }
        }
        Some(entries) => verifier.sample(&partitions, span, entries).await?,
    }
    let verdict = verifier.verdict().await?;
    print_document(options.output, &verdict, |wide| verdict.text(wide))?;
    Ok(if verdict.missing == 0 { Exit::Done } else { Exit::Differs })
}

impl Verdict {
    fn text(&self, wide: bool) -> String {
        let Self { entries, likes, waiting, dead, unreadable, missing, missing_likes } = self;
        let mut lines = Vec::new();
        if *missing > 0 {
            lines.push(table(missing_likes, wide));
            lines.push(String::new());
        }
        lines.push(format!(
            "{} likes of {} acknowledged entries: {} missing, {} dead letters; {} entries still to be stored",
            count(*likes),
            count(*entries),
            count(*missing),
            count(*dead),
            count(*waiting)
        ));
        if *unreadable > 0 {
            lines.push(format!(
                "{} unreadable, in whole or in part: likesctl dead list has their letters",
                many(*unreadable, "entry is", "entries are")
            ));
        }
        if *missing > 0 {
            let partitions: BTreeSet<u16> = missing_likes.iter().map(|like| like.entry.partition).collect();
            let partitions: Vec<String> = partitions.iter().map(u16::to_string).collect();
            let ids = || missing_likes.iter().map(|like| like.entry.id);
            let (first, last) = (ids().min().unwrap_or_default(), ids().max().unwrap_or_default());
            lines.push(format!(
                "to store them: likesctl reprocess -p {} --from {first} --to {last}",
                partitions.join(",")
            ));
        } else if *entries == 0 {
            lines.push(
                "nothing to compare: acknowledged entries are trimmed, unless STREAM_RETENTION keeps them"
                    .to_owned(),
            );
        }
        lines.join("\n")
    }
}

/// Compares entries with the table.
pub(crate) struct Verifier<'a> {
    context: &'a Context,
    client: &'a Client,
    /// The likes among the dead letters of a partition.
    dead: BTreeMap<u16, HashSet<Pair>>,
    verdict: Verdict,
}

impl<'a> Verifier<'a> {
    pub(crate) fn new(context: &'a Context, client: &'a Client) -> Self {
        Self { context, client, dead: BTreeMap::new(), verdict: Verdict::default() }
    }

    /// All entries from the first id to the last one.
    pub(crate) async fn range(
        &mut self,
        partition: Partition,
        (mut first, last): (EntryId, EntryId),
    ) -> Result<(), CliError> {
        loop {
            let page = self.context.streams.range_with_fate(partition, (first, last), PAGE).await?;
            let (end, is_full) = (page.last().map(|(entry, _)| entry.at.id), page.len() == PAGE);
            self.look_at(partition, page).await?;
            match end.and_then(EntryId::after) {
                Some(next) if is_full && next <= last => first = next,
                _ => return Ok(()),
            }
        }
    }

    /// So many entries, about: those after moments that are chosen at random.
    async fn sample(
        &mut self,
        partitions: &[Partition],
        (first, last): (EntryId, EntryId),
        entries: u64,
    ) -> Result<(), CliError> {
        let streams = &self.context.streams;
        let mut streams_in_time = Vec::new();
        for partition in partitions {
            let oldest = streams.entries(*partition, (first, last), 1).await?;
            let newest = streams.look(*partition).await?;
            if let Some(oldest) = oldest.first() {
                let newest_ms = newest.last_generated.ms.min(last.ms).max(oldest.at.id.ms);
                streams_in_time.push((*partition, oldest.at.id.ms, newest_ms, newest.length.max(1)));
            }
        }
        let total: u64 = streams_in_time.iter().map(|(.., length)| length).sum();
        let mut seen = HashSet::new();
        for (partition, oldest_ms, newest_ms, length) in streams_in_time {
            let share = u128::from(entries) * u128::from(length) / u128::from(total.max(1));
            // One at least of each, and no more than there are.
            let share = u64::try_from(share).unwrap_or(u64::MAX).clamp(1, length);
            let (mut looked_at, mut tries) = (0, share.saturating_mul(SAMPLE_TRIES));
            while looked_at < share && tries > 0 {
                tries -= 1;
                let from = EntryId { ms: rand::random_range(oldest_ms..=newest_ms), seq: 0 }.max(first);
                let mut found = streams.range_with_fate(partition, (from, last), SAMPLE_PAGE).await?;
                // Not always the first after a moment: many may have come at once.
                let at = rand::random_range(0..found.len().max(1));
                if let Some(sampled) = found.drain(..).nth(at)
                    && seen.insert(sampled.0.at)
                {
                    looked_at += 1;
                    self.look_at(partition, vec![sampled]).await?;
                }
            }
        }
        Ok(())
    }

    async fn look_at(&mut self, partition: Partition, page: Vec<(RawEntry, Fate)>) -> Result<(), CliError> {
        let mut likes = Vec::new();
        for (raw, fate) in page {
            if fate != Fate::Acknowledged {
                self.verdict.waiting += 1;
                continue;
            }
            self.verdict.entries += 1;
            let payload = raw.fields.as_deref().and_then(codec::payload);
            let decoded = payload.and_then(|payload| codec::decode(&payload).ok());
            self.verdict.unreadable +=
                u64::from(decoded.as_ref().is_none_or(|decoded| !decoded.bad.is_empty()));
            likes.extend(decoded.into_iter().flat_map(|decoded| decoded.likes).map(|like| (raw.at.id, like)));
        }
        self.verdict.likes += likes.len() as u64;
        let all: Vec<Like> = likes.iter().map(|(_, like)| *like).collect();
        let gone: HashSet<Like> = missing(self.client, &all).await?.into_iter().collect();
        if gone.is_empty() {
            return Ok(());
        }
        let number = partition.number();
        if !self.dead.contains_key(&number) {
            let dead = self.the_dead(partition).await?;
            self.dead.insert(number, dead);
        }
        let dead = self.dead.entry(number).or_default();
        for (id, like) in likes.into_iter().filter(|(_, like)| gone.contains(like)) {
            if dead.contains(&pair(&like)) {
                self.verdict.dead += 1;
                continue;
            }
            self.verdict.missing += 1;
            if self.verdict.missing_likes.len() < NAMED {
                let entry = EntryRef { partition: number, id };
                self.verdict.missing_likes.push(MissingLike {
                    entry,
                    like: LikeRecord::from(&like),
                    raw: like,
                });
            }
        }
        Ok(())
    }

    async fn the_dead(&self, partition: Partition) -> Result<HashSet<Pair>, CliError> {
        let all = Filter::all_of(partition);
        let mut scan = DeadScan::new(self.context, &all, None);
        let mut dead = HashSet::new();
        while let Some(page) = scan.next_page().await? {
            dead.extend(page.iter().flat_map(|letter| scan::likes(&letter.fields)).map(|like| pair(&like)));
        }
        Ok(dead)
    }

    /// Takes out of the pairs those that wait in the stream: of a dead letter that was retried, say.
    async fn without_waiting(&self, partition: Partition, pairs: &mut HashSet<Pair>) -> Result<(), CliError> {
        let mut first = Some(EntryId::default());
        while let Some(from) = first.filter(|_| !pairs.is_empty()) {
            let page = self.context.streams.range_with_fate(partition, (from, EntryId::MAX), PAGE).await?;
            first = page.last().filter(|_| page.len() == PAGE).and_then(|(last, _)| last.at.id.after());
            for (raw, fate) in page {
                if fate != Fate::Acknowledged {
                    let likes = scan::likes(&raw.fields.unwrap_or_default());
                    for like in likes {
                        pairs.remove(&pair(&like));
                    }
                }
            }
        }
        Ok(())
    }

    /// What was found, after a second look for what was missing: likes may have been on their way from one place to
    /// another.
    pub(crate) async fn verdict(mut self) -> Result<Verdict, CliError> {
        let mut verdict = std::mem::take(&mut self.verdict);
        if verdict.missing_likes.is_empty() {
            return Ok(verdict);
        }
        sleep(SECOND_LOOK).await;
        let partitions: BTreeSet<u16> =
            verdict.missing_likes.iter().map(|like| like.entry.partition).collect();
        let mut nowhere = HashSet::new();
        for number in partitions {
            let partition = self.context.partition(number)?;
            let of_it = verdict.missing_likes.iter().filter(|like| like.entry.partition == number);
            let mut pairs: HashSet<Pair> = of_it.map(|like| pair(&like.raw)).collect();
            self.without_waiting(partition, &mut pairs).await?;
            let dead = self.the_dead(partition).await?;
            nowhere.extend(pairs.difference(&dead).copied());
        }
        // The table last: that is where likes end.
        let all: Vec<Like> = verdict.missing_likes.iter().map(|like| like.raw).collect();
        let missing = missing(self.client, &all).await?;
        let missing: HashSet<Pair> = missing.iter().map(pair).filter(|pair| nowhere.contains(pair)).collect();
        let before = verdict.missing_likes.len();
        verdict.missing_likes.retain(|like| missing.contains(&pair(&like.raw)));
        verdict.missing -= (before - verdict.missing_likes.len()) as u64;
        Ok(verdict)
    }
}

fn pair(like: &Like) -> Pair {
    (like.user_id(), like.post_id())
}
