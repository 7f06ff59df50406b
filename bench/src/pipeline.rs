//! The whole pipeline under load, compared with the simple design of one INSERT, and therefore one transaction,
//! per like.

use std::time::Instant;

use devstack::program::Program;
use shared::stderr::eprint_line;

use crate::{
    BenchError, Settings,
    cost::Cpu,
    figures::Figures,
    load::{self, Clients, Load, Responses},
    mib,
    servers::{Servers, stop},
};

const ROW: &str = "pipeline";
const SIMPLE: &str = "simple design";
const CONSUMERS: u16 = 2;

/// All processes share the machine with the load. Larger transactions leave more CPU time to the others.
const BATCH_LINGER: &str = "100ms";
const CLIENTS: [Clients; 3] = [Clients::new(64, 1), Clients::new(512, 1), Clients::new(64, 100)];

/// Result of a load run.
struct LoadRun {
    responses: Responses,
    /// Measured until all likes are in the table.
    stored_per_second: f64,
    cpu: Cpu,
    transactions_per_like: f64,
    wal_bytes_per_like: f64,
}

/// Measures both designs in turn with the same clients.
pub(crate) async fn run(
    settings: &Settings,
    servers: &Servers,
    figures: &mut Figures,
) -> Result<(), BenchError> {
    for run in 1..=settings.runs {
        for clients in CLIENTS {
            let case = clients.name();
            if !settings.begins(ROW, &case, run) {
                continue;
            }
            servers.empty().await?;
            let ingest = servers.start_ingest(&[])?;
            let consumers = servers.start_consumers(CONSUMERS, &[("BATCH_LINGER", BATCH_LINGER)])?;
            let load = Load::closed_loop(clients, settings.duration);
            let load_run = run_load(servers, &ingest, &consumers, load).await?;
            let mut add = |measure, value| figures.add(ROW, &case, measure, value);
            load_run.add_to(&mut add);
            add("ingest peak resident MiB", mib(ingest.peak_resident_bytes().unwrap_or(0)));
            let resident = consumers.iter().filter_map(Program::peak_resident_bytes).max();
            add("consumer peak resident MiB", mib(resident.unwrap_or(0)));
            stop(consumers)?;
            let backlog_per_second = drain_backlog(servers, &ingest, load).await?;
            figures.add(ROW, &case, "likes/s stored from a backlog", backlog_per_second);
            stop([ingest])?;

            eprint_line(format_args!("{SIMPLE}, {case}: run {run} of {}", settings.runs));
            servers.empty().await?;
            let simple_server = servers.start_bench_server("insert")?;
            let simple = run_load(servers, &simple_server, &[], load).await?;
            simple.add_to(&mut |measure, value| figures.add(SIMPLE, &case, measure, value));
            stop([simple_server])?;

            let mut add = |measure, value| figures.add(ROW, &case, measure, value);
            add("times the simple design's likes/s", load_run.stored_per_second / simple.stored_per_second);
            add(
                "times the simple design's likes/s, from a backlog",
                backlog_per_second / simple.stored_per_second,
            );
            let cpu = load_run.postgres_per_million() / simple.postgres_per_million();
            add("of the simple design's Postgres CPU", cpu);
            let transactions = load_run.transactions_per_like / simple.transactions_per_like;
            add("of the simple design's transactions", transactions);
        }
    }
    Ok(())
}

/// Builds a backlog without consumers, then starts them and returns the likes stored per second.
async fn drain_backlog(servers: &Servers, ingest: &Program, load: Load) -> Result<f64, BenchError> {
    servers.empty().await?;
    let responses = load::send(ingest.listen(), load).await?;
    let started = Instant::now();
    let consumers = servers.start_consumers(CONSUMERS, &[])?;
    servers.drained(&consumers).await?;
    let seconds = started.elapsed().as_secs_f64();
    stop(consumers)?;
    servers.check_rows(responses.accepted).await?;
    Ok(responses.accepted as f64 / seconds)
}

async fn run_load(
    servers: &Servers,
    http_server: &Program,
    consumers: &[Program],
    load: Load,
) -> Result<LoadRun, BenchError> {
    let cpu = || Cpu::now(Some(http_server), &servers.redis, consumers, &servers.postgres);
    let cpu_before = cpu()?;
    let wal_before = servers.wal_bytes().await?;
    let transactions_before = servers.transactions().await?;
    let started = Instant::now();
    let responses = load::send(http_server.listen(), load).await?;
    servers.drained(consumers).await?;
    let seconds = started.elapsed().as_secs_f64();
    let likes = responses.accepted as f64;
    let load_run = LoadRun {
        stored_per_second: likes / seconds,
        cpu: cpu()?.since(cpu_before),
        transactions_per_like: (servers.transactions().await? - transactions_before) / likes,
        wal_bytes_per_like: (servers.wal_bytes().await? - wal_before) / likes,
        responses,
    };
    servers.check_rows(load_run.responses.accepted).await?;
    Ok(load_run)
}

impl LoadRun {
    fn per_million(&self, cpu_seconds: f64) -> f64 {
        cpu_seconds / self.responses.accepted as f64 * 1e6
    }

    fn postgres_per_million(&self) -> f64 {
        self.per_million(self.cpu.postgres)
    }

    fn add_to(&self, add: &mut impl FnMut(&'static str, f64)) {
        add("likes/s accepted", self.responses.per_second());
        add("likes/s stored", self.stored_per_second);
        add("p50 ms", self.responses.latencies.quantile_ms(0.5));
        add("p99 ms", self.responses.latencies.quantile_ms(0.99));
        add("HTTP server CPU s per million likes", self.per_million(self.cpu.http_server));
        if self.cpu.consumers > 0.0 {
            add("Redis CPU s per million likes", self.per_million(self.cpu.redis));
            add("consumer CPU s per million likes", self.per_million(self.cpu.consumers));
        }
        add("Postgres CPU s per million likes", self.postgres_per_million());
        add("transactions per million likes", self.transactions_per_like * 1e6);
        add("WAL bytes per like", self.wal_bytes_per_like);
    }
}
