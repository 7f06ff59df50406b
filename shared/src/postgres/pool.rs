//! The connection pool.

use std::time::Duration;

use deadpool::{
    Runtime,
    managed::{self, BuildError, Manager, Metrics, RecycleError, RecycleResult, Status},
};
use deadpool_postgres::ClientWrapper;
use tokio::time::timeout;

use super::{connect::Postgres, error::ConnectError};

/// Time limit for setting up a session, and for waiting for a free connection.
const LIMIT: Duration = Duration::from_secs(5);

/// A connection with a cache of prepared statements. Closes when it is dropped; a statement that is still executed is
/// cancelled.
pub type Session = ClientWrapper;

/// A [`Session`] that returns to its pool when it is dropped.
pub type PooledSession = managed::Object<Sessions>;

/// A pool of connections.
#[derive(Clone)]
pub struct Pool(managed::Pool<Sessions>);

impl Pool {
    /// Nothing is connected yet. `setup` is SQL that every new connection starts with.
    pub(super) fn new(postgres: Postgres, connections: usize, setup: String) -> Result<Self, BuildError> {
        managed::Pool::builder(Sessions { postgres, setup })
            .max_size(connections)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(LIMIT))
            .build()
            .map(Self)
    }

    /// Returns a free connection, or opens one.
    ///
    /// # Errors
    /// When the connection or its set-up fails, or no connection becomes free.
    pub async fn get(&self) -> Result<PooledSession, ConnectError> {
        Ok(self.0.get().await?)
    }

    /// Returns the number of connections.
    pub fn status(&self) -> Status {
        self.0.status()
    }
}

/// Opens the connections of a pool.
pub struct Sessions {
    postgres: Postgres,
    setup: String,
}

impl Manager for Sessions {
    type Type = Session;
    type Error = ConnectError;

    async fn create(&self) -> Result<Session, ConnectError> {
        let session = self.postgres.connect().await?;
        // A pooler may accept a connection before it has a free session.
        let done = timeout(LIMIT, session.batch_execute(&self.setup)).await;
        done.map_err(|_| ConnectError::SilentSession(LIMIT))?.map_err(ConnectError::Session)?;
        Ok(session)
    }

    async fn recycle(&self, session: &mut Session, _: &Metrics) -> RecycleResult<ConnectError> {
        if session.is_closed() {
            return Err(RecycleError::message("the connection is closed"));
        }
        Ok(())
    }
}
