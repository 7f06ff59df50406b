//! `likesctl pending`: lists and changes pending entries.

use std::collections::HashSet;

use clap::{Args, Subcommand};
use consumer::{config::group_name, entry::EntryId, stream::REASSIGN_CONSUMER};
use futures_util::FutureExt;
use shared::{settings::args::PostgresArgs, wire::codec};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::{
    action::{Action, ActionArgs, ActionResult, Apply, Change, ExportArgs, Exported, PaceArgs},
    context::{Context, RedisAccess},
    database,
    dead_letter_record::dropped,
    exit::{CliError, Exit},
    likes_table,
    output::{OutputArgs, Row, Rows, print_document},
    pending_detail::{PendingDetail, PendingRow, not_pending},
    reassign::reassign,
    scan::{Item, Pending, PendingScan, Scan},
    selection::{AllArg, EntryRef, Filter, PendingSelection},
};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// List pending entries
    ///
    /// A pending entry was delivered to a consumer, which has not acknowledged it.
    #[command(after_help = "Examples:\n  \
        likesctl pending list --min-idle 5m\n  \
        likesctl pending list -p 3 --min-deliveries 5 -o ndjson")]
    List(ListOptions),
    /// Show pending entries with their likes
    #[command(after_help = "Examples:\n  likesctl pending show 7/1700000000000-0")]
    Show(ShowOptions),
    /// Reassign pending entries to another consumer
    ///
    /// Restarts their idle time at 0. The new consumer does not read them by itself: the owner of the partition claims
    /// them after CLAIM_MIN_IDLE. To have them stored within seconds, use likesctl pending retry.
    #[command(after_help = "Examples:\n  likesctl pending claim --consumer host-1-77 --to host-2-12")]
    Claim(ClaimOptions),
    /// Retry pending entries
    ///
    /// The owner of each partition claims the entries within seconds. Their delivery counts restart at 0. Safe for
    /// in-flight entries: each like is stored once.
    #[command(
        after_help = "Examples:\n  likesctl pending retry 7/1700000000000-0\n  likesctl pending retry --min-idle 10m"
    )]
    Retry(ChangeOptions),
    /// Acknowledge pending entries whose likes are all in the table
    ///
    /// Skips other entries (exit code 4).
    #[command(after_help = "Examples:\n  likesctl pending ack --consumer host-1-77")]
    Ack(AckOptions),
    /// Drop pending entries without storing their likes
    ///
    /// Dropped entries are first written to a file, which likesctl dead import can read.
    #[command(
        after_help = "Examples:\n  likesctl pending drop 7/1700000000000-0 --reason-text 'crashes consumers, ticket 7'"
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
    /// Entries to show
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
    pending: PendingSelection,
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
pub(crate) struct ClaimOptions {
    /// New consumer of the entries
    #[arg(long, value_name = "NAME", value_parser = group_name)]
    to: String,
    #[command(flatten)]
    change: ChangeOptions,
}

#[derive(Args)]
pub(crate) struct AckOptions {
    #[command(flatten)]
    change: ChangeOptions,
    #[command(flatten)]
    postgres: PostgresArgs,
}

#[derive(Args)]
pub(crate) struct DropOptions {
    #[command(flatten)]
    change: ChangeOptions,
    #[command(flatten)]
    export: ExportArgs,
}

impl Command {
    pub(crate) fn is_change(&self) -> bool {
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
    let filter = pending.resolve(&context).await?;
    let now_ms = context.now_ms().await?;
    check_exists(&context, &filter).await?;
    let mut scan = PendingScan::new(&context, &filter, None, false);
    let mut rows = Rows::new(output, PendingRow::COLUMNS);
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
        details.push(PendingDetail::read(&context, id).await?);
    }
    print_document(output, &details, |_| {
        details.iter().map(PendingDetail::text).collect::<Vec<_>>().join("\n\n")
    })?;
    Ok(Exit::Done)
}

impl ChangeOptions {
    async fn open(&self, interrupt: &CancellationToken) -> Result<(Context, Filter), CliError> {
        let context = self.redis.open_group(interrupt).await?;
        let filter = self.pending.resolve(&context).await?.or_all(self.all)?;
        check_exists(&context, &filter).await?;
        Ok((context, filter))
    }

    fn action<'a>(
        &'a self,
        command: &'static str,
        effect: impl Into<String>,
        filter: &'a Filter,
        interrupt: &'a CancellationToken,
    ) -> Action<'a> {
        Action {
            command,
            items: ("pending entries", "pending entry"),
            effect: effect.into(),
            selection: &filter.text,
            args: &self.action,
            pace: Some(self.pace),
            interrupt,
        }
    }
}

/// Checks that the selected consumer exists and that the entries on the command line are pending.
async fn check_exists(context: &Context, filter: &Filter) -> Result<(), CliError> {
    if let Some(name) = &filter.consumer {
        context.check_consumer(name).await?;
    }
    for entry in &filter.named {
        let partition = context.partition(entry.partition)?;
        if context.streams.pending(partition, (entry.id, entry.id), None, 0, 1).await?.is_empty() {
            return Err(not_pending(*entry));
        }
    }
    Ok(())
}

async fn claim(
    ClaimOptions { to, change: options }: ClaimOptions,
    interrupt: &CancellationToken,
) -> Result<Exit, CliError> {
    let (context, filter) = options.open(interrupt).await?;
    context.check_consumer(&to).await?;
    let action = options.action("pending claim", format!("reassigned to {to}"), &filter, interrupt);
    action.print(&reassign(&context, &filter, &action, &to, None).await?)
}

async fn retry(options: ChangeOptions, interrupt: &CancellationToken) -> Result<Exit, CliError> {
    let (context, filter) = options.open(interrupt).await?;
    let action = options.action("pending retry", "retried", &filter, interrupt);
    action.print(&reassign(&context, &filter, &action, REASSIGN_CONSUMER, Some(0)).await?)
}

async fn ack(
    AckOptions { change: options, postgres }: AckOptions,
    interrupt: &CancellationToken,
) -> Result<Exit, CliError> {
    let (context, filter) = options.open(interrupt).await?;
    let limit = options.redis.startup_timeout;
    let (client, ..) = database::connect(&context, &postgres, "likesctl pending ack", limit).await?;
    let effect = "acknowledged if all their likes are in the table";
    let action = options.action("pending ack", effect, &filter, interrupt);
    let context = &context;
    let client = &client;
    let change = Change {
        scan: &|bound| Box::new(PendingScan::new(context, &filter, bound, true)),
        apply: Apply::Change(&|partition, entries| {
            async move {
                let stored = stored(client, &entries).await?;
                let ids: Vec<EntryId> = stored.iter().copied().collect();
                let acked = if ids.is_empty() {
                    0
                } else {
                    context.streams.drop_pending(partition, &ids).await?.len()
                };
                let is_skipped = |entry: &Pending| !stored.contains(&entry.id());
                let reason = "not all of its likes are in the table";
                Ok(ActionResult::with_skipped(acked, &entries, is_skipped, reason))
            }
            .boxed_local()
        }),
    };
    action.run(context, change).await
}

/// Returns the entries that can be fully decoded and whose likes are all in the table.
async fn stored(client: &Client, entries: &[Pending]) -> Result<HashSet<EntryId>, CliError> {
    let mut stored = HashSet::new();
    for pending in entries {
        let payload = pending.fields.as_deref().and_then(codec::payload);
        let Some(Ok(decoded)) = payload.map(|payload| codec::decode(&payload)) else { continue };
        if decoded.bad == 0 && likes_table::missing(client, &decoded.likes).await?.is_empty() {
            stored.insert(pending.id());
        }
    }
    Ok(stored)
}

async fn drop_entries(
    DropOptions { change: options, export }: DropOptions,
    interrupt: &CancellationToken,
) -> Result<Exit, CliError> {
    let (context, filter) = options.open(interrupt).await?;
    let action = options.action("pending drop", "dropped without storing its likes", &filter, interrupt);
    let context = &context;
    let change = Change {
        scan: &|bound| Box::new(PendingScan::new(context, &filter, bound, true)),
        apply: Apply::Remove {
            export: &export,
            record: &|pending| dropped(context, pending),
            remove: &|partition, entries: Exported<Pending>| {
                async move {
                    let ids: Vec<EntryId> = entries.into_entries().iter().map(Item::id).collect();
                    let dropped = context.streams.drop_pending(partition, &ids).await?;
                    Ok(ActionResult { done: dropped.len() as u64, skipped: Vec::new() })
                }
                .boxed_local()
            },
        },
    };
    action.run(context, change).await
}
