//! `likesctl verify`: compares the streams and the dead letters with the table.

use std::collections::BTreeSet;

use clap::Args;
use consumer::group::static_assignment::StaticAssignment;
use shared::{
    settings::args::{PostgresArgs, integer},
    stderr::eprint_line,
};

use crate::{
    context::RedisAccess,
    database::{self, open_incidents},
    exit::{CliError, Exit},
    output::{OutputArgs, count, many, print_document, table},
    selection::{TimeRange, TimeSpec},
    verifier::{Verdict, Verifier},
};

#[derive(Args)]
pub(crate) struct Options {
    /// Partitions, such as 3 or 0-3,8 [default: all]
    #[arg(short, long, value_name = "PARTITIONS", help_heading = "Selection")]
    partition: Option<StaticAssignment>,

    /// Start of the time range: RFC 3339 (2026-01-31T12:00:00Z), a duration ago (2h), Unix milliseconds, or an entry id
    #[arg(long, value_name = "TIME", help_heading = "Selection")]
    from: Option<TimeSpec>,

    /// End of the time range, in the same formats
    #[arg(long, value_name = "TIME", help_heading = "Selection")]
    to: Option<TimeSpec>,

    /// Approximate number of entries to compare, chosen at random [default: all]
    #[arg(long, value_name = "COUNT", help_heading = "Selection", value_parser = integer(1_u64..))]
    sample: Option<u64>,

    #[command(flatten)]
    output: OutputArgs,

    #[command(flatten)]
    redis: RedisAccess,

    #[command(flatten)]
    postgres: PostgresArgs,
}

pub(crate) async fn run(options: Options) -> Result<Exit, CliError> {
    let context = options.redis.open().await?;
    let limit = options.redis.startup_timeout;
    let (client, ..) = database::connect(&context, &options.postgres, "likesctl verify", limit).await?;
    let partitions = context.partitions_of(options.partition.as_ref())?;
    let range = TimeRange { since: options.from, until: options.to };
    let range = range.ids(context.now_ms().await?)?;
    let mut verifier = Verifier::new(&context, &client);
    match options.sample {
        None => {
            for partition in partitions {
                verifier.range(partition, range).await?;
            }
        }
        Some(entries) => verifier.sample(&partitions, range, entries).await?,
    }
    let verdict = verifier.verdict().await?;
    let open = open_incidents(&context, &client).await?;
    if open > 0 {
        let incidents = many(open, "incident is", "incidents are");
        eprint_line(format_args!(
            "warning: {incidents} open: likes may be lost that are in no stream; see likesctl incidents list"
        ));
    }
    print_document(options.output, &verdict, |wide| text(&verdict, wide))?;
    Ok(if verdict.missing == 0 { Exit::Done } else { Exit::Differs })
}

fn text(verdict: &Verdict, wide: bool) -> String {
    let Verdict { entries, likes, backlog, dead, unreadable, missing, missing_likes } = verdict;
    let mut lines = Vec::new();
    if *missing > 0 {
        lines.push(table(missing_likes, wide));
        lines.push(String::new());
    }
    lines.push(format!(
        "compared {} likes of {} acknowledged entries: {} missing, {} in dead letters; backlog {}",
        count(*likes),
        count(*entries),
        count(*missing),
        count(*dead),
        count(*backlog)
    ));
    if *unreadable > 0 {
        lines.push(format!(
            "{} only partly or not at all; see likesctl dead list",
            many(*unreadable, "entry can be decoded", "entries can be decoded")
        ));
    }
    if *missing > 0 {
        lines.push(reprocess_command(verdict));
    } else if *entries == 0 {
        lines.push(
            "nothing to compare: acknowledged entries are trimmed; set STREAM_RETENTION to keep them"
                .to_owned(),
        );
    }
    lines.join("\n")
}

/// Returns the command that stores the listed missing likes.
fn reprocess_command(Verdict { missing_likes, .. }: &Verdict) -> String {
    let partitions: BTreeSet<u16> = missing_likes.iter().map(|missing| missing.entry.partition).collect();
    let partitions: Vec<String> = partitions.iter().map(u16::to_string).collect();
    let ids = || missing_likes.iter().map(|missing| missing.entry.id);
    let first = ids().min().unwrap_or_default();
    let last = ids().max().unwrap_or_default();
    format!("to store them, run: likesctl reprocess -p {} --from {first} --to {last}", partitions.join(","))
}
