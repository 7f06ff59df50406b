//! `likesctl`, the command line for operators, on top of the consumer's library.
//!
//! `commands` has one file per command or family of commands. `context` connects to the streams and the table, `overview`
//! collects the state of the whole pipeline, `selection` and `scan` find the entries that a command is about, `action`
//! is how anything is changed (preview, confirm, do, audit), `output` and `exit` report it.

mod action;
mod audit;
mod check;
mod commands;
mod context;
mod dead_letter_record;
mod exit;
mod output;
mod overview;
mod scan;
mod selection;
mod table;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::{CommandFactory, Parser, Subcommand};
use shared::{
    runtime::shutdown,
    settings::{self, SettingError, Settings},
};
use tokio::runtime::Builder;
use tokio_util::sync::CancellationToken;

use crate::{
    commands::{
        consumers, container, dead, doctor, migrate, partitions, pause, pending, reprocess, shell, status,
        top, verify,
    },
    exit::{CliError, Exit},
};

/// Looks after likestream: shows how it stands, and mends it.
#[derive(Parser)]
#[command(
    name = "likesctl",
    version,
    arg_required_else_help = true,
    after_help = "Begin with: likesctl status, then likesctl doctor. What to do about an alarm: docs/runbook.md\n\n\
        Exit codes: 0 done, 1 failed, 2 wrong usage, 4 not all of it was done, 5 table and streams differ, 6 refused, \
        130 interrupted; status --check: 0 ok, 1 warning, 2 critical, 3 unknown"
)]
struct Likesctl {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Shows how everything stands, partition by partition
    #[command(after_help = "Examples:\n  likesctl status\n  likesctl status --watch=5s\n  \
        likesctl status --check --backlog 10000,100000 --oldest-age 30s,5m")]
    Status(Box<status::StatusOptions>),
    /// Shows everything on one screen that keeps itself up to date
    #[command(
        after_help = "Keys: s or arrows left and right sort, arrows up and down choose, Enter opens the oldest pending entry, q ends.\n\n\
        Example: likesctl top"
    )]
    Top(top::Options),
    /// Looks for everything that can be wrong, and says what to do
    #[command(after_help = "Ends with 1 if anything fails.\n\nExample: likesctl doctor")]
    Doctor(doctor::Options),
    /// Entries that were delivered and are not acknowledged
    #[command(subcommand, arg_required_else_help = true)]
    Pending(Box<pending::Command>),
    /// The consumers of the group
    #[command(subcommand, arg_required_else_help = true)]
    Consumers(consumers::Command),
    /// What could not be stored
    #[command(subcommand, arg_required_else_help = true)]
    Dead(Box<dead::Command>),
    /// Compares the streams and the dead letters with the table
    #[command(
        after_help = "Only what is still in the streams can be compared: acknowledged entries stay for STREAM_RETENTION. \
        Ends with 5 if a like is missing.\n\nExamples:\n  likesctl verify --from 1h\n  likesctl verify --sample 1000"
    )]
    Verify(verify::Options),
    /// Writes a range of the streams once more into the table; the group stays where it is
    #[command(
        after_help = "Only what is still in the streams can be read: acknowledged entries stay for STREAM_RETENTION. \
        What the table has stays as it is.\n\nExample: likesctl reprocess --from 2h --to 1h -p 3"
    )]
    Reprocess(reprocess::Options),
    /// Has consumers read nothing, of all partitions or some, until resume
    #[command(
        after_help = "Callers are served on: likes wait in Redis.\n\nExample: likesctl pause -p 3 --reason-text 'ticket 7'"
    )]
    Pause(pause::PauseOptions),
    /// Has consumers read again
    #[command(after_help = "Example: likesctl resume")]
    Resume(pause::PauseOptions),
    /// Waits until nothing is left to be stored
    #[command(after_help = "Ends with 1 when the time is over.\n\nExample: likesctl drain --timeout 5m")]
    Drain(pause::DrainOptions),
    /// Shows who has changed what by likesctl
    #[command(after_help = "Example: likesctl audit -o wide")]
    Audit(commands::audit::Options),
    /// Brings the schema in Postgres up to date
    #[command(after_help = "Example: likesctl migrate")]
    Migrate(migrate::Options),
    /// Changes how many streams the likes are spread over
    #[command(subcommand, arg_required_else_help = true)]
    Partitions(partitions::Command),
    /// Asks a service whether it is ready, for a container's health check
    #[command(after_help = "Ends with 1 if it isn't.\n\nExample: likesctl ready 127.0.0.1:8081")]
    Ready(container::ReadyOptions),
    /// Does nothing until it is told to end: for a container to run likesctl in
    #[command(after_help = "Example: likesctl idle")]
    Idle,
    /// Prints what a shell needs to complete commands
    #[command(after_help = "Example: likesctl completions bash > /etc/bash_completion.d/likesctl")]
    Completions(shell::CompletionsOptions),
    /// Prints the manual page
    #[command(after_help = "Example: likesctl man --out /usr/local/share/man/man1")]
    Man(shell::ManOptions),
}

impl Settings for Likesctl {
    fn check(&self) -> Result<(), SettingError> {
        Ok(())
    }
}

/// Runs the command line. How it ends is in its help.
pub fn main() -> ExitCode {
    let Likesctl { command } = settings::parse();
    let ended =
        Builder::new_current_thread().enable_all().build().map_err(CliError::from).and_then(|runtime| {
            let ended = runtime.block_on(async {
                let interrupt = shutdown::on_signal()?;
                Box::pin(run(command, &interrupt)).await
            });
            runtime.shutdown_background();
            ended
        });
    match ended {
        Ok(exit) => exit.code().into(),
        Err(error) => {
            let (line, code) = error.end();
            if let Some(line) = line {
                let _ = writeln!(io::stderr(), "error: {}", output::printable(&line));
            }
            code.into()
        }
    }
}

/// What only looks ends at once when it is interrupted; what changes something ends by itself, between two steps.
async fn run(command: Command, interrupt: &CancellationToken) -> Result<Exit, CliError> {
    if command.ends_by_itself() {
        return Box::pin(dispatch(command, interrupt)).await;
    }
    let looked = interrupt.run_until_cancelled(Box::pin(dispatch(command, interrupt))).await;
    looked.unwrap_or(Ok(Exit::Interrupted))
}

impl Command {
    fn ends_by_itself(&self) -> bool {
        match self {
            Self::Pending(command) => command.changes_something(),
            Self::Consumers(command) => command.changes_something(),
            Self::Dead(command) => command.changes_something(),
            // The last two have a screen to put in order, or tell how far they got.
            Self::Reprocess(_)
            | Self::Pause(_)
            | Self::Resume(_)
            | Self::Partitions(_)
            | Self::Top(_)
            | Self::Drain(_)
            | Self::Idle => true,
            // What it does is one transaction.
            Self::Migrate(_)
            | Self::Status(_)
            | Self::Doctor(_)
            | Self::Verify(_)
            | Self::Audit(_)
            | Self::Ready(_)
            | Self::Completions(_)
            | Self::Man(_) => false,
        }
    }
}

async fn dispatch(command: Command, interrupt: &CancellationToken) -> Result<Exit, CliError> {
    match command {
        Command::Status(options) => status::status(*options, interrupt).await,
        Command::Top(options) => top::run(options, interrupt).await,
        Command::Doctor(options) => doctor::run(options).await,
        Command::Pending(command) => Box::pin(pending::run(*command, interrupt)).await,
        Command::Consumers(command) => consumers::run(command, interrupt).await,
        Command::Dead(command) => dead::run(*command, interrupt).await,
        Command::Verify(options) => verify::run(options).await,
        Command::Reprocess(options) => reprocess::run(options, interrupt).await,
        Command::Pause(options) => pause::pause(options, interrupt).await,
        Command::Resume(options) => pause::resume(options, interrupt).await,
        Command::Drain(options) => pause::drain(options, interrupt).await,
        Command::Audit(options) => commands::audit::run(options).await,
        Command::Migrate(options) => migrate::run(options).await,
        Command::Partitions(command) => partitions::run(command, interrupt).await,
        Command::Ready(options) => container::ready(options).await,
        Command::Idle => Ok(container::idle(interrupt).await),
        Command::Completions(options) => shell::completions(&options, Likesctl::command()),
        Command::Man(options) => shell::man(options, Likesctl::command()),
    }
}
