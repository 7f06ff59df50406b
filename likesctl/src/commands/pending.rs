//! `likesctl pending`

use std::collections::HashSet;

use clap::{Args, Subcommand};
use consumer::{config::group_name, entry::EntryId};
use serde::Serialize;
use shared::{
    settings::args::PostgresArgs,
    wire::{codec, partition::Partition},
};
use tokio_util::sync::CancellationToken;

use crate::{
    action::{Action, ActionArgs, ActionResult, ExportArgs, PaceArgs, Report},
    context::{self, Context, REASSIGN_CONSUMER, RedisAccess},
    dead_letter_record::{LikeRecord, dropped},
    exit::{CliError, Exit},
    output::{Column, OutputArgs, Row, Rows, age, print_document, printable, time},
    scan::{Item, Pending, PendingScan, Scan},
    selection::{EntryRef, Everything, Filter, PendingSelection},
    table,
};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Lists pending entries: delivered to a consumer and not yet acknowledged
    #[command(after_help = "Examples:\n  \
        likesctl pending list --min-idle 5m\n  \
        likesctl pending list -p 3 --min-deliveries 5 -o ndjson")]
    List(ListOptions),
    /// Shows pending entries with their likes
    #[command(after_help = "Example: likesctl pending show 7/1700000000000-0")]
    Show(ShowOptions),
    /// Makes entries another consumer's
    #[command(
        after_help = "The entries are idle for 0 s then, and that consumer takes them up after CLAIM_MIN_IDLE at the \
        latest. To have them stored soon, by whoever reads the partition: likesctl pending retry\n\n\
        Example: likesctl pending claim --consumer host-1-77 --to host-2-12"
    )]
    Claim(ClaimOptions),
    /// Has entries tried again within seconds, as if they had never been delivered
    #[command(
        after_help = "Whoever reads the partition claims them with the next look; what an entry counts as deliveries \
        starts anew. Safe for entries that are just being stored: a like is stored once.\n\n\
        Example: likesctl pending retry --min-idle 10m"
    )]
    Retry(ActOptions),
    /// Acknowledges entries whose likes are all in the table
    #[command(
        after_help = "Others are skipped (exit code 4).\n\nExample: likesctl pending ack --consumer host-1-77"
    )]
    Ack(AckOptions),
    /// Gives entries up, unstored; they are kept in a file, from which likesctl dead import brings them back
    #[command(
        after_help = "Example: likesctl pending drop 7/1700000000000-0 --reason-text 'kills consumers, ticket 7'"
    )]
    Drop(DropOptions),
}

#[derive(Args)]
pub(crate) struct ListOptions {
    #[command(flatten)]
    pending: PendingSelection,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    redis: RedisAccess,
}

#[derive(Args)]
pub(crate) struct ShowOptions {
    /// The entries
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
    pending: PendingSelection,
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
pub(crate) struct ClaimOptions {
    /// Whose they should be
    #[arg(long, value_name = "NAME", value_parser = group_name)]
    to: String,
    #[command(flatten)]
    act: ActOptions,
}

#[derive(Args)]
pub(crate) struct AckOptions {
    #[command(flatten)]
    act: ActOptions,
    #[command(flatten)]
    postgres: PostgresArgs,
}

#[derive(Args)]
pub(crate) struct DropOptions {
    #[command(flatten)]
    act: ActOptions,
    #[command(flatten)]
    export: ExportArgs,
}

/// A pending entry in a list.
#[derive(Serialize)]
struct PendingRow {
    entry: EntryRef,
    consumer: String,
    idle_ms: u64,
    deliveries: u64,
    age_ms: u64,
}

impl PendingRow {
    fn new(pending: &Pending, now_ms: u64) -> Self {
        Self {
            entry: pending.entry(),
            consumer: pending.entry.consumer.clone(),
            idle_ms: pending.entry.idle_ms,
            deliveries: pending.entry.deliveries,
            age_ms: now_ms.saturating_sub(pending.entry.id.ms),
        }
    }
}

impl Row for PendingRow {
    const COLUMNS: &'static [Column] = &[
        Column::whole("ENTRY"),
        Column::text("CONSUMER"),
        Column::number("IDLE"),
        Column::number("DELIVERIES"),
        Column::number("AGE"),
    ];

    fn cells(&self) -> Vec<String> {
        let Self { entry, consumer, idle_ms, deliveries, age_ms } = self;
        vec![entry.to_string(), consumer.clone(), age(*idle_ms), deliveries.to_string(), age(*age_ms)]
    }
}

/// A pending entry with what is in it.
#[derive(Serialize)]
struct PendingDetail {
    #[serde(flatten)]
    row: PendingRow,
    accepted_at: String,
    /// Whether it is still in the stream.
    is_in_stream: bool,
    likes: Vec<LikeRecord>,
    /// What can't be read of it.
    problem: Option<String>,
}

impl Command {
    pub(crate) fn changes_something(&self) -> bool {
        !matches!(self, Self::List(_) | Self::Show(_))
    }
}

pub(crate) async fn run(command: Command, interrupt: &CancellationToken) -> Result<Exit, CliError> {
    match command {
        Command::List(options) => list(options, interrupt).await,
        Command::Show(options) => show(options).await,
        Command::Claim(options) => claim(options, interrupt).await,
        Command::Retry(options) => retry(options, interrupt).await,
        Command::Ack(options) => ack(options, interrupt).await,
        Command::Drop(options) => drop_entries(options, interrupt).await,
    }
}

async fn list(
    ListOptions { pending, output, redis }: ListOptions,
    interrupt: &CancellationToken,
) -> Result<Exit, CliError> {
    let context = redis.open_group(interrupt).await?;
    let (filter, now_ms) = (pending.resolve(&context).await?, context.now_ms().await?);
    check_known(&context, &filter).await?;
    let mut scan = PendingScan::new(&context, &filter, None, false);
    let mut rows = Rows::new(output);
    while let Some(page) = scan.next_page().await? {
        for pending in &page {
            rows.push(&PendingRow::new(pending, now_ms))?;
        }
    }
    rows.finish("no pending entries match")?;
    Ok(Exit::Done)
}

async fn show(ShowOptions { ids, output, redis }: ShowOptions) -> Result<Exit, CliError> {
    let context = redis.open().await?;
    let mut details = Vec::new();
    for id in ids {
        details.push(look_at(&context, id).await?);
    }
    print_document(output, &details, |_| details.iter().map(text_of).collect::<Vec<_>>().join("\n\n"))?;
    Ok(Exit::Done)
}

async fn look_at(context: &Context, at: EntryRef) -> Result<PendingDetail, CliError> {
    let partition = context.partition(at.partition)?;
    let found = context.streams.pending(partition, (at.id, at.id), None, 0, 1).await?;
    let Some(entry) = found.into_iter().next() else {
        return Err(CliError::failed(format!(
            "{at} is not pending: it was never delivered, or is acknowledged"
        )));
    };
    let fields = context.streams.entry(partition, at.id).await?.and_then(|raw| raw.fields);
    Ok(detail(&Pending { partition, entry, fields }, context.now_ms().await?))
}

/// A pending entry as text, or why there is none.
pub(crate) async fn described(context: &Context, at: EntryRef) -> Result<String, CliError> {
    look_at(context, at).await.map(|detail| text_of(&detail))
}

fn detail(pending: &Pending, now_ms: u64) -> PendingDetail {
    let mut detail = PendingDetail {
        row: PendingRow::new(pending, now_ms),
        accepted_at: time(pending.entry.id.ms),
        is_in_stream: pending.fields.is_some(),
        likes: Vec::new(),
        problem: None,
    };
    let Some(fields) = &pending.fields else {
        detail.problem = Some("it was deleted from the stream: its likes are lost".to_owned());
        return detail;
    };
    match codec::payload(fields).map(|payload| codec::decode(&payload)) {
        None => detail.problem = Some(format!("it has no field {}", codec::FIELD)),
        Some(Err(error)) => detail.problem = Some(error.to_string()),
        Some(Ok(decoded)) => {
            detail.likes = decoded.likes.iter().map(LikeRecord::from).collect();
            detail.problem = decoded.bad.first().map(|bad| format!("like {}: {}", bad.index, bad.why));
        }
    }
    detail
}

fn text_of(detail: &PendingDetail) -> String {
    let row = &detail.row;
    let mut lines = vec![
        format!("entry       {}", row.entry),
        format!("accepted    {}, {} ago", detail.accepted_at, age(row.age_ms)),
        format!("consumer    {}, idle for {}", printable(&row.consumer), age(row.idle_ms)),
        format!("deliveries  {}", row.deliveries),
    ];
    if let Some(problem) = &detail.problem {
        lines.push(format!("problem     {}", printable(problem)));
    }
    lines.push(format!("likes       {}", detail.likes.len()));
    lines.extend(detail.likes.iter().map(|like| format!("  {like}")));
    lines.join("\n")
}

impl ActOptions {
    async fn open(&self, interrupt: &CancellationToken) -> Result<(Context, Filter), CliError> {
        let context = self.redis.open_group(interrupt).await?;
        let filter = self.pending.resolve(&context).await?.or_all(self.everything)?;
        check_known(&context, &filter).await?;
        Ok((context, filter))
    }

    fn act<'a>(
        &'a self,
        command: &'static str,
        effect: impl Into<String>,
        filter: &'a Filter,
        interrupt: &'a CancellationToken,
    ) -> Action<'a> {
        let what = ("pending entries", "pending entry");
        Action {
            command,
            what,
            effect: effect.into(),
            selection: &filter.text,
            args: &self.action,
            pace: Some(self.pace),
            interrupt,
        }
    }
}

/// A name that nobody has is a mistake, and so is an entry that is named and isn't pending.
async fn check_known(context: &Context, filter: &Filter) -> Result<(), CliError> {
    if let Some(name) = &filter.consumer {
        context.check_consumer(name).await?;
    }
    for entry in &filter.named {
        let partition = context.partition(entry.partition)?;
        if context.streams.pending(partition, (entry.id, entry.id), None, 0, 1).await?.is_empty() {
            return Err(CliError::failed(format!("{entry} is not pending")));
        }
    }
    Ok(())
}

async fn hand_over(
    context: &Context,
    partition: Partition,
    entries: &[Pending],
    to: &str,
    deliveries: Option<u64>,
) -> Result<ActionResult, CliError> {
    let ids: Vec<EntryId> = entries.iter().map(Item::id).collect();
    let (taken, deleted) = context.streams.hand_over(partition, &ids, to, deliveries).await?;
    let why = "it was deleted from the stream: its likes are lost";
    Ok(ActionResult::but(taken.len(), entries, |entry| deleted.contains(&entry.id()), why))
}

async fn claim(
    ClaimOptions { to, act: options }: ClaimOptions,
    interrupt: &CancellationToken,
) -> Result<Exit, CliError> {
    let (context, filter) = options.open(interrupt).await?;
    context.check_consumer(&to).await?;
    let act = options.act("pending claim", format!("made those of {to}"), &filter, interrupt);
    act.run(
        &context,
        |bound| PendingScan::new(&context, &filter, bound.cloned(), false),
        None,
        async |partition, entries| hand_over(&context, partition, entries, &to, None).await,
    )
    .await
}

async fn retry(options: ActOptions, interrupt: &CancellationToken) -> Result<Exit, CliError> {
    let (context, filter) = options.open(interrupt).await?;
    let act = options.act("pending retry", "tried again", &filter, interrupt);
    act.tell(&retry_matching(&context, &filter, &act, Some(0)).await?)
}

/// Has entries tried again by whoever reads their partition, with this number of deliveries or the one that they have.
pub(crate) async fn retry_matching(
    context: &Context,
    filter: &Filter,
    act: &Action<'_>,
    deliveries: Option<u64>,
) -> Result<Report, CliError> {
    act.apply(
        context,
        |bound| PendingScan::new(context, filter, bound.cloned(), false),
        None,
        async |partition, entries| {
            hand_over(context, partition, entries, REASSIGN_CONSUMER, deliveries).await
        },
    )
    .await
}

async fn ack(
    AckOptions { act: options, postgres }: AckOptions,
    interrupt: &CancellationToken,
) -> Result<Exit, CliError> {
    let (context, filter) = options.open(interrupt).await?;
    let (client, _) =
        context::postgres(&postgres, "likesctl pending ack", options.redis.startup_timeout).await?;
    let act = options.act("pending ack", "acknowledged, if the table has their likes", &filter, interrupt);
    act.run(
        &context,
        |bound| PendingScan::new(&context, &filter, bound.cloned(), true),
        None,
        async |partition, entries| {
            let stored = stored(&client, entries).await?;
            let ids: Vec<EntryId> = stored.iter().copied().collect();
            let acked =
                if ids.is_empty() { 0 } else { context.streams.drop_pending(partition, &ids).await?.len() };
            let why = "not all of its likes are in the table";
            Ok(ActionResult::but(acked, entries, |entry| !stored.contains(&entry.id()), why))
        },
    )
    .await
}

/// Those of the entries that can be read as a whole, and whose likes are all in the table.
async fn stored(client: &tokio_postgres::Client, entries: &[Pending]) -> Result<HashSet<EntryId>, CliError> {
    let mut stored = HashSet::new();
    for pending in entries {
        let payload = pending.fields.as_deref().and_then(codec::payload);
        let Some(Ok(decoded)) = payload.map(|payload| codec::decode(&payload)) else { continue };
        if decoded.bad.is_empty() && table::missing(client, &decoded.likes).await?.is_empty() {
            stored.insert(pending.id());
        }
    }
    Ok(stored)
}

async fn drop_entries(
    DropOptions { act: options, export }: DropOptions,
    interrupt: &CancellationToken,
) -> Result<Exit, CliError> {
    let (context, filter) = options.open(interrupt).await?;
    let act = options.act("pending drop", "given up, unstored", &filter, interrupt);
    let record = |pending: &Pending| dropped(&context, pending);
    act.run(
        &context,
        |bound| PendingScan::new(&context, &filter, bound.cloned(), true),
        Some((&export, &record)),
        async |partition, entries| {
            let ids: Vec<EntryId> = entries.iter().map(Item::id).collect();
            let dropped = context.streams.drop_pending(partition, &ids).await?;
            Ok(ActionResult { done: dropped.len() as u64, skipped: Vec::new() })
        },
    )
    .await
}
