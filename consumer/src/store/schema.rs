//! The schema in Postgres: its migrations, and whether this program understands it. See `sql/README.md`.

use thiserror::Error;
use tokio_postgres::{Client, GenericClient, error::SqlState};

mod embedded {
    refinery::embed_migrations!("../sql");
}

/// The schema version that this program was built for: the number of the newest migration.
pub const VERSION: i32 = 1;

/// Any number that no other application uses: "likes" in ASCII.
const MIGRATION_LOCK: i64 = 0x006C_696B_6573;

/// The schema doesn't suit this program, or can't be read.
#[derive(Debug, Error)]
pub enum SchemaError {
    #[error("the database has no likestream schema: run likesctl migrate")]
    Missing,
    #[error("the schema is at version {found}, this program needs {VERSION}: run likesctl migrate")]
    TooOld { found: i32 },
    #[error(
        "the schema is at version {found} and no longer serves programs for version {VERSION}: install a newer release of this program"
    )]
    TooNew { found: i32 },
    #[error("the schema can't be read")]
    Postgres(#[from] tokio_postgres::Error),
}

/// A migration could not be applied. Its changes are rolled back.
#[derive(Debug, Error)]
pub enum MigrateError {
    #[error("the migration lock can't be had")]
    Lock(#[from] tokio_postgres::Error),
    /// One failed, or a released one was edited.
    #[error("the migrations can't be applied")]
    Migration(#[from] refinery::Error),
}

/// Checks that this program works on the schema.
///
/// # Errors
/// When it doesn't, with what to do.
pub async fn check(client: &impl GenericClient) -> Result<(), SchemaError> {
    // A statement without a name: behind a pooler one with a name would stay in another client's session.
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

/// Applies missing migrations under a lock, and returns their names. A second process waits and has none to apply.
pub async fn migrate(client: &mut Client) -> Result<Vec<String>, MigrateError> {
    client.execute("SELECT pg_advisory_lock($1)", &[&MIGRATION_LOCK]).await?;
    let report = embedded::migrations::runner().run_async(client).await;
    // On an error the lock goes with the connection.
    let report = report?;
    client.execute("SELECT pg_advisory_unlock($1)", &[&MIGRATION_LOCK]).await?;
    Ok(report.applied_migrations().iter().map(ToString::to_string).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_that_of_the_newest_migration() {
        let newest =
            embedded::migrations::runner().get_migrations().iter().map(|m| i64::from(m.version())).max();
        assert_eq!(newest, Some(i64::from(VERSION)));
    }
}
