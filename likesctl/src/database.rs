//! The database of DATABASE_URL, compared with the one that the group is bound to.

use std::time::Duration;

use consumer::{
    group::binding::{Relation, mismatch, relation},
    store::{
        database::{self, DatabaseIdentity},
        incidents, schema,
    },
    stream::Binding,
};
use shared::{
    postgres::{Postgres, Session},
    settings::args::PostgresArgs,
};
use tokio_postgres::Client;

use crate::{
    context::{self, Context, answer},
    exit::CliError,
};

/// Connects to the database of the group.
///
/// # Errors
/// When Postgres is unreachable, or the group is bound to another database.
pub(crate) async fn connect(
    context: &Context,
    postgres: &PostgresArgs,
    command: &str,
    limit: Duration,
) -> Result<(Session, Postgres, DatabaseIdentity), CliError> {
    let (mut client, postgres) = context::postgres(postgres, command, limit).await?;
    let found = identity(&mut client, postgres.address()).await?;
    if let Some(binding) = context.streams.binding().await?
        && relation(&found, &binding) == Relation::Other
    {
        return Err(CliError::Refused(mismatch(context.streams.group(), &found, &binding)));
    }
    Ok((client, postgres, found))
}

/// Checks the schema, and returns the identity of a database.
pub(crate) async fn identity(client: &mut Client, address: &str) -> Result<DatabaseIdentity, CliError> {
    let identity = async {
        schema::check(&*client).await?;
        database::identity(client, address).await
    };
    answer(async { identity.await.map_err(|error| CliError::Failed(error.into())) }).await
}

/// Returns the number of incidents of the group that are not acknowledged.
pub(crate) async fn open_incidents(context: &Context, client: &Client) -> Result<u64, CliError> {
    let prefix = context.keys.to_string();
    let scope = incidents::Scope { streams: &prefix, group: context.streams.group() };
    Ok(answer(incidents::open_by_kind(client, scope)).await?.into_iter().map(|(_, number)| number).sum())
}

/// Describes the bound database, such as `'likes' (id 3f2a9c1e, Postgres at db:5432)`.
pub(crate) fn describe(Binding { name, database, address, .. }: &Binding) -> String {
    format!("'{name}' (id {}, {address})", database.get(..8).unwrap_or(database))
}
