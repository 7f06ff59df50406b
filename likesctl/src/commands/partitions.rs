//! `likesctl partitions`: changes the number of partitions.

use clap::{Args, Subcommand};
use consumer::stream::GroupError;
use fred::prelude::Error;
use serde::Serialize;
use shared::{cluster_settings, settings::args::partition_count, wire::partition::PartitionCount};
use tokio_util::sync::CancellationToken;

use crate::{
    action::{Action, ActionArgs},
    context::{Context, RedisAccess},
    exit::{CliError, Exit},
    output::print_document,
};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Increase the number of partitions
    ///
    /// The number cannot be decreased. Running programs follow within seconds. Afterwards, set LIKES_PARTITIONS to the
    /// new number wherever it is set, or unset it: a program that starts with the old number follows too, but logs a
    /// warning.
    #[command(after_help = "Examples:\n  likesctl partitions grow 32")]
    Grow(GrowOptions),
}

#[derive(Args)]
pub(crate) struct GrowOptions {
    /// New number of partitions
    #[arg(value_name = "COUNT", value_parser = partition_count)]
    count: PartitionCount,

    #[command(flatten)]
    action: ActionArgs,

    #[command(flatten)]
    redis: RedisAccess,
}

#[derive(Serialize)]
struct GrowReport {
    command: &'static str,
    dry_run: bool,
    from: u16,
    to: u16,
    changed: bool,
}

pub(crate) async fn run(command: Command, interrupt: &CancellationToken) -> Result<Exit, CliError> {
    match command {
        Command::Grow(options) => grow(options, interrupt).await,
    }
}

async fn grow(
    GrowOptions { count: wanted, action: args, redis }: GrowOptions,
    interrupt: &CancellationToken,
) -> Result<Exit, CliError> {
    let context = redis.open().await?;
    let now = context.partitions;
    if wanted < now {
        return Err(CliError::Usage(format!(
            "COUNT: '{wanted}' is less than the current number of partitions; expected at least {now}"
        )));
    }
    let action = Action {
        command: "partitions grow",
        items: ("partitions", "partition"),
        effect: format!(
            "the number of partitions will be increased from {now} to {wanted}; this cannot be undone"
        ),
        selection: &format!("from {now} to {wanted}"),
        args: &args,
        pace: None,
        interrupt,
    };
    let changed = if wanted > now {
        let added = u64::from(wanted.get() - now.get());
        match action.once(&context, added, Box::pin(increase(&context, wanted))).await? {
            None => false,
            Some(Ok(true)) => true,
            Some(Ok(false)) => {
                let line = "another process has changed the number of partitions; run the command again";
                return Err(CliError::failed(line));
            }
            Some(Err(error)) => return Err(CliError::Failed(error.into())),
        }
    } else {
        false
    };
    let report = GrowReport {
        command: action.command,
        dry_run: args.dry_run,
        from: now.get(),
        to: wanted.get(),
        changed,
    };
    print_document(args.output, &report, |_| match (changed, args.dry_run) {
        (true, _) => {
            format!("increased from {now} to {wanted} partitions; running programs follow within seconds")
        }
        (false, true) if wanted > now => "dry run: nothing was changed".to_owned(),
        (false, _) => format!("nothing to do: already {now} partitions"),
    })?;
    Ok(Exit::Done)
}

/// Creates the groups of the new partitions, then records their number. In this order, because creating a group fails
/// when Redis is out of memory.
async fn increase(context: &Context, wanted: PartitionCount) -> Result<Result<bool, GroupError>, Error> {
    if let Err(error) = context.streams.ensure_groups(wanted).await {
        return Ok(Err(error));
    }
    let now = context.partitions;
    cluster_settings::increase_partitions(&context.redis, &context.keys, now, wanted).await.map(Ok)
}
