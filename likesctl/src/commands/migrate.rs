//! `likesctl migrate`: applies pending migrations, and grants the roles of `sql/roles.sql` their privileges.

use std::{
    io::{self, Write},
    time::Duration,
};

use clap::Args;
use consumer::store::{schema, session};
use shared::settings::{
    SettingError,
    args::{PostgresArgs, positive_duration},
};

use crate::{
    context,
    exit::{CliError, Exit},
};

#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    postgres: PostgresArgs,

    /// Maximum time to wait for Postgres
    #[arg(long, env = "STARTUP_TIMEOUT", default_value = "10s", value_name = "DURATION", value_parser = positive_duration)]
    startup_timeout: Duration,
}

pub(crate) async fn run(options: Options) -> Result<Exit, CliError> {
    let (mut client, postgres) =
        context::postgres(&options.postgres, "likesctl migrate", options.startup_timeout).await?;
    if session::shares_sessions(&postgres, &client).await {
        let error = SettingError::new(
            "DATABASE_URL",
            "points to a pooler in transaction mode, but the migration lock requires a session; connect directly to Postgres",
        );
        return Err(CliError::Usage(error.to_string()));
    }
    let done = schema::migrate(&mut client).await.map_err(|error| CliError::Failed(error.into()))?;
    let applied = done.applied.iter().map(|migration| format!("applied {migration}"));
    let granted = done.granted.iter().map(|privilege| format!("granted {privilege}"));
    let mut lines: Vec<String> = applied.chain(granted).collect();
    if lines.is_empty() {
        lines.push(format!("nothing to do: the schema is at version {}", schema::VERSION));
    }
    // The result is ignored: the migrations are applied, even if standard output is closed.
    let _ = writeln!(io::stdout(), "{}", lines.join("\n"));
    Ok(Exit::Done)
}
