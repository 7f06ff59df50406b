//! Benchmarks of likestream, compared with the limits of the machine and the simple design of one INSERT per like.
//!
//! Purpose: measure real servers and programs over several runs, and write tables, JSON and a chart. May depend on
//! `shared`, on `devstack`, which starts all processes, and, only in `bench-server`, on the HTTP layer of `ingest`. Must
//! not depend on the internals of the programs: it measures their HTTP, metrics and processes.

mod copy_limit;
mod cost;
mod drain;
mod end_to_end;
mod figures;
mod growth;
mod ingest;
mod load;
mod machine;
mod pipeline;
mod plot;
mod report;
mod servers;
mod slow_connections;
mod targets;
mod telemetry;
mod traffic;

use std::{fs, io, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, ValueEnum};
use devstack::{
    StackError,
    http_client::HttpError,
    process,
    signals::{EXIT_INTERRUPTED, Interrupts},
    terminal::print_line,
};
use shared::{
    error_chain::one_line,
    settings::{self, SettingError},
    stderr::eprint_line,
};
use thiserror::Error;
use tokio::{runtime::Runtime, task::JoinError};

use crate::{figures::Figures, machine::Machine, servers::Servers};

/// Measure likestream and compare it with the limits of the machine and the simple design
#[derive(Parser, Debug)]
#[command(name = "bench")]
struct Settings {
    /// Benchmarks to run
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "drain,hot-post,ingest,pipeline,end-to-end,telemetry,slow-connections,growth"
    )]
    rows: Vec<Row>,

    /// Substring of the cases to measure, like "2 writers"
    #[arg(long, default_value = "", value_name = "TEXT")]
    case: String,

    /// Number of runs of each case
    #[arg(long, default_value = "3", value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,

    /// Number of likes in a backlog
    #[arg(long, default_value = "2000000", value_parser = clap::value_parser!(u64).range(1_000..=10_000_000))]
    likes: u64,

    /// Duration of the load of each run
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    duration: Duration,

    /// Number of slow connections in addition to those of the measured clients
    #[arg(long, default_value = "5000", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    slow_connections: u32,

    /// Ascending row counts of the large table
    #[arg(long, value_delimiter = ',', default_value = "5000000,20000000")]
    growth_rows: Vec<u64>,

    /// Folder for results.json and results.svg
    #[arg(long, default_value = "target/bench", value_name = "FOLDER")]
    out: PathBuf,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Row {
    Drain,
    HotPost,
    Ingest,
    Pipeline,
    EndToEnd,
    Telemetry,
    SlowConnections,
    Growth,
}

impl settings::Settings for Settings {
    fn check(&self) -> Result<(), SettingError> {
        if !self.growth_rows.is_sorted() {
            return Err(SettingError::new("--growth-rows", "expected ascending numbers"));
        }
        Ok(())
    }
}

/// The measurement failed.
#[derive(Debug, Error)]
enum BenchError {
    #[error(transparent)]
    Stack(#[from] StackError),
    #[error(transparent)]
    Setting(#[from] SettingError),
    #[error("Postgres failed")]
    Postgres(#[from] tokio_postgres::Error),
    #[error("Redis failed")]
    Redis(#[from] fred::error::Error),
    #[error("a request failed")]
    Http(#[from] HttpError),
    #[error("ingest refused a like with {0}")]
    Refused(hyper::StatusCode),
    #[error("a client panicked")]
    Crashed(#[from] JoinError),
    #[error("the table has {rows} rows instead of {expected}: the run is invalid")]
    Rows { rows: u64, expected: u64 },
    #[error(
        "draining stalled: {entries} entries are left, no progress for 1 minute; last log lines of the consumers: {}",
        .last_lines.join(" | ")
    )]
    Stalled { entries: u64, last_lines: Vec<String> },
    #[error("only {open} of {wanted} slow connections are open; ingest has closed {closed}")]
    SlowConnections { wanted: u32, open: u64, closed: u64 },
    #[error("{0}")]
    Unknown(&'static str),
    #[error("cannot read or write a file")]
    Io(#[from] io::Error),
    #[error("cannot write the figures as JSON")]
    Json(#[from] serde_json::Error),
    #[error("cannot draw the chart: {0}")]
    Plot(String),
}

fn main() -> ExitCode {
    let settings: Settings = settings::parse();
    let measured = Runtime::new().map_err(BenchError::from).and_then(|runtime| {
        runtime.block_on(async {
            let mut interrupts = Interrupts::install()?;
            // Dropping the future ends all servers and programs.
            tokio::select! {
                measured = measure(&settings) => measured.map(|()| ExitCode::SUCCESS),
                () = interrupts.recv() => Ok(ExitCode::from(EXIT_INTERRUPTED)),
            }
        })
    });
    measured.unwrap_or_else(|error| {
        eprint_line(format_args!("error: {}", one_line(&error)));
        ExitCode::FAILURE
    })
}

async fn measure(settings: &Settings) -> Result<(), BenchError> {
    fs::create_dir_all(&settings.out)?;
    // Thousands of clients run in this process.
    process::raise_open_files()?;
    eprint_line("starting a private Redis and Postgres");
    let servers = Servers::start().await?;
    let machine = Machine::describe(&servers).await?;
    let mut figures = Figures::default();
    for row in &settings.rows {
        match row {
            Row::Drain => drain::run(settings, &servers, &mut figures).await?,
            Row::HotPost => drain::hot_post(settings, &servers, &mut figures).await?,
            Row::Ingest => ingest::run(settings, &servers, &mut figures).await?,
            Row::Pipeline => pipeline::run(settings, &servers, &mut figures).await?,
            Row::EndToEnd => end_to_end::run(settings, &servers, &mut figures).await?,
            Row::Telemetry => telemetry::run(settings, &servers, &mut figures).await?,
            Row::SlowConnections => slow_connections::run(settings, &servers, &mut figures).await?,
            Row::Growth => growth::run(settings, &servers, &mut figures).await?,
        }
        // Written after each benchmark, so that an interruption loses no finished one.
        report::write_json(&settings.out.join("results.json"), settings, &machine, &figures)?;
        plot::draw(&settings.out.join("results.svg"), &machine, &figures)?;
    }
    drop(servers);
    print_line(&report::tables(&machine, &figures));
    Ok(())
}

impl Settings {
    /// Returns whether a case is selected, and prints its progress line.
    fn begins(&self, row: &str, case: &str, run: u32) -> bool {
        let wanted = case.contains(&self.case);
        if wanted {
            eprint_line(format_args!("{row}, {case}: run {run} of {}", self.runs));
        }
        wanted
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
