//! `likesctl pause`, `resume` and `drain`

use std::time::Duration;

use clap::Args;
use consumer::group::static_assignment::StaticAssignment;
use fred::prelude::Error;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use shared::settings::args::positive_duration;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    action::{Action, ActionArgs, say},
    context::{Context, RedisAccess},
    exit::{CliError, Exit},
    output::{OutputArgs, count, many, print_document},
};

/// Between two looks at how much is left.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

#[derive(Args)]
pub(crate) struct PauseOptions {
    /// Only these partitions, like 3 or 0-3,8
    #[arg(short, long, value_name = "PARTITIONS")]
    partition: Option<StaticAssignment>,

    #[command(flatten)]
    action: ActionArgs,

    #[command(flatten)]
    redis: RedisAccess,
}

#[derive(Args)]
pub(crate) struct DrainOptions {
    /// Only these partitions, like 3 or 0-3,8
    #[arg(short, long, value_name = "PARTITIONS")]
    partition: Option<StaticAssignment>,

    /// How long to wait at most [default: for ever]
    #[arg(long, value_name = "DURATION", value_parser = positive_duration)]
    timeout: Option<Duration>,

    #[command(flatten)]
    output: OutputArgs,

    #[command(flatten)]
    redis: RedisAccess,
}

#[derive(Serialize)]
struct PauseReport {
    command: &'static str,
    dry_run: bool,
    /// How many were not so before.
    changed: u64,
}

pub(crate) async fn pause(options: PauseOptions, interrupt: &CancellationToken) -> Result<Exit, CliError> {
    set(options, interrupt, true).await
}

pub(crate) async fn resume(options: PauseOptions, interrupt: &CancellationToken) -> Result<Exit, CliError> {
    set(options, interrupt, false).await
}

async fn set(options: PauseOptions, interrupt: &CancellationToken, pauses: bool) -> Result<Exit, CliError> {
    let PauseOptions { partition, action, redis } = options;
    let context = redis.open_group(interrupt).await?;
    let chosen = partition.as_ref().map(|wanted| context.partitions_of(Some(wanted))).transpose()?;
    let now = context.streams.paused().await?;
    let what =
        partition.map_or_else(|| "all partitions".to_owned(), |partition| format!("partitions {partition}"));
    let effect = if pauses {
        format!(
            "consumers will read nothing of {what} until likesctl resume; what they have in hand they store; callers are served on"
        )
    } else {
        format!("consumers will read {what} again")
    };
    let (command, selection) = (if pauses { "pause" } else { "resume" }, what);
    let number = chosen.as_ref().map_or(context.partitions.get().into(), Vec::len) as u64;
    let what = ("partitions", "partition");
    let act = Action { command, what, effect, selection: &selection, args: &action, pace: None, interrupt };
    let work = async {
        match chosen.as_deref() {
            chosen if pauses => context.streams.pause(chosen).await,
            Some(chosen) if now.all => context.streams.resume_of_all(chosen, context.partitions).await,
            Some(chosen) => context.streams.resume(chosen).await,
            None => context.streams.resume_all().await,
        }
    };
    let changed = act.once(&context, number, Box::pin(work)).await?;
    let report = PauseReport { command, dry_run: action.dry_run, changed: changed.unwrap_or(0) };
    print_document(action.output, &report, |_| match changed {
        None => "dry run: nothing was changed".to_owned(),
        Some(0) => format!("nothing to do: it was {command}d before"),
        Some(_) => format!("{command}d: consumers follow within seconds"),
    })?;
    Ok(Exit::Done)
}

#[derive(Serialize)]
struct DrainReport {
    drained: bool,
    backlog: Option<u64>,
    waited_ms: u64,
}

pub(crate) async fn drain(options: DrainOptions, interrupt: &CancellationToken) -> Result<Exit, CliError> {
    let context = options.redis.open_group(interrupt).await?;
    context.partitions_of(options.partition.as_ref())?;
    let started = Instant::now();
    let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {msg}");
    let bar = ProgressBar::new(0).with_prefix("drain");
    let bar = style.map_or(bar.clone(), |style| bar.with_style(style));
    let (mut most, mut trouble) = (0, None);
    let (ended, backlog) = loop {
        let backlog = match look(&context, options.partition.as_ref()).await {
            Ok((left, why)) => {
                if why.is_some() && why != trouble {
                    bar.suspend(|| say(why.unwrap_or_default()));
                }
                trouble = why;
                left
            }
            // It may be over soon, and the time is bounded by whoever wants it so.
            Err(error) => {
                bar.suspend(|| say(&format!("how much is left is not known: {error}")));
                None
            }
        };
        match backlog {
            Some(0) => break (Exit::Done, backlog),
            Some(left) => {
                most = most.max(left);
                bar.set_length(most);
                bar.set_position(most - left);
                bar.set_message(format!("{} left", count(left)));
            }
            None => bar.set_message("how much is left is not known"),
        }
        if options.timeout.is_some_and(|timeout| started.elapsed() >= timeout) {
            break (Exit::Unwell, backlog);
        }
        if interrupt.run_until_cancelled(sleep(LOOK_INTERVAL)).await.is_none() {
            break (Exit::Interrupted, backlog);
        }
    };
    bar.finish_and_clear();
    let waited_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let report = DrainReport { drained: ended == Exit::Done, backlog, waited_ms };
    print_document(options.output, &report, |_| match (ended, backlog) {
        (Exit::Done, _) => "drained: the backlog is 0".to_owned(),
        (_, Some(left)) => format!("not drained: {} left", many(left, "entry is", "entries are")),
        (_, None) => "not drained: how much is left is not known".to_owned(),
    })?;
    Ok(ended)
}

/// How much is left, and why that may not get less.
async fn look(
    context: &Context,
    wanted: Option<&StaticAssignment>,
) -> Result<(Option<u64>, Option<&'static str>), Error> {
    let overview = context.overview(&context.partitions_now(wanted).await?).await?;
    let mut waiting = overview.partitions.iter().filter(|row| row.backlog != Some(0));
    let is_paused = waiting.clone().any(|row| row.paused);
    let is_unread = waiting.any(|row| row.owners.is_empty());
    let why = match (is_paused, is_unread) {
        (true, _) => Some("a paused partition has a backlog, which nobody stores: likesctl resume"),
        (false, true) => Some("nobody reads a partition that has a backlog: likesctl doctor"),
        (false, false) => None,
    };
    Ok((overview.total.backlog, why))
}
