//! `likesctl audit`: lists changes made with likesctl.

use std::collections::BTreeMap;

use clap::Args;
use consumer::entry::EntryId;
use serde::Serialize;
use shared::settings::args::integer;

use crate::{
    context::RedisAccess,
    exit::{CliError, Exit},
    output::{Column, OutputArgs, Row, Rows, time},
};

/// Number of records per request.
const PAGE: usize = 500;

#[derive(Args)]
pub(crate) struct Options {
    /// Maximum number of changes; the newest come first
    #[arg(long, value_name = "COUNT", default_value = "100", value_parser = integer(1_u64..))]
    limit: u64,

    #[command(flatten)]
    output: OutputArgs,

    #[command(flatten)]
    redis: RedisAccess,
}

/// One change.
#[derive(Serialize)]
struct AuditRow {
    at: String,
    who: String,
    command: String,
    selection: String,
    matched: u64,
    /// Absent while the change runs, and if its outcome could not be recorded.
    outcome: Option<String>,
    reason: String,
}

impl Row for AuditRow {
    const COLUMNS: &'static [Column] = &[
        Column::whole("AT"),
        Column::text("WHO"),
        Column::text("COMMAND"),
        Column::prose("SELECTION").wide(),
        Column::number("MATCHED").wide(),
        Column::prose("OUTCOME"),
        Column::prose("REASON").wide(),
    ];

    fn cells(&self) -> Vec<String> {
        let outcome = self.outcome.clone().unwrap_or_else(|| "not recorded".to_owned());
        vec![
            self.at.clone(),
            self.who.clone(),
            self.command.clone(),
            self.selection.clone(),
            self.matched.to_string(),
            outcome,
            self.reason.clone(),
        ]
    }
}

pub(crate) async fn run(options: Options) -> Result<Exit, CliError> {
    let context = options.redis.open().await?;
    let mut rows = Rows::new(options.output, AuditRow::COLUMNS);
    // The newest records come first, so the outcome of a change comes before its intent.
    let mut outcomes = BTreeMap::new();
    let mut before: Option<String> = None;
    let mut remaining = options.limit;
    while remaining > 0 {
        let records = context.streams.audit_records(before.as_deref(), PAGE).await?;
        let Some((last, _)) = records.last() else { break };
        before = Some(last.clone());
        for (id, mut record) in records {
            let mut field = |name: &str| record.remove(name).unwrap_or_default();
            let of = field("of");
            if !of.is_empty() {
                outcomes.insert(of, field("outcome"));
                continue;
            }
            if remaining == 0 {
                break;
            }
            remaining -= 1;
            rows.push(&AuditRow {
                at: time(id.parse::<EntryId>().unwrap_or_default().ms),
                who: field("who"),
                command: field("command"),
                selection: field("selection"),
                matched: field("matched").parse().unwrap_or(0),
                outcome: outcomes.remove(&id),
                reason: field("reason"),
            })?;
        }
    }
    rows.finish("the audit log is empty")?;
    Ok(Exit::Done)
}
