//! `devstack`: the demo, and the same stack kept running for a developer.

mod backlog;
mod chaos;
mod daemon;
mod demo;
mod figures;
mod insert_each;
mod load;
mod progress;
mod report;
mod run;
mod stack;
mod stack_redis;
mod verify;

use std::{
    error::Error,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use shared::{
    error_chain::one_line,
    settings::{self, SettingError, Settings},
};
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
};

/// Runs all of likestream on this machine: private Redis and Postgres, ingest, two consumers.
#[derive(Parser)]
#[command(name = "devstack", version, arg_required_else_help = true)]
struct Devstack {
    #[command(subcommand)]
    command: Command,

    /// Where up, down, status and logs find each other [default: beside this program]
    #[arg(long, env = "DEVSTACK_STATE", value_name = "FILE")]
    state: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Fires a celebrity storm of likes at a private stack and checks that none is lost or doubled
    Demo(DemoOptions),
    /// Kills, freezes, cuts and poisons a private stack under load and checks that no like is lost or doubled
    Chaos(chaos::ChaosOptions),
    /// Runs a command beside a private Redis and ingest, which end with it; its exit code is passed on
    Run(run::RunOptions),
    /// Starts the stack and leaves it running
    Up,
    /// Stops the stack that `up` has started and removes its data
    Down,
    /// Tells how the stack is; exit code 3 unless all of it is well
    Status,
    /// Shows the last lines of all logs
    Logs {
        /// Go on as more is written
        #[arg(long, short)]
        follow: bool,
    },
}

/// How big the demo is.
#[derive(clap::Args)]
struct DemoOptions {
    /// How many likes are sent
    #[arg(long, env = "LIKES", default_value = "1000000", value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    likes: u32,

    /// How many percent of them repeat an earlier one
    #[arg(long, env = "DUPLICATES", default_value = "5", value_parser = clap::value_parser!(u8).range(0..=100))]
    duplicates: u8,

    /// How many connections send them
    #[arg(long, env = "CONNECTIONS", default_value = "128", value_parser = clap::value_parser!(u16).range(1..=4096))]
    connections: u16,

    /// Where the figures go as JSON
    #[arg(long, default_value = "target/demo.json", value_name = "FILE")]
    json: PathBuf,
}

impl Settings for Devstack {
    fn check(&self) -> Result<(), SettingError> {
        Ok(())
    }
}

const EXIT_INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let Devstack { command, state } = settings::parse();
    let state = || state.map_or_else(daemon::default_state_file, Ok);
    let done = match command {
        Command::Demo(options) => until_interrupted(async { demo::run(&options).await.map(exit_code) }),
        Command::Chaos(options) => until_interrupted(async { chaos::run(&options).await.map(exit_code) }),
        Command::Run(options) => until_interrupted(run::run(&options)),
        Command::Up => state().map_err(Into::into).and_then(|file| start_to_keep(&file)),
        Command::Down => state().map_err(Into::into).and_then(|file| daemon::down(&file)),
        Command::Status => state().map_err(Into::into).and_then(|file| daemon::status(&file)),
        Command::Logs { follow } => state().map_err(Into::into).and_then(|file| daemon::logs(&file, follow)),
    };
    done.unwrap_or_else(|error| {
        let _ = writeln!(io::stderr(), "error: {}", one_line(&*error));
        ExitCode::FAILURE
    })
}

/// Of what tells whether every promise was kept.
fn exit_code(passed: bool) -> ExitCode {
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs to the end. Ended by a signal it is dropped, and with it everything that it has started.
fn until_interrupted(
    run: impl Future<Output = Result<ExitCode, Box<dyn Error>>>,
) -> Result<ExitCode, Box<dyn Error>> {
    Runtime::new()?.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        tokio::select! {
            exit_code = run => exit_code,
            _ = interrupt.recv() => Ok(interrupted()),
            _ = terminate.recv() => Ok(interrupted()),
            _ = hang_up.recv() => Ok(interrupted()),
        }
    })
}

/// A signal that comes while the stack starts must not leave half of it to live on.
fn start_to_keep(state: &Path) -> Result<ExitCode, Box<dyn Error>> {
    Runtime::new()?.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        daemon::up(state, async || {
            tokio::select! {
                biased;
                _ = interrupt.recv() => true,
                _ = terminate.recv() => true,
                _ = hang_up.recv() => true,
                () = tokio::task::yield_now() => false,
            }
        })
        .await
    })
}

fn interrupted() -> ExitCode {
    let _ = writeln!(io::stderr(), "\ninterrupted: stopping everything");
    ExitCode::from(EXIT_INTERRUPTED)
}
