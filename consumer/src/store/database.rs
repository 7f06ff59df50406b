//! The identity of a database, and of the server that it is on. A consumer group writes to one database.

use std::{fmt, str::FromStr};

use thiserror::Error;
use tokio_postgres::{Error, GenericClient, error::SqlState};

use crate::store::schema::SchemaError;

/// The random id that a migration gave to a database. Dumps and replicas of the database have the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatabaseId(u128);

/// Error: the text is not a database id.
#[derive(Debug, Error)]
#[error("expected a UUID")]
pub struct InvalidDatabaseId;

impl FromStr for DatabaseId {
    type Err = InvalidDatabaseId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits: String = text.split('-').collect();
        let is_hexadecimal = digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let id = u128::from_str_radix(&digits, 16).ok().filter(|_| is_hexadecimal);
        id.map(Self).ok_or(InvalidDatabaseId)
    }
}

impl fmt::Display for DatabaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = format!("{:032x}", self.0);
        let (time, rest) = digits.split_at(8);
        write!(f, "{time}-{}-{}-{}-{}", &rest[..4], &rest[4..8], &rest[8..12], &rest[12..])
    }
}

impl DatabaseId {
    /// Returns the first digits, which tell databases apart in messages.
    pub fn short(self) -> String {
        self.to_string()[..8].to_owned()
    }

    /// Returns SQL that fails unless the session is on this database. A connection pooler or a changed address can lead a
    /// later session to another one. The error is one that only an operator can fix.
    pub(crate) fn guard(self) -> String {
        format!(
            "
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM likes_database WHERE id = '{self}') THEN
        RAISE 'database % is not the one with id {}, which the consumer group is bound to; correct DATABASE_URL, or run likesctl group bind', current_database()
            USING ERRCODE = 'invalid_catalog_name';
    END IF;
END $$;",
            self.short()
        )
    }
}

/// A database and the server that it is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseIdentity {
    pub id: DatabaseId,
    pub name: String,
    /// Object id of the database within its server. A copy on the same server has another one.
    pub oid: u32,
    /// Hosts and ports of the connection.
    pub address: String,
    /// Identifier of the server's data, which replicas share and restored copies do not; `None` if it cannot be read.
    pub system_identifier: Option<String>,
    /// Timeline of the server's log, which a promotion changes; `None` on a standby, and if it cannot be read.
    pub timeline: Option<u32>,
    /// Whether commits wait for a synchronous standby, so that its promotion loses none.
    pub awaits_standby: bool,
}

/// A session that is set up for writing keeps the setting for its transactions in a parameter of its own.
const IDENTITY: &str = "
SELECT id::text, current_database()::text, (SELECT oid FROM pg_database WHERE datname = current_database()),
    has_function_privilege('pg_control_system()', 'EXECUTE'),
    NOT pg_is_in_recovery() AND has_function_privilege('pg_current_wal_lsn()', 'EXECUTE')
        AND has_function_privilege('pg_walfile_name(pg_lsn)', 'EXECUTE'),
    current_setting('synchronous_standby_names') <> '' AND coalesce(
        nullif(current_setting('likestream.synchronous_commit', true), ''), current_setting('synchronous_commit')) <> 'local'
FROM likes_database";

/// Reads the identity of the database at `address`.
///
/// # Errors
/// When the database has no likestream schema, or does not answer.
pub async fn identity(
    client: &mut impl GenericClient,
    address: &str,
) -> Result<DatabaseIdentity, SchemaError> {
    match read(client, address).await {
        Ok(identity) => identity.ok_or(SchemaError::Missing),
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => Err(SchemaError::Missing),
        Err(error) => Err(SchemaError::Identity(error)),
    }
}

/// Returns `None` if the row with the id is missing.
async fn read(client: &mut impl GenericClient, address: &str) -> Result<Option<DatabaseIdentity>, Error> {
    let Some(row) = client.query_typed_opt(IDENTITY, &[]).await? else { return Ok(None) };
    let (may_read_system, may_read_timeline): (bool, bool) = (row.try_get(3)?, row.try_get(4)?);
    let mut system_identifier = None;
    if may_read_system {
        let sql = "SELECT system_identifier::text FROM pg_control_system()";
        system_identifier = read_if_supported(client, sql).await?;
    }
    let mut timeline = None;
    if may_read_timeline {
        // The name of a log file begins with its timeline. The control file has the timeline of the last checkpoint, which
        // may be older.
        let sql = "SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)";
        let digits = read_if_supported(client, sql).await?;
        timeline = digits.and_then(|digits| u32::from_str_radix(&digits, 16).ok());
    }
    let Ok(id) = row.try_get::<_, &str>(0)?.parse() else { return Ok(None) };
    Ok(Some(DatabaseIdentity {
        id,
        name: row.try_get(1)?,
        oid: row.try_get(2)?,
        address: address.to_owned(),
        system_identifier,
        timeline,
        awaits_standby: row.try_get(5)?,
    }))
}

/// Returns a value; `None` if the server refuses. Managed servers do not support all functions, and a primary may have become a
/// standby since it was asked. A surrounding transaction continues.
async fn read_if_supported(client: &mut impl GenericClient, sql: &str) -> Result<Option<String>, Error> {
    let transaction = client.transaction().await?;
    match transaction.query_typed_one(sql, &[]).await {
        Ok(row) => {
            transaction.commit().await?;
            row.try_get(0)
        }
        Err(error) if error.code().is_some_and(is_unsupported) => {
            transaction.rollback().await?;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Returns whether an error says that a server does not support a function: none that passes or ends the session.
fn is_unsupported(code: &SqlState) -> bool {
    !["08", "25", "40", "53", "57"].iter().any(|class| code.code().starts_with(class))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_passes_does_not_hide_the_server() {
        for code in
            [SqlState::FEATURE_NOT_SUPPORTED, SqlState::INSUFFICIENT_PRIVILEGE, SqlState::INTERNAL_ERROR]
        {
            assert!(is_unsupported(&code), "{code:?}");
        }
        for code in [SqlState::QUERY_CANCELED, SqlState::ADMIN_SHUTDOWN, SqlState::CONNECTION_FAILURE] {
            assert!(!is_unsupported(&code), "{code:?}");
        }
    }

    #[test]
    fn ids_are_uuids() {
        let text = "00a1b2c3-d4e5-4f60-8a9b-0c1d2e3f4a5b";
        let id: DatabaseId = text.parse().unwrap();
        assert_eq!(id.to_string(), text);
        assert_eq!(id.short(), "00a1b2c3");
        assert_eq!(text.to_uppercase().parse::<DatabaseId>().unwrap(), id);
        for bad in ["", "00a1b2c3", "+0a1b2c3-d4e5-4f60-8a9b-0c1d2e3f4a5b", "'; DROP TABLE likes; --"] {
            assert!(bad.parse::<DatabaseId>().is_err(), "{bad}");
        }
    }
}
