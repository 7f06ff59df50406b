//! `likesctl status`: shows the state of the pipeline by partition.
//!
//! Purpose: print an overview once or repeatedly; `check` compares it with thresholds. May depend on `overview`. Must not
//! query Redis itself.

mod check;

use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

use clap::Args;
use consumer::group::static_assignment::StaticAssignment;
use shared::{settings::args::positive_duration, stderr::eprint_line};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use self::check::Thresholds;
use crate::{
    context::RedisAccess,
    exit::{CliError, Exit},
    output::{
        Column, OutputArgs, Row, age, age_or_none, count, many, number_or_unknown, print_document, table,
    },
    overview::{ConsumerOverview, Overview, PartitionOverview, Total},
};

/// Moves the cursor to the top left and clears the screen: ECMA-48, CUP and ED.
const CLEAR: &str = "\x1b[H\x1b[2J";

#[derive(Args)]
pub(crate) struct Options {
    /// Partitions, such as 3 or 0-3,8 [default: all]
    #[arg(short, long, value_name = "PARTITIONS")]
    partition: Option<StaticAssignment>,

    /// Repeated output at this interval; 2s if no value is given
    #[arg(short, long, value_name = "INTERVAL", num_args = 0..=1, default_missing_value = "2s",
          require_equals = true, value_parser = positive_duration, conflicts_with = "check")]
    watch: Option<Duration>,

    /// Output for monitoring systems: one line, and the exit code 0 ok, 1 warning, 2 critical or 3 unknown
    #[arg(long, conflicts_with = "output")]
    check: bool,

    #[command(flatten)]
    thresholds: Thresholds,

    #[command(flatten)]
    output: OutputArgs,

    #[command(flatten)]
    redis: RedisAccess,
}

pub(crate) async fn run(options: Options, interrupt: &CancellationToken) -> Result<Exit, CliError> {
    if options.check {
        return check::run(&options.redis, options.partition.as_ref(), &options.thresholds).await;
    }
    let context = options.redis.open().await?;
    let wanted = options.partition.as_ref();
    context.partitions_of(wanted)?;
    loop {
        let overview = async { context.overview(&context.partitions_now(wanted).await?).await }.await;
        match (overview, options.watch) {
            (Ok(overview), watch) => {
                if watch.is_some() && io::stdout().is_terminal() {
                    write!(io::stdout(), "{CLEAR}")?;
                }
                print_document(options.output, &overview, |wide| text(&overview, wide))?;
            }
            (Err(error), None) => return Err(error.into()),
            (Err(error), Some(_)) => {
                eprint_line(format_args!("cannot read the status: {}", CliError::from(error)));
            }
        }
        let Some(interval) = options.watch else { return Ok(Exit::Done) };
        if interrupt.run_until_cancelled(sleep(interval)).await.is_none() {
            return Ok(Exit::Interrupted);
        }
    }
}

fn text(overview: &Overview, wide: bool) -> String {
    let Overview { stream, group, redis, total, partitions, consumers, .. } = overview;
    let alive = consumers.iter().filter(|consumer| consumer.is_alive()).count();
    let mut lines = vec![
        format!("stream {stream}, group {group}, {redis}"),
        format!(
            "{}, {}{}",
            many(partitions.len() as u64, "partition", "partitions"),
            many(alive as u64, "live consumer", "live consumers"),
            inactive(consumers)
        ),
        summary(total),
    ];
    lines.extend(warnings(overview).into_iter().map(|warning| format!("warning: {warning}")));
    lines.push(String::new());
    lines.push(table(partitions, wide));
    lines.join("\n")
}

/// Counts the consumers that are not alive and have pending entries.
fn inactive(consumers: &[ConsumerOverview]) -> String {
    let inactive = || consumers.iter().filter(|consumer| !consumer.is_alive() && consumer.pending > 0);
    let entries: u64 = inactive().map(|consumer| consumer.pending).sum();
    if entries == 0 {
        return String::new();
    }
    let inactive = many(inactive().count() as u64, "inactive consumer", "inactive consumers");
    format!(", {inactive} with {}", many(entries, "pending entry", "pending entries"))
}

fn warnings(overview: &Overview) -> Vec<String> {
    let Overview { group, total, partitions, consumers, redis_problems, open_incidents, .. } = overview;
    let without_group = partitions.iter().filter(|row| !row.has_group).count() as u64;
    let stuck = consumers.iter().filter(|consumer| consumer.state == "stuck");
    let stuck: Vec<&str> = stuck.map(|consumer| consumer.name.as_str()).collect();
    let mut warnings: Vec<String> =
        redis_problems.iter().map(|problem| format!("Redis at {problem}")).collect();
    if let Some(open) = open_incidents.filter(|open| *open > 0) {
        let incidents = many(open, "incident is", "incidents are");
        warnings.push(format!("{incidents} open: likes are lost or may be; see likesctl incidents list"));
    }
    if total.paused > 0 {
        let partitions = many(total.paused, "partition is", "partitions are");
        warnings.push(format!("{partitions} paused; to continue, run likesctl resume"));
    }
    if total.unowned > 0 {
        let partitions = many(total.unowned, "partition has", "partitions have");
        warnings.push(format!("{partitions} no owner; run likesctl doctor"));
    }
    if without_group > 0 {
        let partitions = many(without_group, "partition does", "partitions do");
        warnings.push(format!("{partitions} not have the group {group}; start a consumer, which creates it"));
    }
    if !stuck.is_empty() {
        warnings.push(format!("stuck consumers, which cannot write to Postgres: {}", stuck.join(", ")));
    }
    warnings
}

fn summary(total: &Total) -> String {
    let backlog = total.backlog.map_or_else(|| format!("unknown, at least {}", count(total.pending)), count);
    format!(
        "backlog {backlog} (lag {}, pending {}), oldest entry {}, oldest pending entry idle {}\nlast commit {}, dead letters {}",
        total.lag.map_or_else(|| "unknown".to_owned(), count),
        count(total.pending),
        age_or_none(total.oldest_age_ms),
        age_or_none(total.oldest_pending_idle_ms),
        total.last_commit_ms_ago.map_or_else(|| "-".to_owned(), |ms| format!("{} ago", age(ms))),
        count(total.dead),
    )
}

impl Row for PartitionOverview {
    const COLUMNS: &'static [Column] = &[
        Column::number("P"),
        Column::text("OWNER"),
        Column::number("BACKLOG"),
        Column::number("LAG"),
        Column::number("PENDING"),
        Column::number("OLDEST"),
        Column::number("IDLE"),
        Column::number("COMMIT"),
        Column::text("OLDEST PENDING").wide(),
        Column::text("DELIVERED").wide(),
        Column::text("GENERATED").wide(),
        Column::number("LENGTH").wide(),
        Column::number("DEAD"),
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.partition.to_string(),
            self.owner(),
            number_or_unknown(self.backlog),
            number_or_unknown(self.lag),
            self.pending.to_string(),
            age_or_none(self.oldest_age_ms),
            age_or_none(self.oldest_pending_idle_ms),
            age_or_none(self.last_commit_ms_ago),
            self.oldest_pending.clone().unwrap_or_else(|| "-".to_owned()),
            self.last_delivered_id.clone().unwrap_or_else(|| "no group".to_owned()),
            self.last_generated_id.clone(),
            self.length.to_string(),
            self.dead.to_string(),
        ]
    }
}
