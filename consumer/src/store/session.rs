//! Postgres sessions: dedicated to a connection, or behind a connection pooler assigned per transaction. In the second case
//! each transaction sets its own parameters.

use std::time::Duration;

use clap::ValueEnum;
use shared::{
    postgres::{ConnectError, PooledSession, Postgres},
    settings::SettingError,
};
use tokio::time::timeout;
use tokio_postgres::{Client, Error, Statement, error::SqlState};

/// Returns the SQL that creates the staging table. The table is empty at the start of each transaction.
fn staging_table(on_commit: &str) -> String {
    let columns = "user_id bigint, post_id bigint, created_at timestamptz";
    format!("CREATE TEMPORARY TABLE likes_batch ({columns}) ON COMMIT {on_commit};")
}

/// Lets the end of the session, which removes the staging table, wait for no synchronous standby: Postgres does not cancel
/// that wait, and such backends would accumulate. Keeps the setting for transactions.
const WAIT_FOR_NO_STANDBY: &str = "
SELECT set_config('likestream.synchronous_commit', current_setting('synchronous_commit'), false);
SET SESSION synchronous_commit = local;
";

/// Restores the setting for a transaction.
const WAIT_FOR_STANDBY: &str =
    "SELECT set_config('synchronous_commit', current_setting('likestream.synchronous_commit'), true);";

/// Lets a transaction that finds all its rows in the table wait for a synchronous standby, too. An earlier transaction whose
/// wait was cancelled may have stored the rows on the primary only. A commit waits only if its transaction has written to the
/// log, and then also for everything before it.
const REPLICATE_EARLIER_COMMITS: &str = "SELECT pg_catalog.pg_logical_emit_message(true, 'likestream', '') \
     WHERE current_setting('synchronous_standby_names') <> '';";

/// Number of comparisons in [`shares_sessions`].
const COMPARISONS: usize = 3;

/// Timeout of the comparison. A pooler without a free session keeps clients waiting.
const COMPARISON_TIMEOUT: Duration = Duration::from_secs(3);

/// Assignment of Postgres sessions to connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Pooling {
    /// Each connection has a dedicated session
    Session,
    /// Each transaction has a session, as with pool_mode = transaction of PgBouncer
    Transaction,
}

/// Settings of transactions.
#[derive(Clone, Copy, Debug)]
pub struct Transactions {
    pub pooling: Pooling,
    /// Timeout of a whole transaction, and therefore of each statement in it.
    pub limit: Duration,
}

impl Transactions {
    /// Returns the SQL to run on a new connection.
    pub fn connected(self) -> String {
        match self.pooling {
            Pooling::Session => {
                self.bounds("SESSION", false) + WAIT_FOR_NO_STANDBY + &staging_table("DELETE ROWS")
            }
            Pooling::Transaction => String::new(),
        }
    }

    /// Returns the SQL that starts a transaction, with or without the staging table.
    pub fn begin(self, stages: bool) -> String {
        match self.pooling {
            Pooling::Session => format!("BEGIN;{WAIT_FOR_STANDBY}{REPLICATE_EARLIER_COMMITS}"),
            Pooling::Transaction => {
                let staging_table = if stages { staging_table("DROP") } else { String::new() };
                format!("BEGIN;{}{REPLICATE_EARLIER_COMMITS}{staging_table}", self.bounds("LOCAL", true))
            }
        }
    }

    /// Returns the SQL that ends a direct copy. The SQL returns a row if the rows went to the staging table: if a pooler shares
    /// sessions despite the setting, the prepared statement may be another consumer's with the same name.
    pub fn commit_direct(self) -> &'static str {
        match self.pooling {
            Pooling::Session => "SELECT 1 FROM likes_batch LIMIT 1; COMMIT",
            // The statement was prepared in this transaction.
            Pooling::Transaction => "COMMIT",
        }
    }

    /// Returns the SQL that sets statement timeouts and enables `synchronous_commit` if the server has it off. Otherwise a
    /// crash of the server could lose rows whose entries are already acknowledged.
    fn bounds(self, scope: &str, is_local: bool) -> String {
        let limit_ms = self.limit.as_millis().max(2);
        let lock_ms = (self.limit / 2).as_millis().max(1);
        format!(
            "
SET {scope} statement_timeout = {limit_ms};
SET {scope} lock_timeout = {lock_ms};
SET {scope} idle_in_transaction_session_timeout = {limit_ms};
SELECT set_config('synchronous_commit', 'on', {is_local}) WHERE current_setting('synchronous_commit') = 'off';
"
        )
    }

    /// Prepares a statement within a transaction. The statement must be dropped before COMMIT is sent: in a shared session,
    /// dropping closes it, so that the next client of the session does not find its name in use.
    pub async fn prepare(self, connection: &PooledSession, sql: &str) -> Result<Statement, Error> {
        match self.pooling {
            Pooling::Session => connection.prepare_cached(sql).await,
            Pooling::Transaction => connection.prepare(sql).await,
        }
    }
}

/// Returns whether a connection pooler assigns sessions per transaction: two connections use the same session, or one
/// connection moves between sessions. Both can go undetected on a busy pooler, so this is only an early check.
pub async fn shares_sessions(postgres: &Postgres, client: &Client) -> bool {
    let compared = timeout(COMPARISON_TIMEOUT, meets_another_session(postgres, client)).await;
    compared.is_ok_and(|shared| shared.unwrap_or(false))
}

/// Returns the settings error for `POSTGRES_POOLING=session` behind such a pooler.
pub fn wrong_setting() -> SettingError {
    SettingError::new(
        "POSTGRES_POOLING",
        "'session' does not work behind a connection pooler that shares sessions (DATABASE_URL); expected transaction",
    )
}

async fn meets_another_session(postgres: &Postgres, client: &Client) -> Result<bool, ConnectError> {
    let other = postgres.connect().await?;
    compare(client, &other).await.map_err(ConnectError::Session)
}

async fn compare(client: &Client, other: &Client) -> Result<bool, Error> {
    for _ in 0..COMPARISONS {
        let before = session_of(client).await?;
        let after = session_of(client).await?;
        if before != after || after == session_of(other).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn session_of(client: &Client) -> Result<i32, Error> {
    client.query_typed_one("SELECT pg_backend_pid()", &[]).await?.try_get(0)
}

/// Returns whether an error proves that another client uses the same session: a name that only consumers use already
/// exists, or the staging table or a prepared statement of this connection is missing.
pub fn is_of_shared_session(error: &Error) -> bool {
    let Some(error) = error.as_db_error() else { return false };
    let code = error.code();
    *code == SqlState::DUPLICATE_PSTATEMENT
        || *code == SqlState::INVALID_SQL_STATEMENT_NAME
        || *code == SqlState::DUPLICATE_TABLE
        || (*code == SqlState::UNDEFINED_TABLE && error.message().contains("likes_batch"))
}
