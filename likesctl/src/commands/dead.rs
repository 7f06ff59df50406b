//! `likesctl dead`: lists, retries, purges, exports and imports dead letters.
//!
//! Purpose: the options and changes of dead letters; `import` reads them from a file. May depend on `scan`, `action` and
//! `dead_letter_record`. Must not know why a like became a dead letter.

mod import;

use clap::{Args, Subcommand};
use consumer::entry::EntryId;
use futures_util::FutureExt;
use serde::Serialize;
use shared::{stderr::eprint_line, wire::codec};
use tokio_util::sync::CancellationToken;

use crate::{
    action::{Action, ActionArgs, ActionResult, Apply, Change, ExportArgs, Exported, PaceArgs},
    context::{Context, RedisAccess},
    dead_letter_record::DeadLetterRecord,
    exit::{CliError, Exit},
    output::{Column, Format, OutputArgs, Row, Rows, age, many, print_document, printable, time},
    scan::{DeadLetterEntry, DeadScan, Item, Scan},
    selection::{AllArg, DeadSelection, EntryRef, Filter},
};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// List dead letters
    ///
    /// A dead letter holds likes that cannot be stored, and the reason.
    #[command(
        after_help = "Examples:\n  likesctl dead list\n  likesctl dead list --reason rejected --since 1h -o wide"
    )]
    List(ListOptions),
    /// Show dead letters with their likes
    #[command(after_help = "Examples:\n  likesctl dead show 7/1700000000000-0")]
    Show(ShowOptions),
    /// Append dead letters to the streams again
    ///
    /// Each dead letter is removed in the same step. A like that still cannot be stored becomes a dead letter again.
    #[command(
        after_help = "Examples:\n  likesctl dead retry --reason rejected --reason-text 'constraint dropped'"
    )]
    Retry(ChangeOptions),
    /// Remove dead letters permanently
    ///
    /// Removed dead letters are first written to a file, which likesctl dead import can read.
    #[command(after_help = "Examples:\n  likesctl dead purge --reason undecodable --until 7d")]
    Purge(PurgeOptions),
    /// Write dead letters to standard output, as NDJSON
    #[command(after_help = "Examples:\n  likesctl dead export --reason rejected > rejected.ndjson")]
    Export(ExportOptions),
    /// Import dead letters from a file
    ///
    /// Reads the files of dead export, dead purge and pending drop. Validates the whole file first. Skips dead letters
    /// that already exist.
    #[command(after_help = "Examples:\n  likesctl dead import rejected.ndjson")]
    Import(import::Options),
}

#[derive(Args)]
pub(crate) struct ListOptions {
    #[command(flatten)]
    dead: DeadSelection,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    redis: RedisAccess,
}

#[derive(Args)]
pub(crate) struct ShowOptions {
    /// Dead letters to show
    #[arg(value_name = "PARTITION/ID", required = true)]
    ids: Vec<EntryRef>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    redis: RedisAccess,
}

#[derive(Args)]
pub(crate) struct ChangeOptions {
    #[command(flatten)]
    dead: DeadSelection,
    #[command(flatten)]
    all: AllArg,
    #[command(flatten)]
    pace: PaceArgs,
    #[command(flatten)]
    action: ActionArgs,
    #[command(flatten)]
    redis: RedisAccess,
}

#[derive(Args)]
pub(crate) struct PurgeOptions {
    #[command(flatten)]
    change: ChangeOptions,
    #[command(flatten)]
    export: ExportArgs,
}

#[derive(Args)]
pub(crate) struct ExportOptions {
    #[command(flatten)]
    dead: DeadSelection,
    #[command(flatten)]
    redis: RedisAccess,
}

/// A dead letter in a list.
#[derive(Serialize)]
struct DeadRow {
    #[serde(flatten)]
    record: DeadLetterRecord,
    age_ms: u64,
}

impl Row for DeadRow {
    const COLUMNS: &'static [Column] = &[
        Column::whole("ENTRY"),
        Column::text("REASON"),
        Column::number("AGE"),
        Column::number("DELIVERIES").wide(),
        Column::text("CONSUMER").wide(),
        Column::text("ORIGIN").wide(),
        Column::prose("DETAIL"),
    ];

    fn cells(&self) -> Vec<String> {
        let DeadLetterRecord { entry, reason, detail, origin, deliveries, consumer, .. } = &self.record;
        vec![
            entry.clone(),
            reason.clone(),
            age(self.age_ms),
            deliveries.to_string(),
            consumer.clone(),
            origin.clone(),
            detail.clone(),
        ]
    }
}

impl DeadRow {
    fn new(dead_letter: &DeadLetterEntry, now_ms: u64) -> Self {
        let record = DeadLetterRecord::from(dead_letter);
        Self { age_ms: now_ms.saturating_sub(record.dead_at), record }
    }

    fn text(&self) -> String {
        let DeadLetterRecord { entry, reason, detail, origin, deliveries, consumer, dead_at, likes, .. } =
            &self.record;
        let mut lines = vec![
            format!("dead letter {entry}"),
            format!("reason      {}", printable(reason)),
            format!("detail      {}", printable(detail)),
            format!("origin      {}", printable(origin)),
            format!("deliveries  {deliveries}, last to {}", printable(consumer)),
            format!("dead at     {}, {} ago", time(*dead_at), age(self.age_ms)),
            format!("likes       {}", likes.len()),
        ];
        lines.extend(likes.iter().map(|like| format!("  {like}")));
        lines.join("\n")
    }
}

impl Command {
    pub(crate) fn is_change(&self) -> bool {
        matches!(self, Self::Retry(_) | Self::Purge(_) | Self::Import(_))
    }
}

pub(crate) async fn run(command: Command, interrupt: &CancellationToken) -> Result<Exit, CliError> {
    match command {
        Command::List(options) => list(options).await,
        Command::Show(options) => show(options).await,
        Command::Retry(options) => retry(options, interrupt).await,
        Command::Purge(options) => purge(options, interrupt).await,
        Command::Export(options) => export(options).await,
        Command::Import(options) => import::run(options, interrupt).await,
    }
}

async fn list(ListOptions { dead, output, redis }: ListOptions) -> Result<Exit, CliError> {
    let context = redis.open().await?;
    let filter = dead.resolve(&context).await?;
    let now_ms = context.now_ms().await?;
    let mut scan = DeadScan::new(&context, &filter, None);
    let mut rows = Rows::new(output, DeadRow::COLUMNS);
    while let Some(page) = scan.next_page().await? {
        for dead_letter in &page {
            rows.push(&DeadRow::new(dead_letter, now_ms))?;
        }
    }
    rows.finish("no dead letters match")?;
    Ok(Exit::Done)
}

async fn show(ShowOptions { ids, output, redis }: ShowOptions) -> Result<Exit, CliError> {
    let context = redis.open().await?;
    let now_ms = context.now_ms().await?;
    let mut rows = Vec::new();
    for id in ids {
        rows.push(DeadRow::new(&read(&context, id).await?, now_ms));
    }
    print_document(output, &rows, |_| rows.iter().map(DeadRow::text).collect::<Vec<_>>().join("\n\n"))?;
    Ok(Exit::Done)
}

async fn read(context: &Context, at: EntryRef) -> Result<DeadLetterEntry, CliError> {
    let partition = context.partition(at.partition)?;
    let found = context.streams.dead_letters(partition, (at.id, at.id), 1).await?;
    let fields = found.into_iter().find_map(|raw| raw.fields);
    let fields = fields.ok_or_else(|| {
        CliError::failed(format!(
            "dead letter {at} does not exist; list dead letters with likesctl dead list"
        ))
    })?;
    Ok(DeadLetterEntry { partition, id: at.id, fields })
}

impl ChangeOptions {
    async fn open(&self, interrupt: &CancellationToken) -> Result<(Context, Filter), CliError> {
        let context = self.redis.open_group(interrupt).await?;
        let filter = self.dead.resolve(&context).await?.or_all(self.all)?;
        for named in &filter.named {
            read(&context, *named).await?;
        }
        Ok((context, filter))
    }

    fn action<'a>(
        &'a self,
        command: &'static str,
        effect: &str,
        filter: &'a Filter,
        interrupt: &'a CancellationToken,
    ) -> Action<'a> {
        Action {
            command,
            items: ("dead letters", "dead letter"),
            effect: effect.to_owned(),
            selection: &filter.text,
            args: &self.action,
            pace: Some(self.pace),
            interrupt,
        }
    }
}

async fn retry(options: ChangeOptions, interrupt: &CancellationToken) -> Result<Exit, CliError> {
    let (context, filter) = options.open(interrupt).await?;
    let effect = "appended to the streams again and removed";
    let action = options.action("dead retry", effect, &filter, interrupt);
    let context = &context;
    let change = Change {
        scan: &|bound| Box::new(DeadScan::new(context, &filter, bound)),
        apply: Apply::Change(&|partition, dead_letters| {
            async move {
                let ids: Vec<EntryId> = dead_letters.iter().map(Item::id).collect();
                let retried = context.streams.retry_dead_letters(partition, &ids).await?;
                let has_no_payload = |dead_letter: &DeadLetterEntry| {
                    codec::payload(&dead_letter.fields).is_none_or(|payload| payload.is_empty())
                };
                let reason = "it has no payload";
                Ok(ActionResult::with_skipped(retried.len(), &dead_letters, has_no_payload, reason))
            }
            .boxed_local()
        }),
    };
    action.run(context, change).await
}

async fn purge(
    PurgeOptions { change: options, export }: PurgeOptions,
    interrupt: &CancellationToken,
) -> Result<Exit, CliError> {
    let (context, filter) = options.open(interrupt).await?;
    let action = options.action("dead purge", "removed permanently", &filter, interrupt);
    let context = &context;
    let change = Change {
        scan: &|bound| Box::new(DeadScan::new(context, &filter, bound)),
        apply: Apply::Remove {
            export: &export,
            record: &|dead_letter| DeadLetterRecord::from(dead_letter),
            remove: &|partition, dead_letters: Exported<DeadLetterEntry>| {
                async move {
                    let ids: Vec<EntryId> = dead_letters.into_entries().iter().map(Item::id).collect();
                    let purged = context.streams.purge_dead_letters(partition, &ids).await?;
                    Ok(ActionResult { done: purged.len() as u64, skipped: Vec::new() })
                }
                .boxed_local()
            },
        },
    };
    action.run(context, change).await
}

async fn export(ExportOptions { dead, redis }: ExportOptions) -> Result<Exit, CliError> {
    let context = redis.open().await?;
    let filter = dead.resolve(&context).await?;
    let mut scan = DeadScan::new(&context, &filter, None);
    let mut rows = Rows::new(OutputArgs { output: Format::Ndjson }, &[]);
    let mut exported = 0;
    while let Some(page) = scan.next_page().await? {
        for dead_letter in &page {
            rows.push(&ExportRow(DeadLetterRecord::from(dead_letter)))?;
        }
        exported += page.len() as u64;
    }
    rows.finish("")?;
    eprint_line(format_args!("{} exported", many(exported, "dead letter", "dead letters")));
    Ok(Exit::Done)
}

/// An exported dead letter, which is always printed as JSON.
#[derive(Serialize)]
#[serde(transparent)]
struct ExportRow(DeadLetterRecord);

impl Row for ExportRow {
    const COLUMNS: &'static [Column] = &[];

    fn cells(&self) -> Vec<String> {
        Vec::new()
    }
}
