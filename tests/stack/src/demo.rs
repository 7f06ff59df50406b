//! The demo from start to report.

use std::{
    error::Error,
    time::{Duration, Instant},
};

use devstack::{StackError, process::Lifetime, program::Program};
use thiserror::Error;
use tokio::time::sleep;
use tokio_postgres::NoTls;

use crate::{
    DemoOptions,
    backlog::{self, Keys},
    figures, insert_each,
    load::{self, IndexSet, Load, Pace},
    progress::{Progress, say},
    report::Report,
    stack::{Stack, StackOptions},
    verify,
};

const POLL: Duration = Duration::from_millis(50);
const WATCH: Duration = Duration::from_millis(500);

/// The drain may take as long as it likes, but not stand still.
const STALLED: Duration = Duration::from_mins(1);

#[derive(Debug, Error)]
#[error("{waiting} of {appended} stream entries are not acknowledged, and nothing has moved for a minute")]
struct Stalled {
    waiting: u64,
    appended: u64,
}

/// Runs it and tells whether every promise was kept.
pub(crate) async fn run(options: &DemoOptions) -> Result<bool, Box<dyn Error>> {
    say("starting private Redis and Postgres, ingest and two consumers");
    let two_consumers = StackOptions { consumer_admin_ports: vec![0, 0], ..StackOptions::default() };
    let stack = Stack::start(two_consumers, Lifetime::Leashed)?;
    figures::check_file(&options.json)?;
    let report = tokio::select! {
        report = measure(options, &stack) => report?,
        ended = part_ended(&stack) => return Err(ended.into()),
    };
    stack.stop()?;
    report.print();
    figures::write_json(&report, &options.json)?;
    Ok(report.passed())
}

/// Waits for a part of the stack to end by itself.
async fn part_ended(stack: &Stack) -> StackError {
    loop {
        if let Some(ended) = stack.ended_part() {
            return ended;
        }
        sleep(WATCH).await;
    }
}

async fn measure(options: &DemoOptions, stack: &Stack) -> Result<Report, Box<dyn Error>> {
    let load =
        Load { likes: options.likes.into(), duplicate_percent: options.duplicates, rejected_per_mille: 0 };
    let pace = Pace { connections: options.connections, per_second: None, until: None };
    let sent = load::send(load, stack.ingest.listen(), pace).await?;
    let entries = drain(stack).await?;
    let drained = sent.started.elapsed();

    say("comparing the table with what was accepted");
    let database_url = stack.postgres.url("postgres");
    let (client, connection) = tokio_postgres::connect(&database_url, NoTls).await?;
    tokio::spawn(connection);
    let table = verify::read_table(&client, load, &sent, &IndexSet::new(0)).await?;
    let each = insert_each::run(load, &database_url).await?;
    let transactions = total(&stack.consumers, "likestream_batches_committed_total")?;
    if transactions < table.writing_transactions {
        say("the consumers count fewer transactions than have left rows: their figure is wrong");
    }
    let peak = |program: &Program| program.peak_resident_bytes().unwrap_or(0);
    Ok(Report {
        accepted: sent.accepted,
        distinct: sent.pairs.len(),
        rows: table.rows,
        lost: table.lost,
        doubled: table.doubled,
        foreign: table.foreign,
        retries: sent.retries,
        unsure: sent.unsure_pairs(load),
        transactions: transactions.max(table.writing_transactions),
        likes_per_transaction: sent.accepted as f64 / transactions.max(1) as f64,
        likes_per_entry: sent.accepted as f64 / entries.max(1) as f64,
        likes_per_second_in: sent.accepted as f64 / sent.elapsed.as_secs_f64(),
        likes_per_second_out: sent.accepted as f64 / drained.as_secs_f64(),
        post_p50_ms: sent.latency_us.value_at_quantile(0.5) as f64 / 1e3,
        post_p99_ms: sent.latency_us.value_at_quantile(0.99) as f64 / 1e3,
        accept_to_commit_p50_ms: table.accept_to_commit_p50_ms,
        accept_to_commit_p99_ms: table.accept_to_commit_p99_ms,
        insert_each_likes: each.likes,
        insert_each_likes_per_second: each.likes_per_second,
        ingest_peak_rss_bytes: peak(&stack.ingest),
        consumer_peak_rss_bytes: stack.consumers.iter().map(peak).max().unwrap_or(0),
    })
}

/// Waits until Redis has nothing left to be done, and returns how many entries ingest has appended.
async fn drain(stack: &Stack) -> Result<u64, Box<dyn Error>> {
    let appended = total([&stack.ingest], "messaging_client_sent_messages_total")?;
    let (client, keys) = (backlog::connect(&stack.redis.url()).await?, Keys::default());
    let mut progress = Progress::new("draining", appended);
    let (mut least, mut last_moved) = (u64::MAX, Instant::now());
    loop {
        let waiting = backlog::entries(&client, &keys).await?;
        progress.at(appended.saturating_sub(waiting));
        if waiting == 0 {
            progress.done();
            return Ok(appended);
        }
        if waiting < least {
            (least, last_moved) = (waiting, Instant::now());
        } else if last_moved.elapsed() > STALLED {
            return Err(Stalled { waiting, appended }.into());
        }
        sleep(POLL).await;
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
fn total<'a>(programs: impl IntoIterator<Item = &'a Program>, metric: &str) -> Result<u64, StackError> {
    programs.into_iter().map(|program| Ok(program.metrics()?.sum(metric) as u64)).sum()
}
