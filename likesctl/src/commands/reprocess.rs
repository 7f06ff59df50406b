//! `likesctl reprocess`: writes a range of stream entries to the table again, without moving the group.

use std::{cell::Cell, time::Duration};

use clap::Args;
use consumer::{
    entry::Entry,
    group::static_assignment::StaticAssignment,
    store::{
        batch::{Batch, Rest, Written},
        database::DatabaseId,
        session::{Pooling, Transactions},
        write::TableWriter,
    },
};
use futures_util::FutureExt;
use shared::{error_chain::one_line, settings::args::PostgresArgs, stderr::eprint_line};
use tokio::{sync::Mutex, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    action::{Action, ActionArgs, ActionResult, Apply, Change, PaceArgs},
    context::{Context, RedisAccess},
    database,
    exit::{CliError, Exit},
    output::count,
    scan::{StreamEntry, StreamScan},
    selection::{Filter, TimeRange, TimeSpec},
};

/// Maximum duration of a transaction.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Returns the settings of transactions. Each creates its own staging table, so that a pooler in transaction mode works too.
fn transactions(database: DatabaseId) -> Transactions {
    Transactions { pooling: Pooling::Transaction, limit: WRITE_TIMEOUT, database }
}

#[derive(Args)]
pub(crate) struct Options {
    /// Partitions, such as 3 or 0-3,8 [default: all]
    #[arg(short, long, value_name = "PARTITIONS", help_heading = "Selection")]
    partition: Option<StaticAssignment>,

    /// Start of the time range: RFC 3339 (2026-01-31T12:00:00Z), a duration ago (2h), Unix milliseconds, or an entry id
    #[arg(long, value_name = "TIME", help_heading = "Selection")]
    from: TimeSpec,

    /// End of the time range, in the same formats [default: now]
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

/// Row counts.
#[derive(Default)]
struct RowCounts {
    inserted: Cell<u64>,
    /// Rows that the table already had, rejected, or did not take.
    other: Cell<u64>,
}

pub(crate) async fn run(options: Options, interrupt: &CancellationToken) -> Result<Exit, CliError> {
    let context = options.redis.open().await?;
    let filter = options.filter(&context).await?;
    let table = Mutex::new(options.table(&context).await?);
    let action = Action {
        command: "reprocess",
        items: ("entries", "entry"),
        effect: "written to the table again; the position of the group does not change".to_owned(),
        selection: &filter.text,
        args: &options.action,
        pace: Some(options.pace),
        interrupt,
    };
    let written = RowCounts::default();
    let change = Change {
        scan: &|bound| Box::new(StreamScan::new(&context, &filter, bound)),
        apply: Apply::Change(&|_, entries| write_entries(&table, entries, &written).boxed_local()),
    };
    let exit = action.run(&context, change).await?;
    if !options.action.dry_run {
        let inserted = count(written.inserted.get());
        let other = count(written.other.get());
        eprint_line(format_args!("{inserted} rows inserted, {other} already in the table or rejected"));
    }
    Ok(exit)
}

impl Options {
    async fn filter(&self, context: &Context) -> Result<Filter, CliError> {
        let range = TimeRange { since: Some(self.from), until: self.to }.ids(context.now_ms().await?)?;
        let mut text = format!("--from {}", range.0);
        if self.to.is_some() {
            text = format!("{text} --to {}", range.1);
        }
        if let Some(partition) = &self.partition {
            text = format!("-p {partition} {text}");
        }
        let partitions = context.partitions_of(self.partition.as_ref())?;
        Ok(Filter { range, text, ..Filter::all_of(partitions) })
    }

    /// Checks that the database is the group's, and returns a writer with one connection.
    async fn table(&self, context: &Context) -> Result<TableWriter, CliError> {
        let limit = self.redis.startup_timeout;
        let (_, postgres, database) =
            database::connect(context, &self.postgres, "likesctl reprocess", limit).await?;
        let transactions = transactions(database.id);
        let pool = postgres.pool(1, transactions.connected());
        let pool = pool.map_err(|error| CliError::Failed(error.into()))?;
        Ok(TableWriter::new(pool, transactions, None))
    }
}

async fn write_entries(
    table: &Mutex<TableWriter>,
    entries: Vec<StreamEntry>,
    written: &RowCounts,
) -> Result<ActionResult, CliError> {
    let decode = |StreamEntry(raw): &StreamEntry| {
        let fields = raw.fields.as_deref()?;
        Some(Entry::decode(raw.at, fields, Instant::now()))
    };
    let mut unwritten = Some(Batch::of(entries.iter().filter_map(decode).collect()));
    let rows = unwritten.as_ref().map_or(0, Batch::rows) as u64;
    let (mut inserted, mut done, mut skipped) = (0, 0, Vec::new());
    while let Some(batch) = unwritten.take() {
        let Written { committed, rest } = table.lock().await.write(batch, &|_| {}).await;
        inserted += committed.tally().inserted;
        for entry in committed.into_entries() {
            if entry.dead_letters.is_empty() {
                done += 1;
            } else {
                skipped.push((entry.at.into(), "some of its likes cannot be stored"));
            }
        }
        match rest {
            Rest::Nothing => {}
            Rest::Unwritten(batch, None) => unwritten = Some(batch),
            Rest::Obstructed(remainder) => {
                eprint_line(format_args!("the table did not take some likes: {}", remainder.obstacle.why));
                let unsettled = remainder.batch.positions();
                skipped.extend(unsettled.map(|at| (at.into(), "the table did not take some of its likes")));
            }
            Rest::Unwritten(_, Some(error)) => return Err(CliError::failed(one_line(&error))),
        }
    }
    written.inserted.update(|total| total + inserted);
    written.other.update(|other| other + rows - inserted);
    Ok(ActionResult { done, skipped })
}
