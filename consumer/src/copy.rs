//! The one transaction that stores a batch, and the proof that it did.

use std::time::{Duration, SystemTime};

use deadpool_postgres::{HookError, Object, Pool, PoolError};
use futures_util::{SinkExt, future};
use opentelemetry::KeyValue;
use shared::{
    error_chain::one_line,
    postgres::{self, FailureClass, copy_format},
    telemetry::names,
    wire::like::Like,
};
use thiserror::Error;
use tokio::{
    pin,
    time::{self, Instant},
};
use tokio_postgres::{SimpleQueryMessage, error::SqlState};

use crate::{
    batch::{Batch, Progress, Rows, SettledEntry},
    foresight::{Foresight, Split},
    insert::insert,
    isolate::isolate,
    pooling::{self, Transactions},
};

/// For rows that are new: it fails when one is not.
const COPY: &str = "COPY likes (user_id, post_id, created_at) FROM STDIN (FORMAT binary)";

/// For rows that may be there already.
const STAGE: &str = "COPY likes_batch (user_id, post_id, created_at) FROM STDIN (FORMAT binary)";

const INSERT_STAGED_AND_COMMIT: &str = "
INSERT INTO likes (user_id, post_id, created_at) SELECT user_id, post_id, created_at FROM likes_batch
ON CONFLICT (user_id, post_id) DO NOTHING;
COMMIT";

/// Proof that every row of a batch is in the table, or was rejected by it alone. Only this module makes one, after the
/// commits, and only with one can its entries be acknowledged.
#[derive(Debug)]
pub(crate) struct Committed {
    batch: Batch,
    restaged: bool,
}

impl Committed {
    /// Rows that were not in the table before.
    pub(crate) fn inserted(&self) -> u64 {
        self.batch.inserted()
    }

    /// Rows that the table does not take.
    pub(crate) fn rejected(&self) -> usize {
        self.batch.rejected()
    }

    /// Whether it was tried straight into the table in vain.
    pub(crate) fn restaged(&self) -> bool {
        self.restaged
    }

    /// For how long the oldest entry of each partition had been in Redis.
    pub(crate) fn waited(&self) -> Vec<Duration> {
        self.batch.waited(SystemTime::now())
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
    SharedSession(#[source] Option<tokio_postgres::Error>),
    #[error("Postgres did not answer within WRITE_TIMEOUT")]
    Timeout,
    #[error("Postgres staged {staged} of {rows} rows")]
    Staged { staged: u64, rows: usize },
    #[error("Postgres did not say how many rows it inserted")]
    Answer,
}

impl From<PoolError> for WriteError {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::PostCreateHook(HookError::Backend(error)) if pooling::is_of_shared_session(&error) => {
                Self::SharedSession(Some(error))
            }
            error => Self::Connect(error),
        }
    }
}

impl From<tokio_postgres::Error> for WriteError {
    fn from(error: tokio_postgres::Error) -> Self {
        if pooling::is_of_shared_session(&error) {
            Self::SharedSession(Some(error))
        } else {
            Self::Postgres(error)
        }
    }
}

impl WriteError {
    /// What to do about it. Nothing that goes wrong before rows are sent can be the rows' fault.
    pub(crate) fn class(&self) -> FailureClass {
        match self {
            Self::Postgres(error) => postgres::classify(error),
            Self::SharedSession(_) => FailureClass::Halt,
            Self::Connect(
                PoolError::Backend(error) | PoolError::PostCreateHook(HookError::Backend(error)),
            ) => match postgres::classify(error) {
                FailureClass::Halt => FailureClass::Halt,
                FailureClass::Retry | FailureClass::Reject => FailureClass::Retry,
            },
            Self::Connect(_) | Self::Timeout | Self::Staged { .. } | Self::Answer => FailureClass::Retry,
        }
    }
}

impl WriteError {
    /// What kind of error it is, for metrics and spans: what Postgres calls it, or one of few words of ours.
    pub(crate) fn error_type(&self) -> &str {
        self.sqlstate().unwrap_or(match self {
            Self::Connect(_) => "connection",
            Self::Postgres(error) if error.is_closed() => "connection",
            Self::Timeout => "timeout",
            Self::SharedSession(_) => "shared_session",
            Self::Postgres(_) | Self::Staged { .. } | Self::Answer => "_OTHER",
        })
    }

    /// Postgres's own word, of which there are some two hundred.
    fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Postgres(error)
            | Self::SharedSession(Some(error))
            | Self::Connect(
                PoolError::Backend(error) | PoolError::PostCreateHook(HookError::Backend(error)),
            ) => error.code().map(SqlState::code),
            _ => None,
        }
    }
}

/// A transaction that has ended.
pub(crate) struct Attempt<'a> {
    /// What it did in the main.
    pub(crate) operation: &'static str,
    pub(crate) rows: usize,
    pub(crate) took: Duration,
    /// Nothing when it was committed.
    pub(crate) error: Option<&'a WriteError>,
}

impl Attempt<'_> {
    /// For metrics and spans.
    pub(crate) fn attributes(&self) -> Vec<KeyValue> {
        let mut attributes = vec![
            KeyValue::new(names::DB_SYSTEM_NAME, names::POSTGRESQL),
            KeyValue::new(names::DB_COLLECTION_NAME, "likes"),
            KeyValue::new(names::DB_OPERATION_NAME, self.operation),
        ];
        if let Some(error) = self.error {
            attributes.push(KeyValue::new(names::ERROR_TYPE, error.error_type().to_owned()));
            let code =
                error.sqlstate().map(|code| KeyValue::new(names::DB_RESPONSE_STATUS_CODE, code.to_owned()));
            attributes.extend(code);
        }
        attributes
    }
}

/// How a transaction writes rows.
#[derive(Clone, Copy)]
enum Way<'a> {
    /// Those that are guessed to be new straight into the table.
    Straight(&'a Split),
    /// All through the staging table.
    Staged(&'a [Like]),
    /// In pieces, to find those that the table rejects.
    Isolating,
}

impl Way<'_> {
    fn operation(self) -> &'static str {
        match self {
            Self::Straight(_) => "COPY",
            Self::Staged(_) | Self::Isolating => "INSERT",
        }
    }
}

/// Stores a batch, or gives it back with the reason why it could not: what of it is stored or rejected by then is
/// not tried again. A batch without rows needs no transaction. Without foresight no row is taken for new.
///
/// After a failure the connection is closed: whatever it was in the middle of is rolled back.
pub(crate) async fn write(
    pool: &Pool,
    transactions: Transactions,
    mut foresight: Option<&mut Foresight>,
    mut batch: Batch,
    ended: &(dyn Fn(&Attempt<'_>) + Sync),
) -> Result<Committed, (Batch, WriteError)> {
    let mut restaged = false;
    if let Some(foresight) = &mut foresight
        && let Some(split) = batch.all_untried().and_then(|rows| foresight.split(rows))
    {
        match attempt(pool, transactions, &batch, Way::Straight(&split), ended).await {
            Ok(progress) => {
                foresight.was_right();
                batch.advance(progress);
            }
            Err(error)
                if error.class() == FailureClass::Retry || !matches!(error, WriteError::Postgres(_)) =>
            {
                return Err((batch, error));
            }
            Err(error) => {
                // Whatever the table has against it, it may take the rows from the staging table.
                foresight.was_wrong();
                restaged = true;
                // Postgres would name the row.
                tracing::debug!(error = error.error_type(), "not straight into the table");
            }
        }
    }
    while let Some(rows) = batch.progress().next_rows(&batch) {
        let all = batch.all_untried();
        match attempt(pool, transactions, &batch, all.map_or(Way::Isolating, Way::Staged), ended).await {
            Ok(progress) => batch.advance(progress),
            Err(error) if all.is_some() && error.class() == FailureClass::Reject => {
                let mut progress = batch.progress().clone();
                progress.rejected(rows, one_line(&error));
                batch.advance(progress);
            }
            Err(error) => return Err((batch, error)),
        }
    }
    Ok(Committed { batch, restaged })
}

/// One transaction, and tells of its end.
async fn attempt(
    pool: &Pool,
    transactions: Transactions,
    batch: &Batch,
    way: Way<'_>,
    ended: &(dyn Fn(&Attempt<'_>) + Sync),
) -> Result<Progress, WriteError> {
    let started = Instant::now();
    let done = transact(pool, transactions, batch, way).await;
    ended(&Attempt {
        operation: way.operation(),
        rows: batch.progress().next_rows(batch).map_or(0, Rows::len),
        took: started.elapsed(),
        error: done.as_ref().err(),
    });
    done
}

/// All rows at once, or as many pieces as there is time for.
async fn transact(
    pool: &Pool,
    transactions: Transactions,
    batch: &Batch,
    way: Way<'_>,
) -> Result<Progress, WriteError> {
    let limit = transactions.limit;
    let connection = pool.get().await?;
    let work = async {
        let whole = |inserted| {
            let mut progress = batch.progress().clone();
            progress.stored(inserted);
            progress
        };
        match way {
            Way::Straight(split) => straight(&connection, transactions, split).await.map(whole),
            Way::Staged(rows) => stage(&connection, transactions, rows).await.map(whole),
            // The other half of the time is for the piece in hand and the commit.
            Way::Isolating => {
                Ok(isolate(&connection, transactions, batch, Instant::now() + limit / 2).await?)
            }
        }
    };
    let done = time::timeout(limit, work).await.unwrap_or(Err(WriteError::Timeout));
    if done.is_err() {
        // In the pool it would be handed out again in the middle of its transaction.
        drop(Object::take(connection));
    }
    done
}

/// Stores rows that may be in the table, by way of the staging table. Returns how many were new.
///
/// BEGIN and COPY leave together, and so do the end of the data, INSERT and COMMIT: two waits for the network, and one
/// more where a statement must be prepared anew. Each step fails if the one before it did, so COMMIT is reached, and
/// answered with a count, only when all is well.
async fn stage(connection: &Object, transactions: Transactions, rows: &[Like]) -> Result<u64, WriteError> {
    let begin = transactions.begin(true);
    let begin = connection.batch_execute(&begin);
    let store = connection.simple_query(INSERT_STAGED_AND_COMMIT);
    let (staged, answers) = copy(connection, transactions, STAGE, rows, begin, store).await?;
    if staged != rows.len() as u64 {
        // Nothing that Postgres does; but then nothing is acknowledged on a guess either.
        return Err(WriteError::Staged { staged, rows: rows.len() });
    }
    let inserted = answers.iter().find_map(|message| match message {
        SimpleQueryMessage::CommandComplete(rows) => Some(*rows),
        _ => None,
    });
    inserted.ok_or(WriteError::Answer)
}

/// Stores rows that are guessed to be new straight into the table, and with them those that are known, which may be there
/// or not. Returns how many were new.
///
/// It all leaves as in [`stage`]. COMMIT after a failed step rolls back and says nothing, so the answers are looked at in
/// their order: that to COMMIT counts only when all before it is well.
async fn straight(
    connection: &Object,
    transactions: Transactions,
    Split { fresh, known }: &Split,
) -> Result<u64, WriteError> {
    let begin = transactions.begin(false);
    let begin = connection.batch_execute(&begin);
    let insert_known = async { if known.is_empty() { Ok(0) } else { insert(connection, known).await } };
    let commit = async {
        let commit = connection.simple_query(transactions.commit_straight());
        let (inserted, committed) = future::join(insert_known, commit).await;
        let inserted = inserted?;
        committed.map(|answers| (inserted, answers))
    };
    let (copied, (inserted, answers)) = copy(connection, transactions, COPY, fresh, begin, commit).await?;
    if answers.iter().any(|answer| matches!(answer, SimpleQueryMessage::Row(_))) {
        // The statement was another's of the same name: the rows went to the staging table, and are gone.
        return Err(WriteError::SharedSession(None));
    }
    Ok(copied + inserted)
}

/// COPY, sent together with what comes before it and what comes after it. Returns how many rows were copied: a trigger can
/// leave some out.
async fn copy<A>(
    connection: &Object,
    transactions: Transactions,
    sql: &str,
    rows: &[Like],
    before: impl Future<Output = Result<(), tokio_postgres::Error>>,
    after: impl Future<Output = Result<A, tokio_postgres::Error>>,
) -> Result<(u64, A), tokio_postgres::Error> {
    let start = async {
        let copy = transactions.prepare(connection, sql).await?;
        connection.copy_in(&copy).await
    };
    let (before, sink) = future::join(before, start).await;
    before?;
    let sink = sink?;
    pin!(sink);
    sink.send(copy_format::encode(rows)).await?;
    let (copied, after) = future::join(sink.finish(), after).await;
    Ok((copied?, after?))
}
