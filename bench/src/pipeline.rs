//! The whole of it under a storm, and the simple design under the same one: an INSERT, and so a transaction, a like.

use std::time::Instant;

use devstack::program::Program;

use crate::{
    BenchError, Settings,
    cost::Cpu,
    figures::Figures,
    load::{self, Answers, Callers, Load},
    mib,
    progress::say,
    servers::{Servers, end_well},
};

const ROW: &str = "pipeline";
const SIMPLE: &str = "simple design";
const CONSUMERS: u16 = 2;

/// All parts share the machine with the load: bigger transactions leave more of it to the others.
const BATCH_LINGER: &str = "100ms";
const CALLERS: [Callers; 3] = [Callers::new(64, 1), Callers::new(512, 1), Callers::new(64, 100)];

/// What a storm did.
struct Storm {
    answers: Answers,
    /// Until all was in the table.
    stored_per_second: f64,
    cpu: Cpu,
    transactions_per_like: f64,
    wal_bytes_per_like: f64,
}

/// In turn, with the same callers.
pub(crate) async fn run(
    settings: &Settings,
    servers: &Servers,
    figures: &mut Figures,
) -> Result<(), BenchError> {
    for run in 1..=settings.runs {
        for callers in CALLERS {
            let case = callers.name();
            if !settings.begins(ROW, &case, run) {
                continue;
            }
            servers.empty().await?;
            let ingest = servers.start_ingest(&[])?;
            let consumers = servers.start_consumers(CONSUMERS, &[("BATCH_LINGER", BATCH_LINGER)])?;
            let storm = storm(settings, servers, &ingest, &consumers, callers).await?;
            let mut add = |measure, value| figures.add(ROW, &case, measure, value);
            storm.add_to(&mut add);
            add("ingest MiB resident at most", mib(ingest.peak_resident_bytes().unwrap_or(0)));
            let resident = consumers.iter().filter_map(Program::peak_resident_bytes).max();
            add("consumer MiB resident at most", mib(resident.unwrap_or(0)));
            end_well(consumers)?;
            let backlog_per_second = backlog(settings, servers, &ingest, callers).await?;
            figures.add(ROW, &case, "likes/s stored of a backlog", backlog_per_second);
            end_well([ingest])?;

            say(&format!("{SIMPLE}, {case}: run {run} of {}", settings.runs));
            servers.empty().await?;
            let simple = servers.start_bench_server("insert")?;
            let each = self::storm(settings, servers, &simple, &[], callers).await?;
            each.add_to(&mut |measure, value| figures.add(SIMPLE, &case, measure, value));
            end_well([simple])?;

            let mut add = |measure, value| figures.add(ROW, &case, measure, value);
            add("times the simple design's likes/s", storm.stored_per_second / each.stored_per_second);
            add("backlog, times the simple design's likes/s", backlog_per_second / each.stored_per_second);
            add(
                "of the simple design's Postgres CPU",
                storm.postgres_per_million() / each.postgres_per_million(),
            );
            add(
                "of the simple design's transactions",
                storm.transactions_per_like / each.transactions_per_like,
            );
        }
    }
    Ok(())
}

/// What a storm leaves while no consumer is there, and how fast that is stored then, in likes a second.
async fn backlog(
    settings: &Settings,
    servers: &Servers,
    ingest: &Program,
    callers: Callers,
) -> Result<f64, BenchError> {
    servers.empty().await?;
    let load = Load { callers, per_second: None, duration: settings.duration, first_user: 1 };
    let answers = load::send(ingest.listen(), load).await?;
    let started = Instant::now();
    let consumers = servers.start_consumers(CONSUMERS, &[])?;
    servers.drained(&consumers).await?;
    let seconds = started.elapsed().as_secs_f64();
    end_well(consumers)?;
    servers.check_rows(answers.accepted).await?;
    Ok(answers.accepted as f64 / seconds)
}

async fn storm(
    settings: &Settings,
    servers: &Servers,
    front: &Program,
    consumers: &[Program],
    callers: Callers,
) -> Result<Storm, BenchError> {
    let cpu = || Cpu::now(Some(front), &servers.redis, consumers, &servers.postgres);
    let (cpu_before, wal_before) = (cpu()?, servers.wal_bytes().await?);
    let transactions_before = servers.transactions().await?;
    let load = Load { callers, per_second: None, duration: settings.duration, first_user: 1 };
    let started = Instant::now();
    let answers = load::send(front.listen(), load).await?;
    servers.drained(consumers).await?;
    let seconds = started.elapsed().as_secs_f64();
    let likes = answers.accepted as f64;
    let storm = Storm {
        stored_per_second: likes / seconds,
        cpu: cpu()?.since(cpu_before),
        transactions_per_like: (servers.transactions().await? - transactions_before) / likes,
        wal_bytes_per_like: (servers.wal_bytes().await? - wal_before) / likes,
        answers,
    };
    servers.check_rows(storm.answers.accepted).await?;
    Ok(storm)
}

impl Storm {
    fn per_million(&self, cpu_seconds: f64) -> f64 {
        cpu_seconds / self.answers.accepted as f64 * 1e6
    }

    fn postgres_per_million(&self) -> f64 {
        self.per_million(self.cpu.postgres)
    }

    fn add_to(&self, add: &mut impl FnMut(&'static str, f64)) {
        add("likes/s answered", self.answers.per_second());
        add("likes/s stored", self.stored_per_second);
        add("p50 ms", self.answers.latency_ms(0.5));
        add("p99 ms", self.answers.latency_ms(0.99));
        add("HTTP server CPU s per million likes", self.per_million(self.cpu.front));
        if self.cpu.consumers > 0.0 {
            add("Redis CPU s per million likes", self.per_million(self.cpu.redis));
            add("consumer CPU s per million likes", self.per_million(self.cpu.consumers));
        }
        add("Postgres CPU s per million likes", self.postgres_per_million());
        add("transactions per million likes", self.transactions_per_like * 1e6);
        add("WAL bytes per like", self.wal_bytes_per_like);
    }
}
