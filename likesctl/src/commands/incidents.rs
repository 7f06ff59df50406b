//! `likesctl incidents`: lists and acknowledges events after which likes are missing or may be.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use consumer::store::incidents::{self, Incident, Scope};
use serde::Serialize;
use shared::settings::args::{PostgresArgs, integer};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::{
    action::{Action, ActionArgs},
    audit::user_at_host,
    context::{self, RedisAccess, answer},
    database::{self, open_incidents},
    exit::{CliError, Exit},
    output::{Column, OutputArgs, Row, many, print_document, table, time},
};

/// Maximum number of incidents that are acknowledged at once: more are never open.
const MAX: i64 = 1_000;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// List incidents; the newest come first
    ///
    /// Exits with 1 if an incident is not acknowledged.
    #[command(after_help = "Examples:\n  likesctl incidents list\n  likesctl incidents list --all -o wide")]
    List(ListOptions),
    /// Acknowledge incidents, so that monitoring reports them no longer
    #[command(after_help = "Examples:\n  likesctl incidents acknowledge 7\n  \
        likesctl incidents acknowledge --all --reason-text 'restored from the log, ticket 7'")]
    Acknowledge(AcknowledgeOptions),
}

#[derive(Args)]
pub(crate) struct ListOptions {
    /// Include acknowledged incidents
    #[arg(short, long)]
    all: bool,

    /// Maximum number of incidents
    #[arg(long, value_name = "COUNT", default_value = "100", value_parser = integer(1_i64..=10_000))]
    limit: i64,

    #[command(flatten)]
    output: OutputArgs,

    #[command(flatten)]
    redis: RedisAccess,

    #[command(flatten)]
    postgres: PostgresArgs,
}

#[derive(Args)]
pub(crate) struct AcknowledgeOptions {
    /// Ids of incidents
    #[arg(value_name = "ID", required_unless_present = "all", value_parser = integer(1_i64..))]
    ids: Vec<i64>,

    /// All incidents that are not acknowledged
    #[arg(short, long, conflicts_with = "ids")]
    all: bool,

    #[command(flatten)]
    action: ActionArgs,

    #[command(flatten)]
    redis: RedisAccess,

    #[command(flatten)]
    postgres: PostgresArgs,
}

#[derive(Serialize)]
struct IncidentRow {
    id: i64,
    detected_at: String,
    kind: String,
    /// Minimum number of entries that are lost, if it is known.
    entries_lost: Option<u64>,
    detail: String,
    detected_by: String,
    acknowledged_at: Option<String>,
    acknowledged_by: Option<String>,
}

#[derive(Serialize)]
struct AcknowledgeReport {
    command: &'static str,
    dry_run: bool,
    acknowledged: u64,
}

impl IncidentRow {
    fn of(incident: Incident) -> Self {
        let unix_ms = |at: SystemTime| {
            u64::try_from(at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
        };
        Self {
            id: incident.id,
            detected_at: time(unix_ms(incident.detected_at)),
            kind: incident.kind,
            entries_lost: incident.entries_lost,
            detail: incident.detail,
            detected_by: incident.detected_by,
            acknowledged_at: incident.acknowledged_at.map(|at| time(unix_ms(at))),
            acknowledged_by: incident.acknowledged_by,
        }
    }
}

impl Row for IncidentRow {
    const COLUMNS: &'static [Column] = &[
        Column::number("ID"),
        Column::whole("DETECTED"),
        Column::text("KIND"),
        Column::number("LOST"),
        Column::prose("DETAIL"),
        Column::text("DETECTED BY").wide(),
        Column::text("ACKNOWLEDGED BY"),
        Column::whole("ACKNOWLEDGED").wide(),
    ];

    fn cells(&self) -> Vec<String> {
        let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        vec![
            self.id.to_string(),
            self.detected_at.clone(),
            self.kind.clone(),
            self.entries_lost.map_or_else(|| "unknown".to_owned(), |entries| entries.to_string()),
            self.detail.clone(),
            self.detected_by.clone(),
            or_none(&self.acknowledged_by),
            or_none(&self.acknowledged_at),
        ]
    }
}

impl Command {
    pub(crate) fn is_change(&self) -> bool {
        matches!(self, Self::Acknowledge(_))
    }
}

pub(crate) async fn run(command: Command, interrupt: &CancellationToken) -> Result<Exit, CliError> {
    match command {
        Command::List(options) => list(options).await,
        Command::Acknowledge(options) => acknowledge(options, interrupt).await,
    }
}

/// Lists incidents without Redis, which may have lost all its data.
async fn list(options: ListOptions) -> Result<Exit, CliError> {
    let limit = options.redis.startup_timeout;
    let (mut client, postgres) =
        context::postgres(&options.postgres, "likesctl incidents list", limit).await?;
    database::identity(&mut client, postgres.address()).await?;
    let prefix = options.redis.prefix();
    let scope = Scope { streams: &prefix, group: options.redis.group() };
    let incidents = answer(incidents::list(&*client, scope, options.all, options.limit)).await?;
    let rows: Vec<IncidentRow> = incidents.into_iter().map(IncidentRow::of).collect();
    print_document(options.output, &rows, |wide| match (rows.is_empty(), options.all) {
        (true, true) => "no incidents".to_owned(),
        (true, false) => "no open incidents".to_owned(),
        (false, _) => table(&rows, wide),
    })?;
    let is_open = rows.iter().any(|row| row.acknowledged_at.is_none());
    Ok(if is_open { Exit::Failure } else { Exit::Done })
}

async fn acknowledge(
    AcknowledgeOptions { ids, all, action: args, redis, postgres }: AcknowledgeOptions,
    interrupt: &CancellationToken,
) -> Result<Exit, CliError> {
    let context = redis.open().await?;
    let limit = redis.startup_timeout;
    let (client, _, database) =
        database::connect(&context, &postgres, "likesctl incidents acknowledge", limit).await?;
    let prefix = context.keys.to_string();
    let scope = Scope { streams: &prefix, group: context.streams.group() };
    let open = answer(incidents::list(&*client, scope, false, MAX)).await?;
    let chosen: Vec<i64> =
        open.iter().map(|incident| incident.id).filter(|id| all || ids.contains(id)).collect();
    if let Some(id) = ids.iter().find(|id| !chosen.contains(id)) {
        return Err(CliError::failed(format!(
            "incident {id} does not exist or is acknowledged; list incidents with likesctl incidents list"
        )));
    }
    let numbers: Vec<String> = chosen.iter().map(i64::to_string).collect();
    let selection = if all { "--all".to_owned() } else { numbers.join(" ") };
    let incidents = many(chosen.len() as u64, "incident", "incidents");
    let action = Action {
        command: "incidents acknowledge",
        items: ("incidents", "incident"),
        effect: format!("{incidents} will be acknowledged, and reported no longer"),
        selection: &selection,
        args: &args,
        pace: None,
        interrupt,
    };
    let acknowledged = if chosen.is_empty() {
        Some(0)
    } else {
        let work = change(&client, scope, &chosen);
        action.once(&context, chosen.len() as u64, Box::pin(work)).await?
    };
    if acknowledged.is_some_and(|acknowledged| acknowledged > 0) {
        // status --check reads the number from Redis.
        let open = open_incidents(&context, &client).await?;
        context.streams.record_open_incidents(database.id, open).await?;
    }
    let report = AcknowledgeReport {
        command: action.command,
        dry_run: args.dry_run,
        acknowledged: acknowledged.unwrap_or(0),
    };
    print_document(args.output, &report, |_| match acknowledged {
        None => "dry run: nothing was changed".to_owned(),
        Some(0) => "nothing to do: no open incidents".to_owned(),
        Some(number) => format!("acknowledged {}", many(number, "incident", "incidents")),
    })?;
    Ok(Exit::Done)
}

async fn change(client: &Client, scope: Scope<'_>, ids: &[i64]) -> Result<u64, CliError> {
    answer(incidents::acknowledge(client, scope, ids, &user_at_host())).await
}
