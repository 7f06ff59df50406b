//! The session in Postgres: ours for as long as we are connected, or behind a pooler only for a transaction, which then
//! brings its own settings along.

use std::time::Duration;

use clap::ValueEnum;
use deadpool_postgres::Object;
use shared::{postgres::Postgres, settings::SettingError};
use tokio::time::timeout;
use tokio_postgres::{Client, Error, Statement, error::SqlState};

/// Returns the SQL that creates the staging table, which is empty for each transaction.
fn staging_table(on_commit: &str) -> String {
    let columns = "user_id bigint, post_id bigint, created_at timestamptz";
    format!("CREATE TEMPORARY TABLE likes_batch ({columns}) ON COMMIT {on_commit};")
}

/// Number of times that [`shares_sessions`] compares sessions.
const COMPARISONS: usize = 3;

/// How long it may take: a pooler without a free session lets clients wait.
const COMPARISON_TIMEOUT: Duration = Duration::from_secs(3);

/// How connections share the sessions of Postgres.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Pooling {
    /// Each connection has a session to itself
    Session,
    /// Each transaction has a session, as behind a PgBouncer with pool_mode = transaction
    Transaction,
}

/// The settings of transactions.
#[derive(Clone, Copy, Debug)]
pub struct Transactions {
    pub pooling: Pooling,
    /// The time of a whole transaction: no statement needs to wait longer in the server.
    pub limit: Duration,
}

impl Transactions {
    /// Returns the SQL that a new connection starts with.
    pub fn connected(self) -> String {
        match self.pooling {
            Pooling::Session => self.bounds("SESSION", false) + &staging_table("DELETE ROWS"),
            Pooling::Transaction => String::new(),
        }
    }

    /// Returns the SQL that a transaction starts with, with the staging table or without it.
    pub fn begin(self, stages: bool) -> String {
        match self.pooling {
            Pooling::Session => "BEGIN;".to_owned(),
            Pooling::Transaction => {
                let staging_table = if stages { staging_table("DROP") } else { String::new() };
                format!("BEGIN;{}{staging_table}", self.bounds("LOCAL", true))
            }
        }
    }

    /// Returns the SQL that a direct copy ends with. It returns a row if the rows went to the staging table: should a pooler
    /// share the sessions in spite of the setting, a prepared statement may be another consumer's of the same name.
    pub fn commit_direct(self) -> &'static str {
        match self.pooling {
            Pooling::Session => "SELECT 1 FROM likes_batch LIMIT 1; COMMIT",
            // The statement was prepared in this very transaction.
            Pooling::Transaction => "COMMIT",
        }
    }

    /// Returns the SQL that bounds the waits of statements, and makes commits wait for the disk: a server that has this
    /// switched off could otherwise forget acknowledged entries.
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

    /// Prepares a statement, within a transaction. It must be dropped before the commit is sent: where the session is
    /// not ours it is closed then, or the next client of the session would find its name in use.
    pub async fn prepare(self, connection: &Object, sql: &str) -> Result<Statement, Error> {
        match self.pooling {
            Pooling::Session => connection.prepare_cached(sql).await,
            Pooling::Transaction => connection.prepare(sql).await,
        }
    }
}

/// Returns whether a pooler gives sessions to transactions: it lets two connections meet in one session, or moves a
/// connection from one to another. On a busy pooler both may be missed, so this is only an early warning.
pub async fn shares_sessions(postgres: &Postgres, client: &Client) -> bool {
    let compared = timeout(COMPARISON_TIMEOUT, meets_another_session(postgres, client)).await;
    compared.is_ok_and(|shared| shared.unwrap_or(false))
}

/// Returns the error for `POSTGRES_POOLING=session` behind such a pooler.
pub fn wrong_setting() -> SettingError {
    SettingError::new(
        "POSTGRES_POOLING",
        "'session' does not do: DATABASE_URL leads to a pooler that shares sessions: allowed is transaction",
    )
}

async fn meets_another_session(postgres: &Postgres, client: &Client) -> Result<bool, Error> {
    let other = postgres.connect().await?;
    for _ in 0..COMPARISONS {
        let before = session_of(client).await?;
        let after = session_of(client).await?;
        if before != after || after == session_of(&other).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn session_of(client: &Client) -> Result<i32, Error> {
    client.query_typed_one("SELECT pg_backend_pid()", &[]).await?.try_get(0)
}

/// Returns whether the cause can only be another client in the session: a name is in use that only we use, or our staging
/// table or statement is gone.
pub fn is_of_shared_session(error: &Error) -> bool {
    let Some(error) = error.as_db_error() else { return false };
    let code = error.code();
    *code == SqlState::DUPLICATE_PSTATEMENT
        || *code == SqlState::INVALID_SQL_STATEMENT_NAME
        || *code == SqlState::DUPLICATE_TABLE
        || (*code == SqlState::UNDEFINED_TABLE && error.message().contains("likes_batch"))
}
