//! Draining a backlog into the table, compared with plain COPY of the same rows.

use std::time::{Duration, Instant};

use devstack::program::Program;

use crate::{
    BenchError, Settings, copy_limit,
    cost::Cpu,
    figures::Figures,
    mib,
    servers::{Servers, stop},
    traffic::{self, PACKED, Posts, Traffic},
};

const ROW: &str = "drain";
const HOT_POST: &str = "hot post";

/// Rows per transaction, of the consumers and of the copy limit.
const BATCH_ROWS: usize = 5_000;

/// Backlog and the number of consumers that drain it.
struct Case {
    name: String,
    backlog: Backlog,
    writers: u16,
}

/// Likes and their number per entry.
#[derive(Clone, Copy)]
pub(crate) struct Backlog {
    pub(crate) traffic: Traffic,
    pub(crate) per_entry: usize,
}

/// Result of draining a backlog.
pub(crate) struct Drained {
    pub(crate) elapsed: Duration,
    pub(crate) cpu: Cpu,
    pub(crate) wal_bytes: f64,
    pub(crate) resident_bytes: u64,
}

fn case(kind: &str, writers: u16, likes: u64, per_entry: usize, duplicate_percent: u64) -> Case {
    let plural = if writers == 1 { "" } else { "s" };
    let duplicates = match duplicate_percent {
        0 => String::new(),
        percent => format!(", {percent} % duplicates"),
    };
    let name = format!("{kind}, {writers} writer{plural}{duplicates}");
    // At 100 %, every like repeats one that precedes the first like.
    let traffic = Traffic { first: likes, duplicate_percent, ..Traffic::new(likes) };
    Case { name, backlog: Backlog { traffic, per_entry }, writers }
}

/// Measures 1, 2 and 4 writers, packed entries and entries with one like, and duplicates.
pub(crate) async fn run(
    settings: &Settings,
    servers: &Servers,
    figures: &mut Figures,
) -> Result<(), BenchError> {
    let likes = settings.likes;
    let packed = [1, 2, 4].map(|writers| case("packed", writers, likes, PACKED, 0));
    let single = [1, 2, 4].map(|writers| case("one like per entry", writers, likes / 4, 1, 0));
    let duplicates = [5, 50, 100].map(|percent| case("packed", 2, likes, PACKED, percent));
    for run in 1..=settings.runs {
        for case in packed.iter().chain(&single).chain(&duplicates) {
            if settings.begins(ROW, &case.name, run) {
                measure(case, servers, figures).await?;
            }
        }
    }
    Ok(())
}

async fn measure(case: &Case, servers: &Servers, figures: &mut Figures) -> Result<(), BenchError> {
    let traffic = case.backlog.traffic;
    let rows = traffic.distinct_likes();
    servers.empty().await?;
    if rows.is_empty() {
        let before = Traffic::new(traffic.likes).likes();
        copy_limit::run(&servers.database_url(), &before, 1, BATCH_ROWS).await?;
        servers.checkpoint().await?;
    }
    let drained = drain(case.backlog, case.writers, servers).await?;
    servers.check_rows(if rows.is_empty() { traffic.likes } else { rows.len() as u64 }).await?;
    let likes = traffic.likes as f64;
    let seconds = drained.elapsed.as_secs_f64();
    let mut add = |measure, value| figures.add(ROW, &case.name, measure, value);
    add("likes/s", likes / seconds);
    add("consumer CPU s per million likes", drained.cpu.consumers / likes * 1e6);
    add("Postgres CPU s per million likes", drained.cpu.postgres / likes * 1e6);
    add("Redis CPU s per million likes", drained.cpu.redis / likes * 1e6);
    add("WAL bytes per like", drained.wal_bytes / likes);
    add("consumer peak resident MiB", mib(drained.resident_bytes));
    if rows.is_empty() {
        return Ok(());
    }
    servers.empty().await?;
    let copied = copy_limit::run(&servers.database_url(), &rows, case.writers.into(), BATCH_ROWS).await?;
    servers.check_rows(rows.len() as u64).await?;
    add("copy limit, rows/s", rows.len() as f64 / copied.as_secs_f64());
    // Relative to the same backlog. The copy limit writes no duplicates.
    add("of the copy limit", copied.as_secs_f64() / seconds);
    Ok(())
}

/// Measures likes for one post and the same number for recent posts in turn.
pub(crate) async fn hot_post(
    settings: &Settings,
    servers: &Servers,
    figures: &mut Figures,
) -> Result<(), BenchError> {
    for run in 1..=settings.runs {
        for writers in [2, 4] {
            let name = format!("{writers} writers");
            if !settings.begins(HOT_POST, &name, run) {
                continue;
            }
            let mut rates = [0.0; 2];
            for (posts, rate) in [Posts::One, Posts::Recent].into_iter().zip(&mut rates) {
                let traffic = Traffic { posts, ..Traffic::new(settings.likes) };
                servers.empty().await?;
                let drained = drain(Backlog { traffic, per_entry: PACKED }, writers, servers).await?;
                servers.check_rows(traffic.likes).await?;
                *rate = traffic.likes as f64 / drained.elapsed.as_secs_f64();
            }
            figures.add(HOT_POST, &name, "likes/s", rates[0]);
            figures.add(HOT_POST, &name, "of the rate for recent posts", rates[0] / rates[1]);
        }
    }
    Ok(())
}

/// Appends a backlog and then starts the consumers that drain it. The duration includes their start.
pub(crate) async fn drain(backlog: Backlog, writers: u16, servers: &Servers) -> Result<Drained, BenchError> {
    servers.append(traffic::entries(&backlog.traffic.likes(), backlog.per_entry)).await?;
    let before = Cpu::now(None, &servers.redis, &[], &servers.postgres)?;
    let wal_before = servers.wal_bytes().await?;
    let started = Instant::now();
    let batch_rows = BATCH_ROWS.to_string();
    let consumers = servers.start_consumers(writers, &[("BATCH_ROWS", &batch_rows)])?;
    servers.drained(&consumers).await?;
    let elapsed = started.elapsed();
    let cpu = Cpu::now(None, &servers.redis, &consumers, &servers.postgres)?.since(before);
    let wal_bytes = servers.wal_bytes().await? - wal_before;
    let resident_bytes = consumers.iter().filter_map(Program::peak_resident_bytes).max();
    stop(consumers)?;
    Ok(Drained { elapsed, cpu, wal_bytes, resident_bytes: resident_bytes.unwrap_or(0) })
}
