//! `likesctl status` and `consumers list`

use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

use clap::Args;
use consumer::group::static_assignment::StaticAssignment;
use shared::settings::args::positive_duration;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    action::say,
    check::{self, Thresholds},
    context::RedisAccess,
    exit::{CliError, Exit},
    output::{Column, OutputArgs, Row, age, age_or_none, count, many, print_document, table},
    overview::{ConsumerOverview, Overview, PartitionOverview, Total},
};

/// Moves the cursor to the top and clears the screen: ECMA-48, CUP and ED.
const CLEAR: &str = "\x1b[H\x1b[2J";

#[derive(Args)]
pub(crate) struct StatusOptions {
    /// Only these partitions, like 3 or 0-3,8
    #[arg(short, long, value_name = "PARTITIONS")]
    partition: Option<StaticAssignment>,

    /// Again and again, with so long between
    #[arg(short, long, value_name = "INTERVAL", num_args = 0..=1, default_missing_value = "2s",
          require_equals = true, value_parser = positive_duration, conflicts_with = "check")]
    watch: Option<Duration>,

    /// One line for a monitoring system, and its exit codes: 0 ok, 1 warning, 2 critical, 3 unknown
    #[arg(long, conflicts_with = "output")]
    check: bool,

    #[command(flatten)]
    thresholds: Thresholds,

    #[command(flatten)]
    output: OutputArgs,

    #[command(flatten)]
    redis: RedisAccess,
}

#[derive(Args)]
pub(crate) struct ViewOptions {
    /// Only these partitions, like 3 or 0-3,8
    #[arg(short, long, value_name = "PARTITIONS")]
    partition: Option<StaticAssignment>,

    #[command(flatten)]
    output: OutputArgs,

    #[command(flatten)]
    redis: RedisAccess,
}

pub(crate) async fn status(options: StatusOptions, interrupt: &CancellationToken) -> Result<Exit, CliError> {
    if options.check {
        return check::run(&options.redis, options.partition.as_ref(), &options.thresholds).await;
    }
    let context = options.redis.open().await?;
    context.partitions_of(options.partition.as_ref())?;
    loop {
        let looked =
            async { context.overview(&context.partitions_now(options.partition.as_ref()).await?).await };
        let overview = match (looked.await, options.watch) {
            (Ok(overview), _) => overview,
            (Err(error), None) => return Err(error.into()),
            (Err(error), Some(interval)) => {
                say(&format!("can't be looked at now: {error}"));
                if interrupt.run_until_cancelled(sleep(interval)).await.is_none() {
                    return Ok(Exit::Interrupted);
                }
                continue;
            }
        };
        if options.watch.is_some() && io::stdout().is_terminal() {
            write!(io::stdout(), "{CLEAR}")?;
        }
        print_document(options.output, &overview, |wide| text(&overview, wide))?;
        let Some(interval) = options.watch else { return Ok(Exit::Done) };
        if interrupt.run_until_cancelled(sleep(interval)).await.is_none() {
            return Ok(Exit::Interrupted);
        }
    }
}

/// All of `status` as text.
pub(crate) fn text(overview: &Overview, wide: bool) -> String {
    let Overview { stream, group, redis, total, partitions, consumers, .. } = overview;
    let alive = consumers.iter().filter(|consumer| consumer.is_alive()).count();
    let mut lines = vec![
        format!("stream {stream}, group {group}, {redis}"),
        format!(
            "{}, {} alive{}",
            many(partitions.len() as u64, "partition", "partitions"),
            many(alive as u64, "consumer", "consumers"),
            others(
                &consumers
                    .iter()
                    .filter(|consumer| !consumer.is_alive() && consumer.pending > 0)
                    .collect::<Vec<_>>()
            )
        ),
        summary(total),
    ];
    let mut warn = |is_so: bool, line: String| {
        if is_so {
            lines.push(format!("! {line}"));
        }
    };
    warn(
        total.paused > 0,
        format!("{} paused: likesctl resume", many(total.paused, "partition is", "partitions are")),
    );
    warn(
        total.unowned > 0,
        format!("nobody reads {}: likesctl doctor", many(total.unowned, "partition", "partitions")),
    );
    let groupless = partitions.iter().filter(|row| !row.has_group).count() as u64;
    warn(
        groupless > 0,
        format!(
            "{} no group {group}: start a consumer, it makes it",
            many(groupless, "partition has", "partitions have")
        ),
    );
    let stuck: Vec<&str> = consumers
        .iter()
        .filter(|consumer| consumer.state == "stuck")
        .map(|consumer| consumer.name.as_str())
        .collect();
    warn(!stuck.is_empty(), format!("stuck, they can't store anything: {}", stuck.join(", ")));
    lines.push(String::new());
    lines.push(table(partitions, wide));
    lines.join("\n")
}

fn others(with_pending: &[&ConsumerOverview]) -> String {
    let entries: u64 = with_pending.iter().map(|consumer| consumer.pending).sum();
    if with_pending.is_empty() {
        return String::new();
    }
    let (others, entries) = (
        many(with_pending.len() as u64, "other", "others"),
        many(entries, "pending entry", "pending entries"),
    );
    format!(", {others} with {entries}")
}

fn summary(total: &Total) -> String {
    let backlog = total.backlog.map_or_else(|| format!("unknown, at least {}", count(total.pending)), count);
    format!(
        "backlog {backlog} (lag {}, pending {}), oldest {}, oldest pending idle {}\nlast commit {}, dead letters {}",
        total.lag.map_or_else(|| "unknown".to_owned(), count),
        count(total.pending),
        age_or_none(total.oldest_age_ms),
        age_or_none(total.oldest_pending_idle_ms),
        total.last_commit_ms_ago.map_or_else(|| "-".to_owned(), |ms| format!("{} ago", age(ms))),
        count(total.dead),
    )
}

fn known(number: Option<u64>) -> String {
    number.map_or_else(|| "unknown".to_owned(), |number| number.to_string())
}

impl PartitionOverview {
    /// Who reads it, for people.
    pub(crate) fn owner(&self) -> String {
        match (&self.owners[..], self.paused) {
            ([], true) => "paused".to_owned(),
            ([], false) => "nobody".to_owned(),
            (owners, true) => format!("{} (paused)", owners.join(",")),
            (owners, false) => owners.join(","),
        }
    }
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
            known(self.backlog),
            known(self.lag),
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

impl Row for ConsumerOverview {
    const COLUMNS: &'static [Column] = &[
        Column::text("CONSUMER"),
        Column::text("STATE"),
        Column::text("PARTITIONS"),
        Column::number("PENDING"),
        Column::number("HEARTBEAT"),
        Column::number("IDLE"),
        Column::text("FIXED").wide(),
    ];

    fn cells(&self) -> Vec<String> {
        let partitions: Vec<String> = self.partitions.iter().map(u16::to_string).collect();
        vec![
            self.name.clone(),
            self.state.to_owned(),
            if partitions.is_empty() { "-".to_owned() } else { partitions.join(",") },
            self.pending.to_string(),
            age_or_none(self.beat_ms_ago),
            age_or_none(self.idle_ms),
            self.fixed.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    }
}

pub(crate) async fn consumers(
    ViewOptions { partition, output, redis }: ViewOptions,
) -> Result<Exit, CliError> {
    let context = redis.open().await?;
    let partitions = context.partitions_of(partition.as_ref())?;
    let mut rows = context.overview(&partitions).await?.consumers;
    if partition.is_some() {
        let asked: Vec<u16> = partitions.iter().map(|partition| partition.number()).collect();
        rows.retain(|row| row.pending > 0 || row.partitions.iter().any(|own| asked.contains(own)));
    }
    print_document(output, &rows, |wide| {
        if rows.is_empty() { "the group has no consumers".to_owned() } else { table(&rows, wide) }
    })?;
    Ok(Exit::Done)
}
