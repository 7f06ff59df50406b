//! `likesctl pause` and `resume`: stops consumers from reading partitions, and resumes reading.

use clap::Args;
use consumer::group::static_assignment::StaticAssignment;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::{
    action::{Action, ActionArgs},
    context::RedisAccess,
    exit::{CliError, Exit},
    output::print_document,
};

#[derive(Args)]
pub(crate) struct Options {
    /// Partitions, such as 3 or 0-3,8 [default: all]
    #[arg(short, long, value_name = "PARTITIONS")]
    partition: Option<StaticAssignment>,

    #[command(flatten)]
    action: ActionArgs,

    #[command(flatten)]
    redis: RedisAccess,
}

#[derive(Serialize)]
struct PauseReport {
    command: &'static str,
    dry_run: bool,
    /// Number of partitions whose state has changed.
    changed: u64,
}

pub(crate) async fn pause(options: Options, interrupt: &CancellationToken) -> Result<Exit, CliError> {
    set(options, interrupt, true).await
}

pub(crate) async fn resume(options: Options, interrupt: &CancellationToken) -> Result<Exit, CliError> {
    set(options, interrupt, false).await
}

async fn set(options: Options, interrupt: &CancellationToken, pauses: bool) -> Result<Exit, CliError> {
    let Options { partition, action: args, redis } = options;
    let context = redis.open_group(interrupt).await?;
    let chosen = partition.as_ref().map(|wanted| context.partitions_of(Some(wanted))).transpose()?;
    let now = context.streams.paused().await?;
    let noun =
        if chosen.as_ref().is_some_and(|chosen| chosen.len() == 1) { "partition" } else { "partitions" };
    let selection =
        partition.map_or_else(|| "all partitions".to_owned(), |partition| format!("{noun} {partition}"));
    let effect = if pauses {
        format!(
            "consumers will stop reading {selection} until likesctl resume; in-flight likes are stored, and ingest keeps accepting likes"
        )
    } else {
        format!("consumers will resume reading {selection}")
    };
    let command = if pauses { "pause" } else { "resume" };
    let action = Action {
        command,
        items: ("partitions", "partition"),
        effect,
        selection: &selection,
        args: &args,
        pace: None,
        interrupt,
    };
    let streams = &context.streams;
    let work = async {
        match chosen.as_deref() {
            chosen if pauses => streams.pause(chosen).await,
            Some(chosen) if now.all => streams.resume_of_all(chosen, context.partitions).await,
            Some(chosen) => streams.resume(chosen).await,
            None => streams.resume_all().await,
        }
    };
    let number = chosen.as_ref().map_or(context.partitions.get().into(), Vec::len) as u64;
    let changed = action.once(&context, number, Box::pin(work)).await?;
    let report = PauseReport { command, dry_run: args.dry_run, changed: changed.unwrap_or(0) };
    print_document(args.output, &report, |_| match changed {
        None => "no partition was changed".to_owned(),
        Some(0) => format!("nothing to do: already {command}d"),
        Some(_) => format!("{command}d; takes effect within seconds"),
    })?;
    Ok(Exit::Done)
}
