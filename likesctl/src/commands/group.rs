//! `likesctl group`: shows and changes the database that the consumer group is bound to.

use clap::{Args, Subcommand};
use consumer::{
    group::binding::{Relation, copy_warning, mismatch, relation},
    store::database::DatabaseIdentity,
    stream::Binding,
};
use serde::Serialize;
use shared::settings::args::PostgresArgs;
use tokio_util::sync::CancellationToken;

use crate::{
    action::{Action, ActionArgs},
    audit::user_at_host,
    context::{self, Context, RedisAccess},
    database::{describe, identity},
    exit::{CliError, Exit},
    output::{OutputArgs, many, print_document, time},
};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Show the database that the group is bound to
    ///
    /// Compares it with the database of DATABASE_URL.
    #[command(after_help = "Examples:\n  likesctl group show\n  likesctl group show -o json")]
    Show(ShowOptions),
    /// Bind the group to the database of DATABASE_URL
    ///
    /// Stop the consumers first. Likes that are already stored are not copied. Entries that are still in the streams can
    /// be written to the new database with likesctl reprocess.
    #[command(
        after_help = "Examples:\n  likesctl group bind --dry-run\n  likesctl group bind --reason-text 'ticket 7'"
    )]
    Bind(BindOptions),
}

#[derive(Args)]
pub(crate) struct ShowOptions {
    #[command(flatten)]
    output: OutputArgs,

    #[command(flatten)]
    redis: RedisAccess,

    #[command(flatten)]
    postgres: PostgresArgs,
}

#[derive(Args)]
pub(crate) struct BindOptions {
    /// Bind the group although consumers are alive; they exit with an error
    #[arg(long, help_heading = "Safety")]
    force: bool,

    #[command(flatten)]
    action: ActionArgs,

    #[command(flatten)]
    redis: RedisAccess,

    #[command(flatten)]
    postgres: PostgresArgs,
}

/// The binding, and how the database of DATABASE_URL relates to it.
#[derive(Serialize)]
struct GroupReport {
    group: String,
    database: Option<BoundDatabase>,
    /// `same`, `copy` or `other`; `unbound` without a binding, `unknown` if Postgres is unavailable.
    database_url: &'static str,
    note: Option<String>,
}

#[derive(Serialize)]
struct BoundDatabase {
    id: String,
    name: String,
    address: String,
    system_identifier: Option<String>,
    timeline: Option<u32>,
    bound_at: String,
    bound_by: String,
    open_incidents: Option<u64>,
}

#[derive(Serialize)]
struct BindReport {
    command: &'static str,
    dry_run: bool,
    changed: bool,
}

impl Command {
    pub(crate) fn is_change(&self) -> bool {
        matches!(self, Self::Bind(_))
    }
}

pub(crate) async fn run(command: Command, interrupt: &CancellationToken) -> Result<Exit, CliError> {
    match command {
        Command::Show(options) => show(options).await,
        Command::Bind(options) => bind(options, interrupt).await,
    }
}

async fn show(ShowOptions { output, redis, postgres }: ShowOptions) -> Result<Exit, CliError> {
    let context = redis.open().await?;
    let binding = context.streams.binding().await?;
    let found = found(&redis, &postgres, "likesctl group show").await;
    let group = context.streams.group().to_owned();
    let (database_url, note) = match (&binding, &found) {
        (_, Err(error)) => ("unknown", error.line_and_code().0),
        (None, Ok(_)) => ("unbound", Some("the first consumer that starts binds the group".to_owned())),
        (Some(binding), Ok(found)) => match relation(found, binding) {
            Relation::Same => ("same", None),
            Relation::Copy => ("copy", Some(copy_warning(found, binding))),
            Relation::Other => ("other", Some(mismatch(&group, found, binding))),
        },
    };
    let report = GroupReport { group, database: binding.map(BoundDatabase::of), database_url, note };
    print_document(output, &report, |_| report.text())?;
    Ok(Exit::Done)
}

impl BoundDatabase {
    fn of(binding: Binding) -> Self {
        Self {
            id: binding.database,
            name: binding.name,
            address: binding.address,
            system_identifier: binding.system_identifier,
            timeline: binding.timeline,
            bound_at: time(binding.bound_at_ms),
            bound_by: binding.bound_by,
            open_incidents: binding.open_incidents,
        }
    }
}

impl GroupReport {
    fn text(&self) -> String {
        let mut lines = vec![format!("group              {}", self.group)];
        let unknown = || "unknown".to_owned();
        match &self.database {
            None => lines.push("database           not bound".to_owned()),
            Some(database) => lines.extend([
                format!("database           {} (id {})", database.name, database.id),
                format!("address            {}", database.address),
                format!("system identifier  {}", database.system_identifier.clone().unwrap_or_else(unknown)),
                format!(
                    "timeline           {}",
                    database.timeline.map_or_else(unknown, |timeline| timeline.to_string())
                ),
                format!("bound              {} by {}", database.bound_at, database.bound_by),
                format!(
                    "open incidents     {}",
                    database.open_incidents.map_or_else(unknown, |number| number.to_string())
                ),
            ]),
        }
        lines.push(format!("DATABASE_URL       {}", self.database_url));
        lines.extend(self.note.iter().map(|note| format!("\n{note}")));
        lines.join("\n")
    }
}

async fn found(
    redis: &RedisAccess,
    postgres: &PostgresArgs,
    command: &str,
) -> Result<DatabaseIdentity, CliError> {
    let (mut client, postgres) = context::postgres(postgres, command, redis.startup_timeout).await?;
    identity(&mut client, postgres.address()).await
}

async fn bind(
    BindOptions { force, action: args, redis, postgres }: BindOptions,
    interrupt: &CancellationToken,
) -> Result<Exit, CliError> {
    let context = redis.open().await?;
    let found = found(&redis, &postgres, "likesctl group bind").await?;
    let binding = context.streams.binding().await?;
    let relation = binding.as_ref().map(|binding| relation(&found, binding));
    let moves = relation.is_some_and(|relation| relation != Relation::Same);
    if moves && !force {
        refuse_while_consumers_are_alive(&context).await?;
    }
    let group = context.streams.group();
    let new = format!("'{}' (id {}, {})", found.name, found.id.short(), found.address);
    let instead = binding.as_ref().map(|binding| format!(" instead of {}", describe(binding)));
    let action = Action {
        command: "group bind",
        items: ("groups", "group"),
        effect: format!(
            "consumer group '{group}' will write to database {new}{}; stored likes are not copied",
            instead.unwrap_or_default()
        ),
        selection: &format!("{group} to database {new}"),
        args: &args,
        pace: None,
        interrupt,
    };
    let changed = if relation == Some(Relation::Same) {
        false
    } else {
        let who = user_at_host();
        let replaced = binding.as_ref().map(|binding| binding.database.as_str());
        let work = async {
            // One may have started while the operator was asked.
            if moves && !force {
                refuse_while_consumers_are_alive(&context).await?;
            }
            Ok::<_, CliError>(context.streams.bind(&found, &who, replaced).await?)
        };
        let bound = action.once(&context, 1, Box::pin(work)).await?;
        if bound.as_ref().is_some_and(|bound| bound.database != found.id.to_string()) {
            let line = "another process has bound the group in between; run the command again";
            return Err(CliError::failed(line));
        }
        bound.is_some()
    };
    let report = BindReport { command: action.command, dry_run: args.dry_run, changed };
    print_document(args.output, &report, |_| match (changed, args.dry_run) {
        (true, _) => format!("bound to database {new}"),
        (false, true) if relation != Some(Relation::Same) => "dry run: nothing was changed".to_owned(),
        (false, _) => format!("nothing to do: already bound to database {new}"),
    })?;
    Ok(Exit::Done)
}

async fn refuse_while_consumers_are_alive(context: &Context) -> Result<(), CliError> {
    let alive = context.streams.members().await?.iter().filter(|info| info.member.is_alive).count();
    if alive == 0 {
        return Ok(());
    }
    let consumers = many(alive as u64, "consumer of the group is", "consumers of the group are");
    Err(CliError::Refused(format!(
        "{consumers} alive, and may store likes in the other database until they notice; stop the consumers, or add --force"
    )))
}
