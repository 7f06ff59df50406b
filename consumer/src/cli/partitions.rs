//! `likesctl partitions`

use std::io::{self, Write};

use clap::{Args, Subcommand};
use shared::{agreement, cli::refuse, partition::PartitionCount};

use super::{
    access::RedisAccess,
    exit::{CliError, Exit},
};

#[derive(Subcommand)]
pub(super) enum Command {
    /// Raises the number of partitions while everything runs; it can't be lowered
    #[command(
        after_help = "Running programs follow within seconds. LIKES_PARTITIONS should be set to the new number, or to \
                            nothing, wherever it is set: who starts with the old number follows, too, and warns.\n\n\
                            Example: likesctl partitions grow 32"
    )]
    Grow(GrowOptions),
}

#[derive(Args)]
pub(super) struct GrowOptions {
    /// How many there should be
    #[arg(value_name = "COUNT")]
    count: PartitionCount,

    #[command(flatten)]
    redis: RedisAccess,
}

pub(super) async fn run(command: Command) -> Result<Exit, CliError> {
    match command {
        Command::Grow(options) => grow(options).await,
    }
}

async fn grow(GrowOptions { count: wanted, redis }: GrowOptions) -> Result<Exit, CliError> {
    let site = redis.open().await?;
    let now = site.partitions;
    if wanted == now {
        // It is done, whether or not anybody hears of it.
        let _ = writeln!(io::stdout(), "nothing to do: there are {now} partitions");
        return Ok(Exit::Done);
    }
    if wanted < now {
        refuse(&format!(
            "COUNT: '{wanted}' is less than the {now} partitions that there are: allowed is more"
        ));
    }
    // Groups early: a Redis that is out of memory makes none.
    site.streams.ensure_groups(wanted).await.map_err(|error| CliError::Failed(error.into()))?;
    if !agreement::grow(&site.redis, &site.keys, now, wanted).await? {
        return Err(CliError::failed(format!(
            "somebody else has changed the {now} partitions just now: look again"
        )));
    }
    let _ = writeln!(
        io::stdout(),
        "grown from {now} to {wanted} partitions: running programs follow within seconds"
    );
    Ok(Exit::Done)
}
