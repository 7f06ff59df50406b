//! `likesctl pause`, `resume` and `drain`

use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use shared::config::positive_duration;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{
    access::RedisAccess,
    action::{Act, ActionArgs},
    exit::{CliError, Exit},
    output::{OutputArgs, count, print_document},
};
use crate::fixed_partitions::FixedPartitions;

/// Between two looks at how much is left.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

#[derive(Args)]
pub(super) struct PauseOptions {
    /// Only these partitions, like 3 or 0-3,8
    #[arg(short, long, value_name = "PARTITIONS")]
    partition: Option<FixedPartitions>,

    #[command(flatten)]
    action: ActionArgs,

    #[command(flatten)]
    redis: RedisAccess,
}

#[derive(Args)]
pub(super) struct DrainOptions {
    /// Only these partitions, like 3 or 0-3,8
    #[arg(short, long, value_name = "PARTITIONS")]
    partition: Option<FixedPartitions>,

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

pub(super) async fn pause(options: PauseOptions, interrupt: &CancellationToken) -> Result<Exit, CliError> {
    set(options, interrupt, true).await
}

pub(super) async fn resume(options: PauseOptions, interrupt: &CancellationToken) -> Result<Exit, CliError> {
    set(options, interrupt, false).await
}

async fn set(options: PauseOptions, interrupt: &CancellationToken, pauses: bool) -> Result<Exit, CliError> {
    let PauseOptions { partition, action, redis } = options;
    let site = redis.open().await?;
    let chosen = partition.as_ref().map(|wanted| site.partitions_of(Some(wanted))).transpose()?;
    let now = site.streams.paused().await?;
    if !pauses && chosen.is_some() && now.all {
        let line = "all partitions are paused as a whole: resume all of them, and pause those that should be"
            .to_owned();
        return Err(CliError::Refused(line));
    }
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
    let number = chosen.as_ref().map_or(site.partitions.get().into(), Vec::len) as u64;
    let what = ("partitions", "partition");
    let act = Act { command, what, effect, selection: &selection, args: &action, interrupt };
    let work = async {
        let chosen = chosen.as_deref();
        if pauses {
            return site.streams.pause(chosen).await;
        }
        // Without a choice nothing stays paused, however it was.
        let all = site.partitions.partitions().collect::<Vec<_>>();
        let some = site.streams.resume(Some(chosen.unwrap_or(&all))).await?;
        Ok(if chosen.is_none() { some + site.streams.resume(None).await? } else { some })
    };
    let changed = act.once(&site, number, work).await?;
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

pub(super) async fn drain(options: DrainOptions, interrupt: &CancellationToken) -> Result<Exit, CliError> {
    let site = options.redis.open().await?;
    let partitions = site.partitions_of(options.partition.as_ref())?;
    let started = Instant::now();
    let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {msg}");
    let bar = ProgressBar::new(0).with_prefix("drain");
    let bar = style.map_or(bar.clone(), |style| bar.with_style(style));
    let (mut most, mut backlog);
    most = 0;
    let ended = loop {
        let overview = site.overview(&partitions).await?;
        let paused = overview.partitions.iter().any(|row| row.paused && row.backlog != Some(0));
        backlog = overview.total.backlog;
        if paused {
            bar.finish_and_clear();
            let line =
                "a paused partition has a backlog, which nobody will store: likesctl resume".to_owned();
            return Err(CliError::Refused(line));
        }
        match backlog {
            Some(0) => break Exit::Done,
            Some(left) => {
                most = most.max(left);
                bar.set_length(most);
                bar.set_position(most - left);
                bar.set_message(format!("{} left", count(left)));
            }
            None => bar.set_message("how much is left is not known yet"),
        }
        if options.timeout.is_some_and(|timeout| started.elapsed() >= timeout) {
            break Exit::Unwell;
        }
        if interrupt.run_until_cancelled(sleep(LOOK_INTERVAL)).await.is_none() {
            break Exit::Interrupted;
        }
    };
    bar.finish_and_clear();
    let waited_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let report = DrainReport { drained: ended == Exit::Done, backlog, waited_ms };
    print_document(options.output, &report, |_| match (ended, backlog) {
        (Exit::Done, _) => "drained: the backlog is 0".to_owned(),
        (_, Some(left)) => format!("not drained: {} entries are left", count(left)),
        (_, None) => "not drained: how much is left is not known".to_owned(),
    })?;
    Ok(ended)
}
