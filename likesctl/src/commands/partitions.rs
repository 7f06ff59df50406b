//! `likesctl partitions`

use clap::{Args, Subcommand};
use serde::Serialize;
use shared::{cluster_settings, wire::partition::PartitionCount};
use tokio_util::sync::CancellationToken;

use crate::{
    action::{Action, ActionArgs},
    context::RedisAccess,
    exit::{CliError, Exit},
    output::print_document,
};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Raises the number of partitions while everything runs; it can't be lowered
    #[command(
        after_help = "Running programs follow within seconds. LIKES_PARTITIONS should be set to the new number, or to \
                            nothing, wherever it is set: who starts with the old number follows, too, and warns.\n\n\
                            Example: likesctl partitions grow 32"
    )]
    Grow(GrowOptions),
}

#[derive(Args)]
pub(crate) struct GrowOptions {
    /// How many there should be
    #[arg(value_name = "COUNT")]
    count: PartitionCount,

    #[command(flatten)]
    action: ActionArgs,

    #[command(flatten)]
    redis: RedisAccess,
}

/// What growing did.
#[derive(Serialize)]
struct GrowReport {
    command: &'static str,
    dry_run: bool,
    from: u16,
    to: u16,
    /// Whether there are more now than before.
    changed: bool,
}

pub(crate) async fn run(command: Command, interrupt: &CancellationToken) -> Result<Exit, CliError> {
    match command {
        Command::Grow(options) => grow(options, interrupt).await,
    }
}

async fn grow(
    GrowOptions { count: wanted, action, redis }: GrowOptions,
    interrupt: &CancellationToken,
) -> Result<Exit, CliError> {
    let context = redis.open().await?;
    let now = context.partitions;
    if wanted < now {
        return Err(CliError::Usage(format!(
            "COUNT: '{wanted}' is less than the {now} partitions that there are: allowed is more"
        )));
    }
    let command = "partitions grow";
    let mut report =
        GrowReport { command, dry_run: action.dry_run, from: now.get(), to: wanted.get(), changed: false };
    if wanted > now {
        let act = Action {
            command,
            what: ("partitions", "partition"),
            effect: format!("from {now} to {wanted}; this can't be undone"),
            selection: &format!("from {now} to {wanted}"),
            args: &action,
            pace: None,
            interrupt,
        };
        // Groups early: a Redis that is out of memory makes none.
        let work = async {
            match context.streams.ensure_groups(wanted).await {
                Ok(()) => cluster_settings::increase_partitions(&context.redis, &context.keys, now, wanted)
                    .await
                    .map(Ok),
                Err(error) => Ok(Err(error)),
            }
        };
        report.changed = match act.once(&context, u64::from(wanted.get() - now.get()), Box::pin(work)).await?
        {
            None => false,
            Some(Err(error)) => return Err(CliError::Failed(error.into())),
            Some(Ok(true)) => true,
            Some(Ok(false)) => {
                let what = format!("somebody else has changed the {now} partitions just now: look again");
                return Err(CliError::failed(what));
            }
        };
    }
    print_document(action.output, &report, |_| match (report.changed, report.dry_run) {
        (true, _) => {
            format!("grown from {now} to {wanted} partitions: running programs follow within seconds")
        }
        (false, true) if wanted > now => "dry run: nothing was changed".to_owned(),
        (false, _) => format!("nothing to do: there are {now} partitions"),
    })?;
    Ok(Exit::Done)
}
