//! `likesctl`, the command line for operators, on top of the consumer's library.
//!
//! This file has the clap tree and the dispatch to `commands`, one file or folder per command. Dependencies point
//! downwards: `commands` → `reassign` → `action`, `verifier`, `pending_detail` → `dead_letter_record` → `scan` → `audit`,
//! `overview`, `selection`, `likes_table` → `context`, `output` → `exit`. Every change goes through `action`:
//! preview, confirmation, audit, application.

mod action;
mod audit;
mod commands;
mod context;
mod dead_letter_record;
mod exit;
mod likes_table;
mod output;
mod overview;
mod pending_detail;
mod reassign;
mod scan;
mod selection;
mod verifier;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use futures_util::future::LocalBoxFuture;
use shared::{
    runtime::shutdown,
    settings::{self, SettingError, Settings},
    stderr::eprint_line,
};
use tokio::runtime::Builder;
use tokio_util::sync::CancellationToken;

use crate::{
    commands::{
        audit as audit_log, consumers, container, dead, doctor, drain, migrate, partitions, pause, pending,
        reprocess, shell, status, top, verify,
    },
    exit::{CliError, Exit},
};

/// Operate likestream: inspect, diagnose and repair the pipeline
#[derive(Parser)]
#[command(
    name = "likesctl",
    version,
    arg_required_else_help = true,
    after_help = "Begin with: likesctl status, then likesctl doctor. What to do about an alert: docs/runbook.md\n\n\
        Exit codes: 0 done, 1 failed, 2 wrong usage, 4 some entries skipped, 5 likes missing in the table, 6 refused, \
        130 interrupted; status --check: 0 ok, 1 warning, 2 critical, 3 unknown"
)]
struct Likesctl {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the state of the pipeline, partition by partition
    #[command(after_help = "Examples:\n  likesctl status\n  likesctl status --watch=5s\n  \
        likesctl status --check --backlog 10000,100000 --oldest-age 30s,5m")]
    Status(Box<status::Options>),
    /// Show the pipeline on one live screen
    #[command(
        after_help = "Keys: s or arrows left and right sort, arrows up and down select, Enter opens the oldest pending entry, q quits.\n\n\
        Example: likesctl top"
    )]
    Top(top::Options),
    /// Diagnose the pipeline and say what to do about each problem
    #[command(after_help = "Exits with 1 if a check fails.\n\nExample: likesctl doctor")]
    Doctor(doctor::Options),
    /// List and change pending entries
    #[command(subcommand, arg_required_else_help = true)]
    Pending(Box<pending::Command>),
    /// List and remove consumers of the group
    #[command(subcommand, arg_required_else_help = true)]
    Consumers(consumers::Command),
    /// List, retry, purge, export and import dead letters
    #[command(subcommand, arg_required_else_help = true)]
    Dead(Box<dead::Command>),
    /// Compare the streams and the dead letters with the table
    #[command(
        after_help = "Only entries that are still in the streams can be compared: acknowledged ones stay for STREAM_RETENTION. \
        Exits with 5 if a like is missing.\n\nExamples:\n  likesctl verify --from 1h\n  likesctl verify --sample 1000"
    )]
    Verify(verify::Options),
    /// Write a range of the streams into the table again, without moving the group
    #[command(
        after_help = "Only entries that are still in the streams can be read: acknowledged ones stay for STREAM_RETENTION. \
        Existing rows stay as they are.\n\nExample: likesctl reprocess --from 2h --to 1h -p 3"
    )]
    Reprocess(reprocess::Options),
    /// Stop consumers from reading all or some partitions, until resume
    #[command(
        after_help = "Ingest still accepts likes: they wait in Redis.\n\nExample: likesctl pause -p 3 --reason-text 'ticket 7'"
    )]
    Pause(pause::Options),
    /// Let consumers read paused partitions again
    #[command(after_help = "Example: likesctl resume")]
    Resume(pause::Options),
    /// Wait until the backlog is 0
    #[command(after_help = "Exits with 1 on timeout.\n\nExample: likesctl drain --timeout 5m")]
    Drain(drain::Options),
    /// List changes made with likesctl
    #[command(after_help = "Example: likesctl audit -o wide")]
    Audit(audit_log::Options),
    /// Apply pending migrations to the Postgres schema
    #[command(after_help = "Example: likesctl migrate")]
    Migrate(migrate::Options),
    /// Change the number of partitions
    #[command(subcommand, arg_required_else_help = true)]
    Partitions(partitions::Command),
    /// Check whether a service is ready, for the health check of a container
    #[command(after_help = "Exits with 1 if it is not.\n\nExample: likesctl ready 127.0.0.1:8081")]
    Ready(container::ReadyOptions),
    /// Wait for a signal, as the main process of a container to run likesctl in
    #[command(after_help = "Example: likesctl idle")]
    Idle,
    /// Print a completion script for a shell
    #[command(after_help = "Example: likesctl completions bash > /etc/bash_completion.d/likesctl")]
    Completions(shell::CompletionsOptions),
    /// Print the manual page
    #[command(after_help = "Example: likesctl man --out /usr/local/share/man/man1")]
    Man(shell::ManOptions),
}

impl Settings for Likesctl {
    fn check(&self) -> Result<(), SettingError> {
        Ok(())
    }
}

/// Runs the command line. The exit codes are in its help.
pub fn main() -> ExitCode {
    let Likesctl { command } = settings::parse();
    match block_on(command) {
        Ok(exit) => exit.code().into(),
        Err(error) => {
            let (line, code) = error.line_and_code();
            if let Some(line) = line {
                eprint_line(format_args!("error: {}", output::printable(&line)));
            }
            code.into()
        }
    }
}

fn block_on(command: Command) -> Result<Exit, CliError> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        let interrupt = shutdown::on_signal()?;
        run(command, &interrupt).await
    });
    // A read of standard input may still block a thread.
    runtime.shutdown_background();
    ended
}

/// Runs a command. An interruption ends one that only reads; others end between two steps.
async fn run(command: Command, interrupt: &CancellationToken) -> Result<Exit, CliError> {
    let handles_interrupt = command.handles_interrupt();
    let ended = dispatch(command, interrupt);
    if handles_interrupt {
        return ended.await;
    }
    interrupt.run_until_cancelled(ended).await.unwrap_or(Ok(Exit::Interrupted))
}

impl Command {
    fn handles_interrupt(&self) -> bool {
        match self {
            Self::Pending(command) => command.is_change(),
            Self::Consumers(command) => command.is_change(),
            Self::Dead(command) => command.is_change(),
            // The last three restore the terminal, print a report, or wait for the signal.
            Self::Reprocess(_)
            | Self::Pause(_)
            | Self::Resume(_)
            | Self::Partitions(_)
            | Self::Top(_)
            | Self::Drain(_)
            | Self::Idle => true,
            // All changes of migrate are one transaction.
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

/// Returns the command's future, boxed: each command is compiled on its own, and none is part of another's state.
fn dispatch(command: Command, interrupt: &CancellationToken) -> LocalBoxFuture<'_, Result<Exit, CliError>> {
    match command {
        Command::Status(options) => Box::pin(status::run(*options, interrupt)),
        Command::Top(options) => Box::pin(top::run(options, interrupt)),
        Command::Doctor(options) => Box::pin(doctor::run(options)),
        Command::Pending(command) => Box::pin(pending::run(*command, interrupt)),
        Command::Consumers(command) => Box::pin(consumers::run(command, interrupt)),
        Command::Dead(command) => Box::pin(dead::run(*command, interrupt)),
        Command::Verify(options) => Box::pin(verify::run(options)),
        Command::Reprocess(options) => Box::pin(reprocess::run(options, interrupt)),
        Command::Pause(options) => Box::pin(pause::pause(options, interrupt)),
        Command::Resume(options) => Box::pin(pause::resume(options, interrupt)),
        Command::Drain(options) => Box::pin(drain::run(options, interrupt)),
        Command::Audit(options) => Box::pin(audit_log::run(options)),
        Command::Migrate(options) => Box::pin(migrate::run(options)),
        Command::Partitions(command) => Box::pin(partitions::run(command, interrupt)),
        Command::Ready(options) => Box::pin(container::ready(options)),
        Command::Idle => Box::pin(async { Ok(container::idle(interrupt).await) }),
        Command::Completions(options) => {
            Box::pin(async move { shell::completions(&options, Likesctl::command()) })
        }
        Command::Man(options) => Box::pin(async move { shell::man(options, Likesctl::command()) }),
    }
}
