//! `devstack demo`, from the start of the stack to the report.

use std::{
    error::Error,
    path::PathBuf,
    time::{Duration, Instant},
};

use devstack::{
    StackError,
    backlog::{self, Keys},
    postgres_server,
    process::Lifetime,
    program::Program,
};
use shared::stderr::eprint_line;
use thiserror::Error;
use tokio::time::sleep;

use crate::{
    insert_each, json_file,
    load::{self, IndexSet, Load, Pace},
    progress::Progress,
    report::Report,
    stack::{Stack, StackOptions},
    verify,
};

const BACKLOG_POLL: Duration = Duration::from_millis(50);
const PROCESS_POLL: Duration = Duration::from_millis(500);

/// Time without progress after which draining fails.
const STALLED: Duration = Duration::from_mins(1);

#[derive(clap::Args)]
pub(crate) struct DemoOptions {
    /// Number of likes
    #[arg(long, env = "LIKES", default_value = "1000000", value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    likes: u32,

    /// Percentage of likes that repeat an earlier one
    #[arg(long, env = "DUPLICATES", default_value = "5", value_parser = clap::value_parser!(u8).range(0..=100))]
    duplicates: u8,

    /// Number of connections
    #[arg(long, env = "CONNECTIONS", default_value = "128", value_parser = clap::value_parser!(u16).range(1..=4096))]
    connections: u16,

    /// JSON file for the report
    #[arg(long, default_value = "target/demo.json", value_name = "FILE")]
    json: PathBuf,
}

#[derive(Debug, Error)]
#[error("draining stalled: {backlog} of {appended} entries are unacknowledged, no progress for 1 minute")]
struct Stalled {
    backlog: u64,
    appended: u64,
}

/// Runs the demo and returns whether every guarantee held.
pub(crate) async fn run(options: &DemoOptions) -> Result<bool, Box<dyn Error>> {
    eprint_line("starting a private Redis and Postgres, ingest and two consumers");
    let two_consumers = StackOptions { consumer_admin_ports: vec![0, 0], ..StackOptions::default() };
    let stack = Stack::start(two_consumers, Lifetime::Attached)?;
    json_file::check(&options.json)?;
    let report = tokio::select! {
        report = measure(options, &stack) => report?,
        ended = part_ended(&stack) => return Err(ended.into()),
    };
    stack.stop()?;
    report.print();
    json_file::write(&options.json, &report)?;
    Ok(report.passed())
}

/// Waits until a process of the stack exits unexpectedly.
async fn part_ended(stack: &Stack) -> StackError {
    loop {
        if let Some(ended) = stack.ended_part() {
            return ended;
        }
        sleep(PROCESS_POLL).await;
    }
}

async fn measure(options: &DemoOptions, stack: &Stack) -> Result<Report, Box<dyn Error>> {
    let load =
        Load { likes: options.likes.into(), duplicate_percent: options.duplicates, rejected_per_mille: 0 };
    let pace = Pace { connections: options.connections, per_second: None, until: None };
    let sent = load::send(load, stack.ingest.listen(), pace).await?;
    let entries = drain(stack).await?;
    let drained = sent.started.elapsed();

    eprint_line("comparing the table with the accepted likes");
    let database_url = stack.postgres.url("postgres");
    let client = postgres_server::connect(&database_url).await?;
    let table = verify::read_table(&client, load, &sent, &IndexSet::new(0)).await?;
    let each = insert_each::run(load, &database_url).await?;
    let transactions = total(&stack.consumers, "likestream_batches_committed_total")?;
    if transactions < table.writing_transactions {
        eprint_line(
            "likestream_batches_committed_total is lower than the number of transactions that inserted rows",
        );
    }
    let peak = |program: &Program| program.peak_resident_bytes().unwrap_or(0);
    Ok(Report {
        accepted: sent.accepted,
        distinct: sent.pairs.len(),
        rows: table.rows,
        lost: table.lost.len() as u64,
        duplicated: table.duplicated,
        unexpected: table.unexpected,
        retries: sent.retries,
        indeterminate: sent.indeterminate_pairs(load),
        transactions: transactions.max(table.writing_transactions),
        likes_per_transaction: sent.accepted as f64 / transactions.max(1) as f64,
        likes_per_entry: sent.accepted as f64 / entries.max(1) as f64,
        likes_per_second_in: sent.accepted as f64 / sent.elapsed.as_secs_f64(),
        likes_per_second_out: sent.accepted as f64 / drained.as_secs_f64(),
        post_p50_ms: sent.latencies.quantile_ms(0.5),
        post_p99_ms: sent.latencies.quantile_ms(0.99),
        end_to_end_p50_ms: table.end_to_end_p50_ms,
        end_to_end_p99_ms: table.end_to_end_p99_ms,
        insert_each_likes: each.likes,
        insert_each_likes_per_second: each.likes_per_second,
        ingest_peak_rss_bytes: peak(&stack.ingest),
        consumer_peak_rss_bytes: stack.consumers.iter().map(peak).max().unwrap_or(0),
    })
}

/// Waits until the backlog is empty and returns the number of entries that ingest has appended.
async fn drain(stack: &Stack) -> Result<u64, Box<dyn Error>> {
    let appended = total([&stack.ingest], "messaging_client_sent_messages_total")?;
    let redis = backlog::connect(&stack.redis.url()).await?;
    let keys = Keys::default();
    let mut progress = Progress::new("draining", appended);
    let mut least = u64::MAX;
    let mut progressed_at = Instant::now();
    loop {
        let backlog = backlog::entries(&redis, keys.streams()).await?;
        progress.update(appended.saturating_sub(backlog));
        if backlog == 0 {
            progress.finish();
            return Ok(appended);
        }
        if backlog < least {
            least = backlog;
            progressed_at = Instant::now();
        } else if progressed_at.elapsed() > STALLED {
            return Err(Stalled { backlog, appended }.into());
        }
        sleep(BACKLOG_POLL).await;
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
fn total<'a>(programs: impl IntoIterator<Item = &'a Program>, metric: &str) -> Result<u64, StackError> {
    programs.into_iter().map(|program| Ok(program.metrics()?.sum(metric) as u64)).sum()
}
