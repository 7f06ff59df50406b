//! `likesctl`, the command line for operators, on top of the consumer's library.
//!
//! This file defines the clap command tree and dispatches to `commands`, one file or folder per command. Dependencies
//! point downwards: `commands` → `reassign` → `action`, `verifier`, `pending_detail` → `dead_letter_record` → `scan` → `audit`,
//! `overview`, `selection`, `likes_table`, `database` → `context`, `output` → `exit`. Every change goes through `action`:
//! preview, confirmation, audit, application.

mod action;
mod audit;
mod commands;
mod context;
mod database;
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
        audit as audit_log, consumers, container, dead, doctor, drain, group, incidents, migrate, partitions,
        pause, pending, reprocess, shell, status, top, verify,
    },
    exit::{CliError, Exit},
};

/// Inspect, diagnose and repair a likestream pipeline
#[derive(Parser)]
#[command(
    name = "likesctl",
    version,
    arg_required_else_help = true,
    after_help = "Examples:\n  likesctl status\n  likesctl doctor\n  likesctl pending list --min-idle 5m\n\n\
        Exit codes:\n    \
          0  Success\n    \
          1  Failure\n    \
          2  Invalid usage\n    \
          4  Some entries were skipped\n    \
          5  Likes are missing from the table (verify)\n    \
          6  Refused: not confirmed, or unsafe\n  \
          130  Interrupted\n\n\
        Exit codes of status --check: 0 ok, 1 warning, 2 critical, 3 unknown\n\n\
        Reference: docs/likesctl.md. Alerts: docs/runbook.md"
)]
struct Likesctl {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the state of the pipeline by partition
    #[command(after_help = "Examples:\n  likesctl status\n  likesctl status --watch=5s\n  \
        likesctl status --check --backlog 10000,100000 --oldest-age 30s,5m")]
    Status(Box<status::Options>),
    /// Show a live view of the pipeline
    ///
    /// Keys: s, Left and Right change the sort order. Up and Down select a partition. Enter opens its oldest pending
    /// entry. q quits.
    #[command(after_help = "Examples:\n  likesctl top\n  likesctl top --interval 5s")]
    Top(top::Options),
    /// Diagnose the pipeline and suggest fixes
    ///
    /// Prints the state of each check (ok, warn or fail), with advice unless it is ok. Changes nothing. Exits with 1
    /// if a check fails.
    #[command(after_help = "Examples:\n  likesctl doctor\n  likesctl doctor -o json")]
    Doctor(doctor::Options),
    /// List, retry, reassign, acknowledge and drop pending entries
    #[command(subcommand, arg_required_else_help = true)]
    Pending(Box<pending::Command>),
    /// List and remove consumers of the group
    #[command(subcommand, arg_required_else_help = true)]
    Consumers(consumers::Command),
    /// List, retry, purge, export and import dead letters
    #[command(subcommand, arg_required_else_help = true)]
    Dead(Box<dead::Command>),
    /// Check that all acknowledged likes are in the table or in dead letters
    ///
    /// Compares acknowledged entries that are still in the streams; consumers keep these for STREAM_RETENTION. Exits
    /// with 5 if a like is missing from the table.
    #[command(after_help = "Examples:\n  likesctl verify --from 1h\n  likesctl verify --sample 1000")]
    Verify(verify::Options),
    /// Write a range of stream entries to the table again
    ///
    /// The position of the consumer group does not change, and existing rows stay as they are. Only entries that are
    /// still in the streams can be read; consumers keep acknowledged entries for STREAM_RETENTION.
    #[command(after_help = "Examples:\n  likesctl reprocess --from 2h --to 1h -p 3")]
    Reprocess(reprocess::Options),
    /// Stop consumers from reading partitions
    ///
    /// In-flight likes are still stored. Ingest keeps accepting likes, which wait in Redis until likesctl resume.
    #[command(after_help = "Examples:\n  likesctl pause\n  likesctl pause -p 3 --reason-text 'ticket 7'")]
    Pause(pause::Options),
    /// Resume reading of paused partitions
    #[command(after_help = "Examples:\n  likesctl resume\n  likesctl resume -p 3")]
    Resume(pause::Options),
    /// Wait until the backlog is 0
    ///
    /// Exits with 1 on timeout.
    #[command(after_help = "Examples:\n  likesctl drain --timeout 5m")]
    Drain(drain::Options),
    /// List changes made with likesctl
    #[command(after_help = "Examples:\n  likesctl audit\n  likesctl audit --limit 10 -o wide")]
    Audit(audit_log::Options),
    /// Apply pending migrations to the Postgres schema
    ///
    /// Grants privileges on the tables to the roles of sql/roles.sql that exist. Connect directly to Postgres,
    /// or through a pooler in session mode: the migration lock belongs to a session.
    #[command(after_help = "Examples:\n  likesctl migrate")]
    Migrate(migrate::Options),
    /// Show and change the database that the consumer group writes to
    #[command(subcommand, arg_required_else_help = true)]
    Group(Box<group::Command>),
    /// List and acknowledge losses in Redis and Postgres
    #[command(subcommand, arg_required_else_help = true)]
    Incidents(Box<incidents::Command>),
    /// Change the number of partitions
    #[command(subcommand, arg_required_else_help = true)]
    Partitions(partitions::Command),
    /// Check whether a service is ready, for container health checks
    ///
    /// Prints the readiness report of the service. Exits with 1 if the service is not ready.
    #[command(after_help = "Examples:\n  likesctl ready 127.0.0.1:8081")]
    Ready(container::ReadyOptions),
    /// Wait for a signal, as the main process of a container
    ///
    /// Keeps a container running, so that likesctl commands can be run in it.
    #[command(after_help = "Examples:\n  likesctl idle")]
    Idle,
    /// Print a shell completion script
    #[command(after_help = "Examples:\n  likesctl completions bash > /etc/bash_completion.d/likesctl")]
    Completions(shell::CompletionsOptions),
    /// Print the manual page, or write the pages of all commands
    #[command(after_help = "Examples:\n  likesctl man\n  likesctl man --out /usr/local/share/man/man1")]
    Man(shell::ManOptions),
}

impl Settings for Likesctl {
    fn check(&self) -> Result<(), SettingError> {
        Ok(())
    }
}

/// Returns the command tree, for generated documentation.
pub fn command() -> clap::Command {
    Likesctl::command()
}

/// Runs the command line. `likesctl --help` lists the exit codes.
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
    // A thread may still be blocked in a read of standard input.
    runtime.shutdown_background();
    ended
}

/// Runs a command. An interruption cancels a command that only reads. Commands that change data stop between two steps.
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
            Self::Group(command) => command.is_change(),
            Self::Incidents(command) => command.is_change(),
            // Top restores the terminal, drain prints a report, and idle waits for the signal.
            Self::Reprocess(_)
            | Self::Pause(_)
            | Self::Resume(_)
            | Self::Partitions(_)
            | Self::Top(_)
            | Self::Drain(_)
            | Self::Idle => true,
            // Migrate makes all its changes in one transaction.
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

/// Returns the future of a command. Boxing compiles each command separately and keeps the dispatching future small.
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
        Command::Group(command) => Box::pin(group::run(*command, interrupt)),
        Command::Incidents(command) => Box::pin(incidents::run(*command, interrupt)),
        Command::Partitions(command) => Box::pin(partitions::run(command, interrupt)),
        Command::Ready(options) => Box::pin(container::ready(options)),
        Command::Idle => Box::pin(async { Ok(container::idle(interrupt).await) }),
        Command::Completions(options) => {
            Box::pin(async move { shell::completions(&options, Likesctl::command()) })
        }
        Command::Man(options) => Box::pin(async move { shell::man(options, Likesctl::command()) }),
    }
}
