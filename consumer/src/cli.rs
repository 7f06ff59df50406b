//! `likesctl`, the command line for people. One file a command.

mod migrate;
mod partitions;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use shared::{
    cli::{self, SettingError, Settings},
    service::one_line,
};
use tokio::runtime::Builder;

/// Looks after likestream.
#[derive(Parser)]
#[command(name = "likesctl", version, arg_required_else_help = true)]
struct Likesctl {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Brings the schema in Postgres up to date
    Migrate(migrate::Options),
    /// Changes how many streams the likes are spread over
    #[command(subcommand)]
    Partitions(partitions::Command),
}

impl Settings for Likesctl {
    fn check(&self) -> Result<(), SettingError> {
        Ok(())
    }
}

/// Runs the command line: 0 done, 1 failed, 2 bad usage.
pub fn main() -> ExitCode {
    let Likesctl { command } = cli::parse();
    let run = async {
        match command {
            Command::Migrate(options) => migrate::run(options).await,
            Command::Partitions(command) => partitions::run(command).await,
        }
    };
    let runtime = Builder::new_current_thread().enable_all().build();
    let done = runtime
        .map_err(|e| one_line(&e))
        .and_then(|runtime| runtime.block_on(run).map_err(|e| one_line(&*e)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(line) => {
            let _ = writeln!(io::stderr(), "error: {line}");
            ExitCode::FAILURE
        }
    }
}
