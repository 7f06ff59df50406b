//! `likesctl consumers`

use clap::{Args, Subcommand};
use fred::prelude::Error;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{
    access::{MENDER, RedisAccess, Site},
    action::{Act, ActionArgs, say},
    exit::{CliError, Exit},
    output::{count, print_document},
    pending::retry_matching,
    selection::Filter,
    status::{self, LookOptions},
};
use crate::config::group_name;

#[derive(Subcommand)]
pub(super) enum Command {
    /// Lists the consumers of the group, dead ones with entries as well
    #[command(after_help = "Example: likesctl consumers list -o wide")]
    List(LookOptions),
    /// Takes a dead consumer out of the group; its pending entries go to those that live
    #[command(
        after_help = "One that lives is not removed: stop it first.\n\nExample: likesctl consumers remove host-1-77-0a1b2c3d"
    )]
    Remove(RemoveOptions),
}

#[derive(Args)]
pub(super) struct RemoveOptions {
    /// Its name
    #[arg(value_name = "NAME", value_parser = group_name)]
    name: String,

    #[command(flatten)]
    action: ActionArgs,

    #[command(flatten)]
    redis: RedisAccess,
}

#[derive(Serialize)]
struct RemoveReport {
    command: &'static str,
    /// Pending entries that others have now.
    given: u64,
    removed: bool,
}

impl Command {
    pub(super) fn changes_something(&self) -> bool {
        matches!(self, Self::Remove(_))
    }
}

pub(super) async fn run(command: Command, interrupt: &CancellationToken) -> Result<Exit, CliError> {
    match command {
        Command::List(options) => status::consumers(options).await,
        Command::Remove(options) => remove(options, interrupt).await,
    }
}

async fn remove(
    RemoveOptions { name, action, redis }: RemoveOptions,
    interrupt: &CancellationToken,
) -> Result<Exit, CliError> {
    let site = redis.open().await?;
    let all: Vec<_> = site.partitions.partitions().collect();
    let overview = site.overview(&all).await?;
    let Some(consumer) = overview.consumers.into_iter().find(|consumer| consumer.name == name) else {
        return Err(CliError::failed(format!(
            "the group {} knows no consumer '{name}'",
            site.streams.group()
        )));
    };
    if consumer.is_alive() {
        return Err(CliError::Refused(format!("{name} is alive: stop it, then it leaves by itself")));
    }
    let mut act = Act {
        command: "consumers remove",
        what: ("pending entries", "pending entry"),
        effect: format!("given to those that live, and {name} removed"),
        selection: &name,
        args: &action,
        interrupt,
    };
    if consumer.pending > 0 && name != MENDER {
        let filter = Filter { partitions: all, consumer: Some(name.clone()), ..Filter::everything() };
        let report = retry_matching(&site, &filter, &act).await?;
        if report.interrupted || action.dry_run {
            return act.tell(&report);
        }
        return removed(take_out(&site, &name).await?, report.done, &action);
    }
    act.effect = format!("{name}, which has nothing pending, is removed");
    match act.once(&site, 1, take_out(&site, &name)).await? {
        Some(is_out) => removed(is_out, 0, &action),
        None => act.tell(&act.report(1)),
    }
}

/// Takes a consumer out wherever it has nothing pending; says whether that is everywhere.
async fn take_out(site: &Site, name: &str) -> Result<bool, Error> {
    for partition in site.partitions.partitions() {
        site.streams.remove_consumer(partition, name).await?;
    }
    site.streams.forget_member(name).await?;
    Ok(!site.knows_consumer(name).await?)
}

fn removed(removed: bool, given: u64, action: &ActionArgs) -> Result<Exit, CliError> {
    let report = RemoveReport { command: "consumers remove", given, removed };
    print_document(action.output, &report, |_| {
        let what = if removed { "removed" } else { "not removed" };
        format!("{what}; {} pending entries given to those that live", count(given))
    })?;
    if !removed {
        say(
            "it has pending entries still or again, as entries deleted from a stream are: see likesctl doctor",
        );
    }
    Ok(if removed { Exit::Done } else { Exit::Partial })
}
