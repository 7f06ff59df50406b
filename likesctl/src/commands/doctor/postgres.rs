//! Checks of Postgres, its schema, and the stored likes.

use consumer::store::{schema, table};
use shared::error_chain::one_line;
use tokio_postgres::Client;

use super::findings::Findings;
use crate::{
    context::{Context, answer},
    exit::CliError,
    output::many,
    verifier::Verifier,
};

/// Maximum number of entries per partition that are compared with the table, newest first.
const COMPARED: usize = 1_000;

const SERVER: &str = "
SELECT current_setting('server_version'), pg_is_in_recovery(), current_setting('default_transaction_read_only')";

pub(super) async fn check(findings: &mut Findings, client: &Client) -> Result<(), CliError> {
    let rows = answer(client.query_typed(SERVER, &[])).await?;
    if let Some(row) = rows.first() {
        let version: String = row.get(0);
        let is_standby: bool = row.get(1);
        let is_read_only = is_standby || row.get::<_, String>(2) == "on";
        if is_read_only {
            let seen = format!("{version}, read-only");
            findings.fail(
                "postgres",
                seen,
                "consumers cannot write; DATABASE_URL must point to the primary",
            )?;
        } else {
            findings.ok("postgres", version)?;
        }
    }
    match answer(async { Ok::<_, CliError>(schema::check(client).await) }).await? {
        Ok(()) => findings.ok("schema", format!("version {}", schema::VERSION))?,
        Err(error) => {
            let advice = "consumers cannot write until this is fixed";
            return findings.fail("schema", one_line(&error), advice);
        }
    }
    likes_table(findings, client).await
}

/// Checks whether consumers may write to the table.
async fn likes_table(findings: &mut Findings, client: &Client) -> Result<(), CliError> {
    match answer(async { Ok::<_, CliError>(table::inspect(client).await) }).await? {
        Ok(table) => {
            let warnings = table.warnings();
            for warning in &warnings {
                findings.warn("table", warning, "likes can be lost; see docs/postgres.md")?;
            }
            if warnings.is_empty() {
                findings.ok("table", "its columns and its key are as expected")?;
            }
            Ok(())
        }
        Err(error) => findings.fail("table", one_line(&error), "consumers write nothing until this is fixed"),
    }
}

/// Compares the newest acknowledged entries with the table.
pub(super) async fn stored(
    findings: &mut Findings,
    context: &Context,
    client: &Client,
) -> Result<(), CliError> {
    if answer(async { Ok::<_, CliError>(schema::check(client).await) }).await?.is_err() {
        return Ok(());
    }
    let mut verifier = Verifier::new(context, client);
    for partition in context.partitions.partitions() {
        let newest = context.streams.newest(partition, COMPARED).await?;
        if let (Some(last), Some(first)) = (newest.first(), newest.last()) {
            verifier.range(partition, (first.at.id, last.at.id)).await?;
        }
    }
    let verdict = verifier.verdict().await?;
    if let (true, Some(like)) = (verdict.missing > 0, verdict.missing_likes.first()) {
        let missing = many(verdict.missing, "acknowledged like is", "acknowledged likes are");
        let seen = format!("{missing} missing from the table, first in entry {}", like.entry);
        let advice = "list them with likesctl verify, store them with likesctl reprocess";
        return findings.fail("stored", seen, advice);
    }
    let entries = many(verdict.entries, "acknowledged entry", "acknowledged entries");
    findings.ok("stored", format!("no likes are missing from the table ({entries} checked)"))
}
