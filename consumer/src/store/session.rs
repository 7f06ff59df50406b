//! Postgres sessions: dedicated to a connection, or behind a connection pooler assigned per transaction. In the second case
//! each transaction sets its own parameters.

use std::time::Duration;

use clap::ValueEnum;
use futures_util::future;
use shared::{
    postgres::{ConnectError, Pool, PooledSession, Postgres},
    settings::SettingError,
};
use tokio::time::timeout;
use tokio_postgres::{Client, Error, Row, Statement, error::SqlState, types::Type};

use crate::store::{
    database::DatabaseId,
    error::{Phase, WriteError},
    table::FINGERPRINT,
};

/// Columns of the staging table. The table is empty at the start of each transaction.
const STAGING_COLUMNS: &str = "user_id bigint, post_id bigint, created_at timestamptz";

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
    /// The database that the group is bound to.
    pub database: DatabaseId,
}

impl Transactions {
    /// Returns the SQL to run on a new connection. It writes nothing, so it waits for no standby.
    pub fn connected(self) -> String {
        match self.pooling {
            Pooling::Session => self.bounds("SESSION", false) + WAIT_FOR_NO_STANDBY + &self.database.guard(),
            Pooling::Transaction => String::new(),
        }
    }

    /// Returns the SQL that starts a transaction, with or without the staging table.
    fn begin(self, stages: bool) -> String {
        // A statement must see the table as it is after the lock, whatever the default of the server.
        let begin = "BEGIN ISOLATION LEVEL READ COMMITTED;";
        match self.pooling {
            Pooling::Session => format!("{begin}{WAIT_FOR_STANDBY}{REPLICATE_EARLIER_COMMITS}"),
            Pooling::Transaction => {
                let staging_table = if stages {
                    format!("CREATE TEMPORARY TABLE likes_batch ({STAGING_COLUMNS}) ON COMMIT DROP;")
                } else {
                    String::new()
                };
                let (bounds, guard) = (self.bounds("LOCAL", true), self.database.guard());
                format!("{begin}{bounds}{guard}{REPLICATE_EARLIER_COMMITS}{staging_table}")
            }
        }
    }

    /// Returns the SQL that sets statement timeouts and enables `synchronous_commit` if the server has it off. Otherwise a
    /// crash of the server could lose rows whose entries are already acknowledged.
    ///
    /// A statement has less time than the transaction, so that the answer of Postgres comes before the connection is given
    /// up.
    fn bounds(self, scope: &str, is_local: bool) -> String {
        let limit_ms = self.limit.as_millis().max(2);
        let statement_ms = (self.limit * 3 / 4).as_millis().max(1);
        let lock_ms = (self.limit / 2).as_millis().max(1);
        format!(
            "
SET {scope} statement_timeout = {statement_ms};
SET {scope} lock_timeout = {lock_ms};
SET {scope} idle_in_transaction_session_timeout = {limit_ms};
SELECT set_config('synchronous_commit', 'on', {is_local}) WHERE current_setting('synchronous_commit') = 'off';
"
        )
    }
}

/// Connection of a writer.
pub(super) struct Session {
    connection: PooledSession,
    transactions: Transactions,
    /// State of a session that belongs to this connection; `None` if a pooler assigns one to each transaction.
    own: Option<OwnSession>,
}

struct OwnSession {
    backend: i32,
    fingerprint: Statement,
    has_staging_table: bool,
}

/// Observations at the start of a transaction.
pub(super) struct Begun {
    /// Fingerprint of the table, see [`FINGERPRINT`].
    pub(super) fingerprint: String,
    /// Whether a commit waits for a synchronous standby.
    pub(super) awaits_standby: bool,
}

impl Session {
    pub(super) async fn open(pool: &Pool, transactions: Transactions) -> Result<Self, WriteError> {
        let connection = pool.get().await?;
        let own = match transactions.pooling {
            Pooling::Transaction => None,
            Pooling::Session => {
                let opening = future::try_join(session_of(&connection), connection.prepare(FINGERPRINT));
                let opened = timeout(transactions.limit, opening).await;
                let (backend, fingerprint) = opened
                    .map_err(|_| WriteError::Timeout(Phase::Setup))?
                    .map_err(|error| WriteError::in_phase(Phase::Setup, error))?;
                Some(OwnSession { backend, fingerprint, has_staging_table: false })
            }
        };
        Ok(Self { connection, transactions, own })
    }

    /// Returns the connection, for statements of a transaction.
    pub(super) fn connection(&self) -> &PooledSession {
        &self.connection
    }

    pub(super) fn limit(&self) -> Duration {
        self.transactions.limit
    }

    pub(super) fn is_usable(&self) -> bool {
        !self.connection.is_closed()
    }

    /// Closes the connection, which rolls back an open transaction. It must not return to the pool in the middle of one.
    pub(super) fn close(self) {
        drop(PooledSession::take(self.connection));
    }

    /// Creates the staging table of a session that has none. Outside of a writing transaction a session waits for no standby.
    pub(super) async fn create_staging_table(&mut self) -> Result<(), WriteError> {
        let Some(own) = self.own.as_mut().filter(|own| !own.has_staging_table) else { return Ok(()) };
        let create = format!("CREATE TEMPORARY TABLE likes_batch ({STAGING_COLUMNS}) ON COMMIT DELETE ROWS");
        let created = self.connection.batch_execute(&create).await;
        created.map_err(|error| WriteError::in_phase(Phase::Setup, error))?;
        own.has_staging_table = true;
        Ok(())
    }

    /// Begins a transaction and locks the table against changes of its definition. The statements are sent together, and the
    /// caller may send more before it has the reply.
    pub(super) async fn begin(&self, lock: &str, table: &str, stages: bool) -> Result<Begun, WriteError> {
        let sql = self.transactions.begin(stages) + lock;
        let (begun, row) = future::join(self.connection.batch_execute(&sql), self.fingerprint(table)).await;
        let in_setup = |error| WriteError::in_phase(Phase::Setup, error);
        begun.map_err(in_setup)?;
        let row = row.map_err(in_setup)?.ok_or(WriteError::TableChanged)?;
        let backend: i32 = row.try_get(0).map_err(in_setup)?;
        if self.own.as_ref().is_some_and(|own| own.backend != backend) {
            // Prepared statements may be another consumer's with the same names.
            return Err(WriteError::SharedSession(None));
        }
        let awaits_standby = row.try_get(1).map_err(in_setup)?;
        Ok(Begun { fingerprint: row.try_get(2).map_err(in_setup)?, awaits_standby })
    }

    async fn fingerprint(&self, table: &str) -> Result<Option<Row>, Error> {
        match &self.own {
            Some(own) => self.connection.query_opt(&own.fingerprint, &[&table]).await,
            // Unnamed statement: a named one would remain in a session of other clients.
            None => self.connection.query_typed_opt(FINGERPRINT, &[(&table, Type::TEXT)]).await,
        }
    }

    /// Prepares a statement within a transaction. The statement must be dropped before COMMIT is sent: in a shared session,
    /// dropping closes it, so that the next client of the session does not find its name in use.
    pub(super) async fn prepare(&self, sql: &str) -> Result<Statement, Error> {
        match self.own {
            Some(_) => self.connection.prepare_cached(sql).await,
            None => self.connection.prepare(sql).await,
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
