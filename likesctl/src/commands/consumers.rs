//! `likesctl consumers`: lists and removes consumers of the group.

use clap::{Args, Subcommand};
use consumer::{group::static_assignment::StaticAssignment, stream::REASSIGN_CONSUMER};
use fred::prelude::Error;
use serde::Serialize;
use shared::stderr::eprint_line;
use tokio_util::sync::CancellationToken;

use crate::{
    action::{Action, ActionArgs, PaceArgs},
    context::{Context, RedisAccess},
    exit::{CliError, Exit},
    output::{Column, OutputArgs, Row, age_or_none, many, print_document, table},
    overview::ConsumerOverview,
    reassign::reassign,
    selection::Filter,
};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// List the consumers of the group
    ///
    /// Includes dead consumers that are still in the group.
    #[command(after_help = "Examples:\n  likesctl consumers list\n  likesctl consumers list -o wide")]
    List(ListOptions),
    /// Remove a dead consumer and reassign its pending entries
    ///
    /// The owners of the partitions claim the entries within seconds. A live consumer is not removed: stop it, and it
    /// leaves the group.
    #[command(after_help = "Examples:\n  likesctl consumers remove host-1-77-0a1b2c3d")]
    Remove(RemoveOptions),
}

#[derive(Args)]
pub(crate) struct ListOptions {
    /// Partitions, such as 3 or 0-3,8 [default: all]
    #[arg(short, long, value_name = "PARTITIONS")]
    partition: Option<StaticAssignment>,

    #[command(flatten)]
    output: OutputArgs,

    #[command(flatten)]
    redis: RedisAccess,
}

#[derive(Args)]
pub(crate) struct RemoveOptions {
    /// Name of the consumer
    #[arg(value_name = "NAME")]
    name: String,

    #[command(flatten)]
    pace: PaceArgs,

    #[command(flatten)]
    action: ActionArgs,

    #[command(flatten)]
    redis: RedisAccess,
}

#[derive(Serialize)]
struct RemoveReport {
    command: &'static str,
    dry_run: bool,
    interrupted: bool,
    /// Number of reassigned pending entries.
    reassigned: u64,
    removed: bool,
}

impl Command {
    pub(crate) fn is_change(&self) -> bool {
        matches!(self, Self::Remove(_))
    }
}

impl Row for ConsumerOverview {
    const COLUMNS: &'static [Column] = &[
        Column::text("CONSUMER"),
        Column::text("STATE"),
        Column::text("PARTITIONS"),
        Column::number("PENDING"),
        Column::number("HEARTBEAT"),
        Column::number("IDLE"),
        Column::text("STATIC").wide(),
    ];

    fn cells(&self) -> Vec<String> {
        let partitions: Vec<String> = self.partitions.iter().map(u16::to_string).collect();
        vec![
            self.name.clone(),
            self.state.to_owned(),
            if partitions.is_empty() { "-".to_owned() } else { partitions.join(",") },
            self.pending.to_string(),
            age_or_none(self.heartbeat_ms_ago),
            age_or_none(self.idle_ms),
            self.static_assignment.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    }
}

pub(crate) async fn run(command: Command, interrupt: &CancellationToken) -> Result<Exit, CliError> {
    match command {
        Command::List(options) => list(options).await,
        Command::Remove(options) => remove(options, interrupt).await,
    }
}

async fn list(ListOptions { partition, output, redis }: ListOptions) -> Result<Exit, CliError> {
    let context = redis.open().await?;
    let partitions = context.partitions_of(partition.as_ref())?;
    let mut rows = context.overview(&partitions).await?.consumers;
    if partition.is_some() {
        let wanted: Vec<u16> = partitions.iter().map(|partition| partition.number()).collect();
        rows.retain(|row| row.pending > 0 || row.partitions.iter().any(|own| wanted.contains(own)));
    }
    print_document(output, &rows, |wide| {
        if rows.is_empty() { "the group has no consumers".to_owned() } else { table(&rows, wide) }
    })?;
    Ok(Exit::Done)
}

async fn remove(
    RemoveOptions { name, pace, action: args, redis }: RemoveOptions,
    interrupt: &CancellationToken,
) -> Result<Exit, CliError> {
    let context = redis.open_group(interrupt).await?;
    let partitions: Vec<_> = context.partitions.partitions().collect();
    let overview = context.overview(&partitions).await?;
    let Some(consumer) = overview.consumers.into_iter().find(|consumer| consumer.name == name) else {
        return Err(context.unknown_consumer(&name));
    };
    check_removable(&consumer)?;
    let mut action = Action {
        command: "consumers remove",
        items: ("pending entries", "pending entry"),
        effect: format!(
            "reassigned to the owners of their partitions; consumer {name} will be removed from the group"
        ),
        selection: &name,
        args: &args,
        pace: Some(pace),
        interrupt,
    };
    let mut reassigned = None;
    if consumer.pending > 0 {
        let filter = Filter { consumer: Some(name.clone()), ..Filter::all_of(partitions) };
        // Delivery counts are kept: one of the entries may have crashed this consumer.
        let report = reassign(&context, &filter, &action, REASSIGN_CONSUMER, None).await?;
        if report.interrupted || args.dry_run {
            return print_report(&args, report.done, report.interrupted, false);
        }
        reassigned = Some(report.done).filter(|_| report.matched > 0);
    }
    let removed = if reassigned.is_some() {
        remove_everywhere(&context, &name).await?
    } else {
        // Not confirmed yet: the consumer had no pending entries, or others have claimed them since.
        action.effect = format!("consumer {name} will be removed from the group; it has no pending entries");
        let removed = action.once(&context, 1, Box::pin(remove_everywhere(&context, &name))).await?;
        removed.unwrap_or(false)
    };
    print_report(&args, reassigned.unwrap_or(0), false, removed)
}

fn check_removable(consumer: &ConsumerOverview) -> Result<(), CliError> {
    let name = &consumer.name;
    if consumer.is_alive() {
        let line = format!("consumer {name} is alive; stop it, and it leaves the group");
        return Err(CliError::Refused(line));
    }
    if consumer.pending > 0 && name == REASSIGN_CONSUMER {
        let line = format!(
            "the owners of the partitions have not claimed the entries of {name} yet; check that consumers are running"
        );
        return Err(CliError::Refused(line));
    }
    Ok(())
}

/// Removes a consumer from each partition where it has no pending entries. Returns whether it is gone from all.
async fn remove_everywhere(context: &Context, name: &str) -> Result<bool, Error> {
    if !context.streams.forget_member(name).await? {
        return Ok(false);
    }
    for partition in context.partitions.partitions() {
        context.streams.remove_consumer(partition, name).await?;
    }
    Ok(!context.has_consumer(name).await?)
}

fn print_report(
    args: &ActionArgs,
    reassigned: u64,
    interrupted: bool,
    removed: bool,
) -> Result<Exit, CliError> {
    let dry_run = args.dry_run;
    let report = RemoveReport { command: "consumers remove", dry_run, interrupted, reassigned, removed };
    let (exit, text) = match report {
        RemoveReport { interrupted: true, .. } => {
            (Exit::Interrupted, "interrupted; run the command again to continue".to_owned())
        }
        RemoveReport { dry_run: true, .. } => (Exit::Done, "dry run: nothing was changed".to_owned()),
        RemoveReport { removed: true, .. } => {
            let entries = many(reassigned, "pending entry", "pending entries");
            (Exit::Done, format!("removed; {entries} reassigned to the owners of the partitions"))
        }
        RemoveReport { .. } => (Exit::Partial, "not removed".to_owned()),
    };
    print_document(args.output, &report, |_| text)?;
    if exit == Exit::Partial {
        eprint_line(
            "the consumer is alive again, or has pending entries that were deleted from their streams; to drop those, run likesctl pending drop --consumer NAME",
        );
    }
    Ok(exit)
}
