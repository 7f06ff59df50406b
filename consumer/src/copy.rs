//! The one transaction that stores a batch, and the proof that it did.

use deadpool_postgres::{HookError, Object, Pool, PoolError};
use futures_util::{SinkExt, future};
use shared::{
    pg::{self, FailureClass},
    service::one_line,
};
use thiserror::Error;
use tokio::{
    pin,
    time::{self, Instant},
};
use tokio_postgres::SimpleQueryMessage;

use crate::{
    batch::{Batch, Progress, SettledEntry},
    isolate::isolate,
    pooling::{self, Transactions},
};

const STAGE: &str = "COPY likes_batch (user_id, post_id, created_at) FROM STDIN (FORMAT binary)";

const STORE: &str = "
INSERT INTO likes (user_id, post_id, created_at) SELECT user_id, post_id, created_at FROM likes_batch
ON CONFLICT (user_id, post_id) DO NOTHING;
COMMIT";

/// Proof that every row of a batch is in the table, or was rejected by it alone. Only this module makes one, after the
/// commits, and only with one can its entries be acknowledged.
#[derive(Debug)]
pub(crate) struct Committed {
    batch: Batch,
}

impl Committed {
    /// Rows that were not in the table before.
    pub(crate) fn inserted(&self) -> u64 {
        self.batch.inserted()
    }

    /// What may be acknowledged now.
    pub(crate) fn into_entries(self) -> Vec<SettledEntry> {
        self.batch.into_entries()
    }
}

/// A batch is not known to be stored. It may be all the same, when the answer to the commit was lost.
#[derive(Debug, Error)]
pub(crate) enum WriteError {
    #[error("no connection to Postgres")]
    Connect(#[source] PoolError),
    #[error("Postgres did not store the batch")]
    Postgres(#[source] tokio_postgres::Error),
    #[error(
        "a pooler shares the sessions of Postgres: set POSTGRES_POOLING=transaction, for all consumers behind it"
    )]
    SharedSession(#[source] tokio_postgres::Error),
    #[error("Postgres did not answer within WRITE_TIMEOUT")]
    Timeout,
    #[error("Postgres staged {staged} of {rows} rows")]
    Staged { staged: u64, rows: u64 },
    #[error("Postgres did not say how many rows it inserted")]
    Answer,
}

impl From<PoolError> for WriteError {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::PostCreateHook(HookError::Backend(error)) if pooling::is_of_shared_session(&error) => {
                Self::SharedSession(error)
            }
            error => Self::Connect(error),
        }
    }
}

impl From<tokio_postgres::Error> for WriteError {
    fn from(error: tokio_postgres::Error) -> Self {
        if pooling::is_of_shared_session(&error) { Self::SharedSession(error) } else { Self::Postgres(error) }
    }
}

impl WriteError {
    /// What to do about it. Nothing that goes wrong before rows are sent can be the rows' fault.
    pub(crate) fn class(&self) -> FailureClass {
        match self {
            Self::Postgres(error) => pg::classify(error),
            Self::SharedSession(_) => FailureClass::Halt,
            Self::Connect(
                PoolError::Backend(error) | PoolError::PostCreateHook(HookError::Backend(error)),
            ) => match pg::classify(error) {
                FailureClass::Halt => FailureClass::Halt,
                FailureClass::Retry | FailureClass::Reject => FailureClass::Retry,
            },
            Self::Connect(_) | Self::Timeout | Self::Staged { .. } | Self::Answer => FailureClass::Retry,
        }
    }
}

/// Stores a batch, or gives it back with the reason why it could not: what of it is stored or rejected by then is
/// not tried again. A batch without rows needs no transaction.
///
/// After a failure the connection is closed: whatever it was in the middle of is rolled back.
pub(crate) async fn write(
    pool: &Pool,
    transactions: Transactions,
    mut batch: Batch,
) -> Result<Committed, (Batch, WriteError)> {
    while let Some(rows) = batch.progress().next_rows(&batch) {
        let whole = rows.len() == batch.rows();
        match attempt(pool, transactions, &batch, whole).await {
            Ok(progress) => batch.advance(progress),
            Err(error) if whole && error.class() == FailureClass::Reject => {
                let mut progress = batch.progress().clone();
                progress.rejected(rows, one_line(&error));
                batch.advance(progress);
            }
            Err(error) => return Err((batch, error)),
        }
    }
    Ok(Committed { batch })
}

/// One transaction: all rows at once, or as many pieces as it has time for.
async fn attempt(
    pool: &Pool,
    transactions: Transactions,
    batch: &Batch,
    whole: bool,
) -> Result<Progress, WriteError> {
    let limit = transactions.limit;
    let connection = pool.get().await?;
    let work = async {
        if whole {
            store(&connection, transactions, batch).await
        } else {
            // The other half of the time is for the piece in hand and the commit.
            Ok(isolate(&connection, transactions, batch, Instant::now() + limit / 2).await?)
        }
    };
    let done = time::timeout(limit, work).await.unwrap_or(Err(WriteError::Timeout));
    if done.is_err() {
        // In the pool it would be handed out again in the middle of its transaction.
        drop(Object::take(connection));
    }
    done
}

/// BEGIN and COPY leave together, and so do the end of the data, INSERT and COMMIT: two waits for the network, and one
/// more where the statement must be prepared anew. Each step fails if the one before it did, so COMMIT is reached, and
/// answered with a count, only when all is well.
async fn store(
    connection: &Object,
    transactions: Transactions,
    batch: &Batch,
) -> Result<Progress, WriteError> {
    let mut progress = batch.progress().clone();
    let Some(rows) = progress.next_rows(batch) else { return Ok(progress) };
    let copy = async {
        let stage = transactions.prepare(connection, STAGE).await?;
        connection.copy_in(&stage).await
    };
    let (began, sink) = future::join(connection.batch_execute(&transactions.begin()), copy).await;
    began?;
    let sink = sink?;
    pin!(sink);
    sink.send(rows.copy_data()).await?;
    let (staged, stored) = future::join(sink.finish(), connection.simple_query(STORE)).await;
    let (staged, rows) = (staged?, rows.len() as u64);
    let stored = stored?;
    if staged != rows {
        // Nothing that Postgres does; but then nothing is acknowledged on a guess either.
        return Err(WriteError::Staged { staged, rows });
    }
    let count = stored.iter().find_map(|message| match message {
        SimpleQueryMessage::CommandComplete(rows) => Some(*rows),
        _ => None,
    });
    progress.stored(count.ok_or(WriteError::Answer)?);
    Ok(progress)
}
