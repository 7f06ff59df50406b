//! `devstack`: demo and chaos runs on a private stack, and a long-running stack for development.
//!
//! Purpose: the commands of the program. May depend on the library of this crate and on `shared`; the commands `demo`,
//! `chaos`, `run` and `daemon` do not depend on one another.

mod chaos;
mod daemon;
mod demo;
mod insert_each;
mod json_file;
mod load;
mod progress;
mod report;
mod run;
mod stack;
mod stack_redis;
mod verify;

use std::{
    error::Error,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use devstack::signals::{EXIT_INTERRUPTED, Interrupts};
use shared::{
    error_chain::one_line,
    settings::{self, SettingError, Settings},
    stderr::eprint_line,
};
use tokio::runtime::Runtime;

/// Run likestream on this machine: a private Redis and Postgres, ingest and two consumers
#[derive(Parser)]
#[command(name = "devstack", version, arg_required_else_help = true)]
struct Devstack {
    #[command(subcommand)]
    command: Command,

    /// State file of up, down, status and logs [default: in the folder of this program]
    #[arg(long, env = "DEVSTACK_STATE", value_name = "FILE")]
    state: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Send many concurrent likes to a private stack and verify that none is lost or duplicated
    Demo(demo::DemoOptions),
    /// Inject faults into a private stack under load and verify that no like is lost or duplicated
    Chaos(chaos::ChaosOptions),
    /// Run a command with a private Redis and ingest, and return its exit code
    Run(run::RunOptions),
    /// Start the stack and leave it running
    Up,
    /// Stop the stack and remove its data
    Down,
    /// Show the state of the stack (exit code 3 if a process is unhealthy)
    Status,
    /// Show the last lines of all logs
    Logs {
        /// Print new lines as they are written
        #[arg(long, short)]
        follow: bool,
    },
}

impl Settings for Devstack {
    fn check(&self) -> Result<(), SettingError> {
        Ok(())
    }
}

fn main() -> ExitCode {
    let Devstack { command, state } = settings::parse();
    let state = || state.map_or_else(daemon::default_state_file, Ok);
    let result = match command {
        Command::Demo(options) => until_interrupted(async { demo::run(&options).await.map(exit_code) }),
        Command::Chaos(options) => until_interrupted(async { chaos::run(&options).await.map(exit_code) }),
        Command::Run(options) => until_interrupted(run::run(&options)),
        Command::Up => state().map_err(Into::into).and_then(|file| up(&file)),
        Command::Down => state().map_err(Into::into).and_then(|file| daemon::down(&file)),
        Command::Status => state().map_err(Into::into).and_then(|file| daemon::status(&file)),
        Command::Logs { follow } => state().map_err(Into::into).and_then(|file| daemon::logs(&file, follow)),
    };
    result.unwrap_or_else(|error| {
        eprint_line(format_args!("error: {}", one_line(&*error)));
        ExitCode::FAILURE
    })
}

fn exit_code(passed: bool) -> ExitCode {
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs a future until it completes or a signal arrives. A signal drops the future and thereby ends all its processes.
fn until_interrupted(
    run: impl Future<Output = Result<ExitCode, Box<dyn Error>>>,
) -> Result<ExitCode, Box<dyn Error>> {
    Runtime::new()?.block_on(async {
        let mut interrupts = Interrupts::install()?;
        tokio::select! {
            exit_code = run => exit_code,
            () = interrupts.recv() => Ok(interrupted()),
        }
    })
}

/// Starts the stack. A signal during the start must leave no process running.
fn up(state: &Path) -> Result<ExitCode, Box<dyn Error>> {
    Runtime::new()?.block_on(async {
        let mut interrupts = Interrupts::install()?;
        daemon::up(state, async || {
            tokio::select! {
                biased;
                () = interrupts.recv() => true,
                () = tokio::task::yield_now() => false,
            }
        })
        .await
    })
}

fn interrupted() -> ExitCode {
    eprint_line("\ninterrupted: stopping all processes");
    ExitCode::from(EXIT_INTERRUPTED)
}
