//! Privileges of the roles that `sql/roles.sql` creates. `sql/roles.sql` grants the same ones on tables that it hands over.

use shared::error_chain::one_line;
use thiserror::Error;
use tokio_postgres::{Client, GenericClient};

/// Role, table and privilege.
const PRIVILEGES: [[&str; 3]; 15] = [
    ["likestream_consumer", "likes", "SELECT"],
    ["likestream_consumer", "likes", "INSERT"],
    ["likestream_consumer", "likes_schema", "SELECT"],
    ["likestream_consumer", "likes_database", "SELECT"],
    ["likestream_consumer", "likes_watermarks", "SELECT"],
    ["likestream_consumer", "likes_watermarks", "INSERT"],
    ["likestream_consumer", "likes_watermarks", "UPDATE"],
    ["likestream_consumer", "likes_incidents", "SELECT"],
    ["likestream_consumer", "likes_incidents", "INSERT"],
    ["likestream_consumer", "likes_incidents", "UPDATE"],
    ["likestream_reader", "likes", "SELECT"],
    ["likestream_reader", "likes_schema", "SELECT"],
    ["likestream_reader", "likes_database", "SELECT"],
    ["likestream_reader", "likes_watermarks", "SELECT"],
    ["likestream_reader", "likes_incidents", "SELECT"],
];

/// Error: a role exists and lacks a privilege that cannot be granted.
#[derive(Debug, Error)]
pub enum GrantError {
    #[error("cannot read the privileges of the roles")]
    Read(#[from] tokio_postgres::Error),
    #[error(
        "cannot grant {grant}: {cause}; run likesctl migrate as the owner of the tables, or as a superuser"
    )]
    Refused { grant: String, cause: String },
}

/// Grants the missing privileges to those of the roles that exist. Returns what was granted.
pub(crate) async fn grant(client: &mut Client) -> Result<Vec<String>, GrantError> {
    // All or none, so that a repeated run reports all of them.
    let transaction = client.transaction().await?;
    let granted = missing(&transaction).await?;
    for grant in &granted {
        transaction
            .batch_execute(&format!("GRANT {grant}"))
            .await
            .map_err(|error| refused(grant, &one_line(&error)))?;
    }
    // For a role that may not grant a privilege, GRANT can succeed with a warning.
    if let Some(grant) = missing(&transaction).await?.first() {
        return Err(refused(grant, "this role does not own the table"));
    }
    transaction.commit().await?;
    Ok(granted)
}

fn refused(grant: &str, cause: &str) -> GrantError {
    GrantError::Refused { grant: grant.to_owned(), cause: cause.to_owned() }
}

/// Returns the missing privileges of the roles that exist, as in `SELECT ON likes TO likestream_reader`.
async fn missing(client: &impl GenericClient) -> Result<Vec<String>, tokio_postgres::Error> {
    let sql = "SELECT format('%s ON %s TO %s', privilege, relation, rolname)
               FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS wanted (role, relation, privilege, place)
               JOIN pg_roles ON rolname = role
               WHERE NOT has_table_privilege(pg_roles.oid, to_regclass(relation), privilege)
               ORDER BY place";
    let column = |index: usize| PRIVILEGES.map(|privilege| privilege[index]).to_vec();
    let rows = client.query(sql, &[&column(0), &column(1), &column(2)]).await?;
    rows.iter().map(|row| row.try_get(0)).collect()
}
