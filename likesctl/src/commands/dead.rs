//! `likesctl dead`

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    fs::File,
    hash::{BuildHasher, RandomState},
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use clap::{Args, Subcommand};
use consumer::entry::EntryId;
use serde::Serialize;
use shared::wire::{codec, partition::Partition};
use tokio_util::sync::CancellationToken;

use crate::{
    action::{Action, ActionArgs, ActionResult, ExportArgs, Pace, PaceArgs, Report, say},
    audit,
    context::{Context, RedisAccess},
    dead_letter_record::DeadLetterRecord,
    exit::{CliError, Exit},
    output::{Column, Format, OutputArgs, Row, Rows, age, many, print_document, printable, time},
    scan::{DeadLetterEntry, DeadScan, Item, PAGE, Scan},
    selection::{DeadSelection, EntryRef, Everything, Filter},
};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Lists dead letters: what could not be stored, and why
    #[command(
        after_help = "Examples:\n  likesctl dead list\n  likesctl dead list --reason rejected --since 1h -o wide"
    )]
    List(ListOptions),
    /// Shows dead letters with their likes
    #[command(after_help = "Example: likesctl dead show 7/1700000000000-0")]
    Show(ShowOptions),
    /// Appends what is in dead letters to the streams again, and removes the letters
    #[command(after_help = "What still can't be stored becomes a dead letter again.\n\n\
        Example: likesctl dead retry --reason rejected --reason-text 'constraint dropped'")]
    Retry(ActOptions),
    /// Removes dead letters for good; they are kept in a file
    #[command(after_help = "Example: likesctl dead purge --reason undecodable --until 7d")]
    Purge(PurgeOptions),
    /// Writes dead letters to standard output, as lines of JSON
    #[command(after_help = "Example: likesctl dead export --reason rejected > rejected.ndjson")]
    Export(ExportOptions),
    /// Makes dead letters of what export, purge or pending drop have written; those that are there already are left out
    #[command(after_help = "Example: likesctl dead import rejected.ndjson")]
    Import(ImportOptions),
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
    /// The letters
    #[arg(value_name = "PARTITION/ID", required = true)]
    ids: Vec<EntryRef>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    redis: RedisAccess,
}

#[derive(Args)]
pub(crate) struct ActOptions {
    #[command(flatten)]
    dead: DeadSelection,
    #[command(flatten)]
    everything: Everything,
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
    act: ActOptions,
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

#[derive(Args)]
pub(crate) struct ImportOptions {
    /// The file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    pace: PaceArgs,
    #[command(flatten)]
    action: ActionArgs,
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
        let (age, deliveries) = (age(self.age_ms), deliveries.to_string());
        vec![entry.clone(), reason.clone(), age, deliveries, consumer.clone(), origin.clone(), detail.clone()]
    }
}

impl DeadRow {
    fn new(letter: &DeadLetterEntry, now_ms: u64) -> Self {
        let record = DeadLetterRecord::from(letter);
        Self { age_ms: now_ms.saturating_sub(record.dead_at), record }
    }

    fn text(&self) -> String {
        let DeadLetterRecord { entry, reason, detail, origin, deliveries, consumer, dead_at, likes, .. } =
            &self.record;
        let mut lines = vec![
            format!("letter      {entry}"),
            format!("reason      {}", printable(reason)),
            format!("detail      {}", printable(detail)),
            format!("origin      {}", printable(origin)),
            format!("deliveries  {deliveries}, the last one to {}", printable(consumer)),
            format!("dead at     {}, {} ago", time(*dead_at), age(self.age_ms)),
            format!("likes       {}", likes.len()),
        ];
        lines.extend(likes.iter().map(|like| format!("  {like}")));
        lines.join("\n")
    }
}

impl Command {
    pub(crate) fn changes_something(&self) -> bool {
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
        Command::Import(options) => import(options, interrupt).await,
    }
}

async fn list(ListOptions { dead, output, redis }: ListOptions) -> Result<Exit, CliError> {
    let context = redis.open().await?;
    let (filter, now_ms) = (dead.resolve(&context).await?, context.now_ms().await?);
    let mut scan = DeadScan::new(&context, &filter, None);
    let mut rows = Rows::new(output);
    while let Some(page) = scan.next_page().await? {
        for letter in &page {
            rows.push(&DeadRow::new(letter, now_ms))?;
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
        rows.push(DeadRow::new(&letter(&context, id).await?, now_ms));
    }
    print_document(output, &rows, |_| rows.iter().map(DeadRow::text).collect::<Vec<_>>().join("\n\n"))?;
    Ok(Exit::Done)
}

async fn letter(context: &Context, at: EntryRef) -> Result<DeadLetterEntry, CliError> {
    let partition = context.partition(at.partition)?;
    let found = context.streams.dead_letters(partition, (at.id, at.id), 1).await?;
    let fields = found.into_iter().find_map(|raw| raw.fields);
    let fields = fields.ok_or_else(|| CliError::failed(format!("there is no dead letter {at}")))?;
    Ok(DeadLetterEntry { partition, id: at.id, fields })
}

impl ActOptions {
    async fn open(&self, interrupt: &CancellationToken) -> Result<(Context, Filter), CliError> {
        let context = self.redis.open_group(interrupt).await?;
        let filter = self.dead.resolve(&context).await?.or_all(self.everything)?;
        for named in &filter.named {
            letter(&context, *named).await?;
        }
        Ok((context, filter))
    }

    fn act<'a>(
        &'a self,
        command: &'static str,
        effect: &str,
        filter: &'a Filter,
        interrupt: &'a CancellationToken,
    ) -> Action<'a> {
        let what = ("dead letters", "dead letter");
        Action {
            command,
            what,
            effect: effect.to_owned(),
            selection: &filter.text,
            args: &self.action,
            pace: Some(self.pace),
            interrupt,
        }
    }
}

async fn retry(options: ActOptions, interrupt: &CancellationToken) -> Result<Exit, CliError> {
    let (context, filter) = options.open(interrupt).await?;
    let act = options.act("dead retry", "appended to the streams again, and removed", &filter, interrupt);
    act.run(
        &context,
        |bound| DeadScan::new(&context, &filter, bound.cloned()),
        None,
        async |partition, letters| {
            let ids: Vec<EntryId> = letters.iter().map(Item::id).collect();
            let retried = context.streams.retry_dead_letters(partition, &ids).await?;
            let has_none = |letter: &DeadLetterEntry| {
                codec::payload(&letter.fields).is_none_or(|payload| payload.is_empty())
            };
            let why = "it has no payload that could be tried again";
            Ok(ActionResult::but(retried.len(), letters, has_none, why))
        },
    )
    .await
}

async fn purge(
    PurgeOptions { act: options, export }: PurgeOptions,
    interrupt: &CancellationToken,
) -> Result<Exit, CliError> {
    let (context, filter) = options.open(interrupt).await?;
    let act = options.act("dead purge", "removed for good", &filter, interrupt);
    act.run(
        &context,
        |bound| DeadScan::new(&context, &filter, bound.cloned()),
        Some((&export, &|letter| DeadLetterRecord::from(letter))),
        async |partition, letters| {
            let ids: Vec<EntryId> = letters.iter().map(Item::id).collect();
            let purged = context.streams.purge_dead_letters(partition, &ids).await?;
            Ok(ActionResult { done: purged.len() as u64, skipped: Vec::new() })
        },
    )
    .await
}

async fn export(ExportOptions { dead, redis }: ExportOptions) -> Result<Exit, CliError> {
    let context = redis.open().await?;
    let filter = dead.resolve(&context).await?;
    let mut scan = DeadScan::new(&context, &filter, None);
    let mut rows = Rows::new(OutputArgs { output: Format::Ndjson });
    let mut letters = 0;
    while let Some(page) = scan.next_page().await? {
        for letter in &page {
            rows.push(&Exported(DeadLetterRecord::from(letter)))?;
        }
        letters += page.len() as u64;
    }
    rows.finish("")?;
    say(&format!("{} exported", many(letters, "dead letter", "dead letters")));
    Ok(Exit::Done)
}

/// A letter in an export has no table.
#[derive(Serialize)]
#[serde(transparent)]
struct Exported(DeadLetterRecord);

impl Row for Exported {
    const COLUMNS: &'static [Column] = &[];

    fn cells(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Tells letters apart. Of one entry a like is never twice among the dead for the same reason.
struct Known {
    hasher: RandomState,
    letters: BTreeMap<u16, HashSet<u64>>,
}

impl Known {
    fn new() -> Self {
        Self { hasher: RandomState::new(), letters: BTreeMap::new() }
    }

    fn fingerprint(&self, fields: &[(Bytes, Bytes)]) -> u64 {
        let field =
            |name: &str| fields.iter().find(|(field, _)| field == name.as_bytes()).map(|(_, value)| value);
        self.hasher.hash_one(["origin", "reason", codec::FIELD, "original"].map(field))
    }

    /// Whether a letter is new. It is known from then on.
    async fn is_new(
        &mut self,
        context: &Context,
        partition: Partition,
        fields: &[(Bytes, Bytes)],
    ) -> Result<bool, CliError> {
        let number = partition.number();
        if !self.letters.contains_key(&number) {
            let filter = Filter::all_of(partition);
            let mut scan = DeadScan::new(context, &filter, None);
            let mut known = HashSet::new();
            while let Some(page) = scan.next_page().await? {
                known.extend(page.iter().map(|letter| self.fingerprint(&letter.fields)));
            }
            self.letters.insert(number, known);
        }
        let fingerprint = self.fingerprint(fields);
        Ok(self.letters.entry(number).or_default().insert(fingerprint))
    }
}

async fn import(
    ImportOptions { file, pace, action, redis }: ImportOptions,
    interrupt: &CancellationToken,
) -> Result<Exit, CliError> {
    let context = redis.open().await?;
    // All of it is read before anything is changed.
    let mut letters = 0;
    for record in read_records(&context, &file)? {
        record?;
        letters += 1;
    }
    let name = file.display().to_string();
    let act = Action {
        command: "dead import",
        what: ("dead letters", "dead letter"),
        effect: format!(
            "{} of {name} will be made dead letters, but for those that are there already",
            many(letters, "letter", "letters")
        ),
        selection: &name,
        args: &action,
        pace: Some(pace),
        interrupt,
    };
    say(&format!("{}: {}", act.command, act.effect));
    let mut report = act.report(letters);
    if letters == 0 || action.dry_run {
        return act.tell(&report);
    }
    act.confirm(letters).await?;
    let begun = audit::begin(&context, &act.intent(letters)).await?;
    let imported = import_all(&context, &file, &act, &mut report).await;
    act.note_end(&context, &begun, &report, imported.as_ref().err()).await;
    let there = imported?;
    if there > 0 {
        say(&format!("{} there already", many(there, "letter was", "letters were")));
    }
    act.tell(&report)
}

/// Returns how many were there already.
async fn import_all(
    context: &Context,
    file: &Path,
    act: &Action<'_>,
    report: &mut Report,
) -> Result<u64, CliError> {
    let mut there = 0;
    let (mut known, mut pace) = (Known::new(), Pace::new(act.pace));
    let progress = act.progress(report.matched);
    for record in read_records(context, file)? {
        report.interrupted = act.interrupt.is_cancelled();
        if report.interrupted {
            break;
        }
        let (partition, fields) = record?;
        if known.is_new(context, partition, &fields).await? {
            context.streams.import_letter(partition, fields).await?;
            report.done += 1;
            act.interrupt.run_until_cancelled(pace.wait(1)).await;
        } else {
            there += 1;
        }
        progress.inc(1);
    }
    progress.finish_and_clear();
    Ok(there)
}

type Record = (Partition, Vec<(Bytes, Bytes)>);

fn read_records<'a>(
    context: &'a Context,
    file: &'a Path,
) -> Result<impl Iterator<Item = Result<Record, CliError>> + 'a, CliError> {
    let failed = |why: &dyn fmt::Display| {
        CliError::failed(format!("nothing was changed: '{}' can't be read: {why}", file.display()))
    };
    let opened = File::open(file).map_err(|why| failed(&why))?;
    if !opened.metadata().map_err(|why| failed(&why))?.is_file() {
        return Err(failed(&"it is read twice, and so has to be an ordinary file"));
    }
    let lines = BufReader::with_capacity(PAGE * 1_024, opened).lines().enumerate();
    let record = move |(number, line): (usize, io::Result<String>)| {
        let failed = |why: &dyn fmt::Display| {
            let (line, file) = (number + 1, file.display());
            CliError::failed(format!("nothing was changed: line {line} of '{file}': {why}"))
        };
        let line = line.map_err(|why| failed(&why))?;
        if line.trim().is_empty() {
            return Ok(None);
        }
        let (entry, fields) = DeadLetterRecord::read(&line).map_err(|why| failed(&why))?;
        Ok(Some((context.partition(entry.partition)?, fields)))
    };
    Ok(lines.map(record).filter_map(Result::transpose))
}
