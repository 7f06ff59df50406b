//! `likesctl drain`: waits until the backlog is 0.

use std::time::Duration;

use clap::Args;
use consumer::group::static_assignment::StaticAssignment;
use fred::prelude::Error;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use shared::{settings::args::positive_duration, stderr::eprint_line};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    context::{Context, RedisAccess},
    exit::{CliError, Exit},
    output::{OutputArgs, count, many, print_document},
};

/// Time between two measurements of the backlog.
const INTERVAL: Duration = Duration::from_millis(250);

#[derive(Args)]
pub(crate) struct Options {
    /// Partitions, such as 3 or 0-3,8 [default: all]
    #[arg(short, long, value_name = "PARTITIONS")]
    partition: Option<StaticAssignment>,

    /// Maximum time to wait [default: unlimited]
    #[arg(long, value_name = "DURATION", value_parser = positive_duration)]
    timeout: Option<Duration>,

    #[command(flatten)]
    output: OutputArgs,

    #[command(flatten)]
    redis: RedisAccess,
}

#[derive(Serialize)]
struct DrainReport {
    drained: bool,
    backlog: Option<u64>,
    waited_ms: u64,
}

pub(crate) async fn run(options: Options, interrupt: &CancellationToken) -> Result<Exit, CliError> {
    let context = options.redis.open_group(interrupt).await?;
    context.partitions_of(options.partition.as_ref())?;
    let started = Instant::now();
    let mut progress = Progress::new();
    let (exit, backlog) = loop {
        let backlog = progress.show(measure(&context, options.partition.as_ref()).await);
        if backlog == Some(0) {
            break (Exit::Done, backlog);
        }
        if options.timeout.is_some_and(|timeout| started.elapsed() >= timeout) {
            break (Exit::Failure, backlog);
        }
        if interrupt.run_until_cancelled(sleep(INTERVAL)).await.is_none() {
            break (Exit::Interrupted, backlog);
        }
    };
    progress.bar.finish_and_clear();
    let waited_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let report = DrainReport { drained: exit == Exit::Done, backlog, waited_ms };
    print_document(options.output, &report, |_| match (exit, backlog) {
        (Exit::Done, _) => "drained: the backlog is 0".to_owned(),
        (_, Some(backlog)) => format!("not drained: {} left", many(backlog, "entry", "entries")),
        (_, None) => "not drained: the backlog is unknown".to_owned(),
    })?;
    Ok(exit)
}

/// The backlog, if known, and the reason why it cannot drain, if any.
type Measurement = (Option<u64>, Option<&'static str>);

async fn measure(context: &Context, wanted: Option<&StaticAssignment>) -> Result<Measurement, Error> {
    let overview = context.overview(&context.partitions_now(wanted).await?).await?;
    let mut behind = overview.partitions.iter().filter(|row| row.backlog != Some(0));
    let is_paused = behind.clone().any(|row| row.paused);
    let has_no_owner = behind.any(|row| row.owners.is_empty());
    let obstacle = match (is_paused, has_no_owner) {
        (true, _) => Some("a paused partition has a backlog; run likesctl resume"),
        (false, true) => Some("a partition without an owner has a backlog; run likesctl doctor"),
        (false, false) => None,
    };
    Ok((overview.total.backlog, obstacle))
}

struct Progress {
    bar: ProgressBar,
    largest: u64,
    obstacle: Option<&'static str>,
}

impl Progress {
    fn new() -> Self {
        let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {msg}");
        let bar = ProgressBar::new(0).with_prefix("drain");
        let bar = style.map_or(bar.clone(), |style| bar.with_style(style));
        Self { bar, largest: 0, obstacle: None }
    }

    /// Shows a measurement and returns the backlog. An error is only shown, because the next measurement may succeed.
    fn show(&mut self, measured: Result<Measurement, Error>) -> Option<u64> {
        let backlog = match measured {
            Ok((backlog, obstacle)) => {
                if let Some(obstacle) = obstacle.filter(|_| obstacle != self.obstacle) {
                    self.bar.suspend(|| eprint_line(obstacle));
                }
                self.obstacle = obstacle;
                backlog
            }
            Err(error) => {
                self.bar.suspend(|| {
                    eprint_line(format_args!("cannot measure the backlog: {}", CliError::from(error)));
                });
                None
            }
        };
        match backlog {
            Some(backlog) => {
                self.largest = self.largest.max(backlog);
                self.bar.set_length(self.largest);
                self.bar.set_position(self.largest - backlog);
                self.bar.set_message(format!("{} left", count(backlog)));
            }
            None => self.bar.set_message("backlog unknown"),
        }
        backlog
    }
}
