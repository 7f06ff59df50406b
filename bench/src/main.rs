//! How fast likestream is, side by side with what the machine could do at best and with the simple design: real
//! servers and programs, in turn, several runs.

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
mod progress;
mod report;
mod servers;
mod slow_connections;
mod targets;
mod telemetry;
mod traffic;

use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, ValueEnum};
use devstack::{StackError, http_client::HttpError, process};
use procfs::ProcError;
use shared::{
    error_chain::one_line,
    settings::{self, SettingError},
    wire::partition::InvalidKeyPrefix,
};
use thiserror::Error;
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    task::JoinError,
};

use crate::{figures::Figures, machine::Machine, progress::say, servers::Servers};

const EXIT_INTERRUPTED: u8 = 130;

/// Measures how fast likestream is, side by side with what the machine could do at best
#[derive(Parser, Debug)]
#[command(name = "bench")]
struct Settings {
    /// What to measure: all of it, or some rows
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "drain,hot-post,ingest,pipeline,end-to-end,telemetry,slow-connections,growth"
    )]
    rows: Vec<Row>,

    /// Only cases whose name has this in it, like "2 writers"
    #[arg(long, default_value = "", value_name = "TEXT")]
    case: String,

    /// How often each case is measured
    #[arg(long, default_value = "3", value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,

    /// Likes of a backlog to be drained
    #[arg(long, default_value = "2000000", value_parser = clap::value_parser!(u64).range(1_000..=10_000_000))]
    likes: u64,

    /// How long callers call in each run
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    duration: Duration,

    /// How many slow connections are open beside those of honest callers
    #[arg(long, default_value = "5000", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    slow_connections: u32,

    /// Rows that are in the table before it grows on, rising
    #[arg(long, value_delimiter = ',', default_value = "5000000,20000000")]
    growth_rows: Vec<u64>,

    /// The folder for results.json and results.svg
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
            return Err(SettingError::new("--growth-rows", "allowed are numbers that rise"));
        }
        Ok(())
    }
}

/// Nothing was measured.
#[derive(Debug, Error)]
enum BenchError {
    #[error(transparent)]
    Local(#[from] StackError),
    #[error(transparent)]
    Setting(#[from] SettingError),
    #[error(transparent)]
    Keys(#[from] InvalidKeyPrefix),
    #[error("Postgres failed")]
    Postgres(#[from] tokio_postgres::Error),
    #[error("Redis failed")]
    Redis(#[from] fred::error::Error),
    #[error("a process can't be looked at")]
    Process(#[from] ProcError),
    #[error("a request failed")]
    Http(#[from] HttpError),
    #[error("a like was answered {0}")]
    Refused(hyper::StatusCode),
    #[error("a part of the measuring crashed")]
    Crashed(#[from] JoinError),
    #[error("latencies can't be counted")]
    Histogram(#[from] hdrhistogram::CreationError),
    #[error("latencies can't be added")]
    HistogramAddition(#[from] hdrhistogram::AdditionError),
    #[error("the table has {rows} rows and should have {expected}: nothing of this counts")]
    Rows { rows: u64, expected: u64 },
    #[error(
        "{entries} entries are left and nothing has moved for a minute; the consumers' last words: {last_words:?}"
    )]
    Stalled { entries: u64, last_words: Vec<String> },
    #[error("a program did not end well: {last_words}")]
    Ended { last_words: String },
    #[error("of {wanted} slow connections {open} are open, closed by ingest so far: {closed}")]
    SlowConnections { wanted: u32, open: u64, closed: u64 },
    #[error("{0}")]
    Answer(&'static str),
    #[error("a file can't be written or read")]
    Io(#[from] io::Error),
    #[error("the figures can't be written as JSON")]
    Json(#[from] serde_json::Error),
    #[error("the plot can't be drawn: {0}")]
    Plot(String),
}

fn main() -> ExitCode {
    let settings: Settings = settings::parse();
    let measured = Runtime::new().map_err(BenchError::from).and_then(|runtime| {
        runtime.block_on(async {
            let mut interrupt = signal(SignalKind::interrupt())?;
            let mut terminate = signal(SignalKind::terminate())?;
            // What was started ends with the future.
            tokio::select! {
                measured = measure(&settings) => measured.map(|()| ExitCode::SUCCESS),
                _ = interrupt.recv() => Ok(ExitCode::from(EXIT_INTERRUPTED)),
                _ = terminate.recv() => Ok(ExitCode::from(EXIT_INTERRUPTED)),
            }
        })
    });
    measured.unwrap_or_else(|error| {
        let _ = writeln!(io::stderr(), "error: {}", one_line(&error));
        ExitCode::FAILURE
    })
}

async fn measure(settings: &Settings) -> Result<(), BenchError> {
    fs::create_dir_all(&settings.out)?;
    // For the callers, who are in this process.
    process::raise_open_files()?;
    say("starting private Redis and Postgres");
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
        // After each row: what is measured by then outlives an interruption.
        report::write_json(&settings.out.join("results.json"), settings, &machine, &figures)?;
        plot::draw(&settings.out.join("results.svg"), &machine, &figures)?;
    }
    drop(servers);
    writeln!(io::stdout(), "{}", report::tables(&machine, &figures))?;
    Ok(())
}

impl Settings {
    /// Whether a case is to be measured. Says so.
    fn begins(&self, row: &str, case: &str, run: u32) -> bool {
        let wanted = case.contains(&self.case);
        if wanted {
            say(&format!("{row}, {case}: run {run} of {}", self.runs));
        }
        wanted
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
