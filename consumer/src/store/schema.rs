//! Schema in Postgres: embedded migrations and the version check. See `sql/README.md`.

use refinery::error::Kind;
use shared::error_chain::one_line;
use thiserror::Error;
use tokio_postgres::{Client, GenericClient, error::SqlState};

use super::privileges::{self, GrantError};

mod embedded {
    refinery::embed_migrations!("../sql");
}

/// Schema version of this program: the number of the newest migration.
pub const VERSION: i32 = 2;

/// Key of the advisory lock: "likes" in ASCII. Other applications must not use the same key.
const MIGRATION_LOCK: i64 = 0x006C_696B_6573;

/// Error: the schema does not match this program, or cannot be read.
#[derive(Debug, Error)]
pub enum SchemaError {
    #[error("the database has no likestream schema; run likesctl migrate")]
    Missing,
    #[error(
        "the schema is at version {found}, but this program requires version {VERSION}; run likesctl migrate"
    )]
    TooOld { found: i32 },
    #[error(
        "the schema is at version {found} and does not support programs for version {VERSION}; install a newer release of this program"
    )]
    TooNew { found: i32 },
    #[error("cannot read the schema version")]
    Postgres(#[from] tokio_postgres::Error),
    #[error("cannot read the identity of the database")]
    Identity(#[source] tokio_postgres::Error),
}

/// What [`migrate`] changed.
#[derive(Debug)]
pub struct Migrated {
    /// Names of the applied migrations.
    pub applied: Vec<String>,
    /// Granted privileges, as in `SELECT ON likes TO likestream_reader`.
    pub granted: Vec<String>,
}

/// Error: a migration could not be applied, or a privilege not granted. The changes of that step are rolled back.
#[derive(Debug, Error)]
pub enum MigrateError {
    #[error("cannot acquire the migration lock")]
    Lock(#[from] tokio_postgres::Error),
    /// A migration failed, or a released migration was edited.
    #[error("cannot apply the migrations: {}", cause(.0))]
    Migration(refinery::Error),
    #[error(transparent)]
    Grant(#[from] GrantError),
}

/// Returns the cause of a failed migration, without the internal steps that refinery names.
fn cause(error: &refinery::Error) -> String {
    match error.kind() {
        Kind::Connection(_, source) => one_line(&**source),
        Kind::DivergentVersion(applied, _) => {
            format!("{applied} was changed after it was applied; use the release that applied it")
        }
        Kind::MissingVersion(applied) => {
            format!("{applied} is applied and unknown to this release; use a newer release")
        }
        kind => kind.to_string(),
    }
}

impl From<refinery::Error> for MigrateError {
    fn from(error: refinery::Error) -> Self {
        Self::Migration(error)
    }
}

/// Checks that the schema version is compatible with this program.
///
/// # Errors
/// Fails if it is not compatible or cannot be read. The error names the action to take.
pub async fn check(client: &impl GenericClient) -> Result<(), SchemaError> {
    // Unnamed statement: behind a connection pooler, a named one would remain in a session of other clients.
    let sql = "SELECT version, oldest_program FROM likes_schema";
    let row = match client.query_typed_opt(sql, &[]).await {
        Ok(row) => row.ok_or(SchemaError::Missing)?,
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => return Err(SchemaError::Missing),
        Err(error) => return Err(error.into()),
    };
    let found: i32 = row.try_get(0)?;
    let oldest_program: i32 = row.try_get(1)?;
    if found < VERSION {
        Err(SchemaError::TooOld { found })
    } else if oldest_program > VERSION {
        Err(SchemaError::TooNew { found })
    } else {
        Ok(())
    }
}

/// Applies pending migrations under an advisory lock, and grants the missing privileges on the tables to the roles of
/// `sql/roles.sql`, also if there is no migration to apply. A concurrent process waits and then finds nothing to do.
pub async fn migrate(client: &mut Client) -> Result<Migrated, MigrateError> {
    client.execute("SELECT pg_advisory_lock($1)", &[&MIGRATION_LOCK]).await?;
    // On an error, the lock is released when the connection closes.
    let report = embedded::migrations::runner().run_async(client).await?;
    let granted = privileges::grant(client).await?;
    client.execute("SELECT pg_advisory_unlock($1)", &[&MIGRATION_LOCK]).await?;
    Ok(Migrated { applied: report.applied_migrations().iter().map(ToString::to_string).collect(), granted })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_version_matches_the_newest_migration() {
        let newest =
            embedded::migrations::runner().get_migrations().iter().map(|m| i64::from(m.version())).max();
        assert_eq!(newest, Some(i64::from(VERSION)));
    }
}
