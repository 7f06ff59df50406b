//! `likesctl consumers`

use clap::{Args, Subcommand};
use fred::prelude::Error;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::{
    action::{Action, ActionArgs, PaceArgs, say},
    commands::{
        pending::retry_matching,
        status::{self, ViewOptions},
    },
    context::{Context, REASSIGN_CONSUMER, RedisAccess},
    exit::{CliError, Exit},
    output::{many, print_document},
    selection::Filter,
};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Lists the consumers of the group, dead ones with entries as well
    #[command(after_help = "Example: likesctl consumers list -o wide")]
    List(ViewOptions),
    /// Takes a dead consumer out of the group; its pending entries go to those that live
    #[command(
        after_help = "One that lives is not removed: stop it first.\n\nExample: likesctl consumers remove host-1-77-0a1b2c3d"
    )]
    Remove(RemoveOptions),
}

#[derive(Args)]
pub(crate) struct RemoveOptions {
    /// Its name
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
    /// Pending entries that others have now.
    given: u64,
    removed: bool,
}

impl Command {
    pub(crate) fn changes_something(&self) -> bool {
        matches!(self, Self::Remove(_))
    }
}

pub(crate) async fn run(command: Command, interrupt: &CancellationToken) -> Result<Exit, CliError> {
    match command {
        Command::List(options) => status::consumers(options).await,
        Command::Remove(options) => remove(options, interrupt).await,
    }
}

async fn remove(
    RemoveOptions { name, pace, action, redis }: RemoveOptions,
    interrupt: &CancellationToken,
) -> Result<Exit, CliError> {
    let context = redis.open_group(interrupt).await?;
    let all: Vec<_> = context.partitions.partitions().collect();
    let overview = context.overview(&all).await?;
    let Some(consumer) = overview.consumers.into_iter().find(|consumer| consumer.name == name) else {
        return Err(context.unknown_consumer(&name));
    };
    if consumer.is_alive() {
        return Err(CliError::Refused(format!("{name} is alive: stop it, then it leaves by itself")));
    }
    if consumer.pending > 0 && name == REASSIGN_CONSUMER {
        let line =
            "what it has waits to be claimed by those that read the partitions: start consumers".to_owned();
        return Err(CliError::Refused(line));
    }
    let mut act = Action {
        command: "consumers remove",
        what: ("pending entries", "pending entry"),
        effect: format!("given to whoever reads their partitions, and {name} removed"),
        selection: &name,
        args: &action,
        pace: Some(pace),
        interrupt,
    };
    let mut given = None;
    if consumer.pending > 0 {
        let filter = Filter { partitions: all, consumer: Some(name.clone()), ..Filter::everything() };
        // How often an entry was delivered stays on record: it may be what killed this one.
        let report = retry_matching(&context, &filter, &act, None).await?;
        if report.interrupted || action.dry_run {
            return tell(&action, report.done, report.interrupted, false);
        }
        given = Some(report.done).filter(|_| report.matched > 0);
    }
    let removed = if given.is_some() {
        take_out(&context, &name).await?
    } else {
        // Nothing was pending, or others have claimed it meanwhile: this was not asked about yet.
        act.effect = format!("{name}, which has nothing pending, will be removed");
        let removed = act.once(&context, 1, Box::pin(take_out(&context, &name))).await?;
        removed.unwrap_or(false)
    };
    tell(&action, given.unwrap_or(0), false, removed)
}

/// Takes a consumer out wherever it has nothing pending; says whether that is everywhere.
async fn take_out(context: &Context, name: &str) -> Result<bool, Error> {
    if !context.streams.forget_member(name).await? {
        return Ok(false);
    }
    for partition in context.partitions.partitions() {
        context.streams.remove_consumer(partition, name).await?;
    }
    Ok(!context.knows_consumer(name).await?)
}

fn tell(action: &ActionArgs, given: u64, interrupted: bool, removed: bool) -> Result<Exit, CliError> {
    let dry_run = action.dry_run;
    let report = RemoveReport { command: "consumers remove", dry_run, interrupted, given, removed };
    print_document(action.output, &report, |_| match report {
        RemoveReport { dry_run: true, .. } => "dry run: nothing was changed".to_owned(),
        RemoveReport { interrupted: true, .. } => "interrupted: run it again to go on".to_owned(),
        RemoveReport { removed: true, .. } => {
            format!(
                "removed; {} given to whoever reads the partitions",
                many(given, "pending entry", "pending entries")
            )
        }
        RemoveReport { .. } => "not removed".to_owned(),
    })?;
    Ok(match report {
        RemoveReport { interrupted: true, .. } => Exit::Interrupted,
        RemoveReport { dry_run: false, removed: false, .. } => {
            say(
                "it has come to life, or has entries that were deleted from their streams: likesctl pending drop --consumer NAME takes those off",
            );
            Exit::Partial
        }
        RemoveReport { .. } => Exit::Done,
    })
}
