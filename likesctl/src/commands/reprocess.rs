//! `likesctl reprocess`: a range of the streams into the table once more, beside the group and without moving it.

use std::time::Duration;

use clap::Args;
use consumer::{
    entry::{Entry, EntryId, RawEntry},
    group::static_assignment::StaticAssignment,
    store::{
        batch::Batch,
        schema,
        session::{Pooling, Transactions},
        write,
    },
};
use fred::prelude::Error;
use shared::{error_chain::one_line, settings::args::PostgresArgs, wire::partition::Partition};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    action::{Action, ActionArgs, ActionResult, PaceArgs, say},
    context::{self, RedisAccess},
    exit::{CliError, Exit},
    output::count,
    scan::{Item, Scan, ScanBound, ScanCursor, likes},
    selection::{Filter, TimeRange, TimeSpec},
};

/// How long a transaction may take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Args)]
pub(crate) struct Options {
    /// In these partitions, like 3 or 0-3,8
    #[arg(short, long, value_name = "PARTITIONS", help_heading = "Selection")]
    partition: Option<StaticAssignment>,

    /// From when on: a time (2026-01-31T12:00:00Z), a duration ago (2h), Unix milliseconds, or an id
    #[arg(long, value_name = "TIME", help_heading = "Selection")]
    from: TimeSpec,

    /// Up to when [default: now]
    #[arg(long, value_name = "TIME", help_heading = "Selection")]
    to: Option<TimeSpec>,

    #[command(flatten)]
    pace: PaceArgs,

    #[command(flatten)]
    action: ActionArgs,

    #[command(flatten)]
    redis: RedisAccess,

    #[command(flatten)]
    postgres: PostgresArgs,
}

/// An entry of a stream, whatever has become of it.
struct StreamEntry(RawEntry);

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

struct StreamScan<'a>(ScanCursor<'a>);

impl Scan for StreamScan<'_> {
    type Item = StreamEntry;

    async fn next_page(&mut self) -> Result<Option<Vec<StreamEntry>>, Error> {
        while let Some((partition, stretch)) = self.0.stretch() {
            let found = self.0.context().streams.entries(partition, stretch, crate::scan::PAGE).await?;
            self.0.go_on(found.last().map(|raw| raw.at.id), found.len() == crate::scan::PAGE);
            if !found.is_empty() {
                return Ok(Some(found.into_iter().map(StreamEntry).collect()));
            }
        }
        Ok(None)
    }
}

pub(crate) async fn run(options: Options, interrupt: &CancellationToken) -> Result<Exit, CliError> {
    let context = options.redis.open().await?;
    let span = TimeRange { since: Some(options.from), until: options.to }.ids(context.now_ms().await?)?;
    let mut filter =
        Filter { partitions: context.partitions_of(options.partition.as_ref())?, ..Filter::everything() };
    filter.span = span;
    filter.text = format!("--from {}", span.0);
    if options.to.is_some() {
        filter.text = format!("{} --to {}", filter.text, span.1);
    }
    if let Some(partition) = &options.partition {
        filter.text = format!("-p {partition} {}", filter.text);
    }
    let limit = options.redis.startup_timeout;
    let (client, postgres) = context::postgres(&options.postgres, "likesctl reprocess", limit).await?;
    context::answer(async { schema::check(&client).await.map_err(|error| CliError::Failed(error.into())) })
        .await?;
    // Each transaction brings what it needs along: this works behind a pooler, too.
    let transactions = Transactions { pooling: Pooling::Transaction, limit: WRITE_TIMEOUT };
    let pool = postgres.pool(1, transactions.connected()).map_err(|error| CliError::Failed(error.into()))?;
    let act = Action {
        command: "reprocess",
        what: ("entries", "entry"),
        effect: "written once more; the group stays where it is".to_owned(),
        selection: &filter.text,
        args: &options.action,
        pace: Some(options.pace),
        interrupt,
    };
    let (mut inserted, mut known) = (0, 0);
    let exit = act
        .run(
            &context,
            |bound: Option<&ScanBound>| StreamScan(ScanCursor::new(&context, &filter, bound.cloned())),
            None,
            async |_, entries: &[StreamEntry]| {
                let decode = |entry: &StreamEntry| {
                    let fields = entry.0.fields.as_deref()?;
                    Some(Entry::decode(entry.0.at, fields, Instant::now()))
                };
                let batch = Batch::of(entries.iter().filter_map(decode).collect());
                let rows = batch.rows() as u64;
                let written = write::write(&pool, transactions, None, batch, &|_| {}).await;
                let committed = written.map_err(|(_, error)| CliError::failed(one_line(&error)))?;
                inserted += committed.inserted();
                known += rows - committed.inserted();
                let settled = committed.into_entries();
                let bad: Vec<_> = settled.iter().filter(|entry| !entry.dead_letters.is_empty()).collect();
                let skipped =
                    bad.iter().map(|entry| (entry.at.into(), "not all of it can be stored")).collect();
                Ok(ActionResult { done: (settled.len() - bad.len()) as u64, skipped })
            },
        )
        .await?;
    if !options.action.dry_run {
        let (inserted, known) = (count(inserted), count(known));
        say(&format!("{inserted} rows are new in the table, {known} were there or could not be stored"));
    }
    Ok(exit)
}
