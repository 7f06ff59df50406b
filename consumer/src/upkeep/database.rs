//! Watches the database: whether it is the one that the group is bound to, whether its server was replaced by a standby,
//! and the incidents that are kept in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use shared::{
    error_chain::one_line,
    postgres::{ConnectError, Pool, PooledSession},
    settings::SettingError,
    wire::partition::{Partition, PartitionCount},
};
use thiserror::Error;
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_postgres::Transaction;
use tokio_util::sync::CancellationToken;

use crate::{
    entry::EntryId,
    group::{
        binding::{BoundDatabase, Relation, copy_warning, relation, wrong_database},
        ownership::Ownership,
    },
    metrics::Metrics,
    store::{
        database::{self, DatabaseIdentity},
        incidents::{self, IncidentKind, NewIncident, Scope},
        schema::SchemaError,
        watermarks,
    },
    stream::{Binding, Streams},
    upkeep::stream_watch::{Exchanged, StreamWatch},
};

/// Interval between two visits to Postgres.
const INTERVAL: Duration = Duration::from_secs(2);

/// Time after which a visit closes its connection. Longer than the statements of a visit take at most, because another visit
/// needs another connection.
const GIVE_UP: Duration = Duration::from_secs(15);

const TIMEOUTS: &str = "SET LOCAL statement_timeout = '2s'; SET LOCAL lock_timeout = '1s'";

/// Lets the commit wait for no standby: what it writes describes earlier commits, and never reaches a standby before these.
const WAIT_FOR_NO_STANDBY: &str = "SET LOCAL synchronous_commit = local";

#[derive(Debug, Error)]
enum VisitError {
    #[error("cannot connect to Postgres")]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Schema(#[from] SchemaError),
    #[error("cannot record incidents")]
    Postgres(#[from] tokio_postgres::Error),
    /// The address leads to another database. Writers halt as well, and continue when it leads back.
    #[error(transparent)]
    WrongDatabase(SettingError),
    #[error("no response within {} s", GIVE_UP.as_secs())]
    Timeout,
}

/// Components of the task.
pub(crate) struct DatabaseWatch {
    pub(crate) streams: Streams,
    pub(crate) pool: Pool,
    pub(crate) bound: BoundDatabase,
    pub(crate) partitions: watch::Receiver<PartitionCount>,
    pub(crate) ownership: watch::Receiver<Ownership>,
    /// Partitions whose losses and watermarks this consumer records: its own, and those without an owner.
    pub(crate) own: BTreeSet<Partition>,
    pub(crate) retention: Duration,
    pub(crate) stream_watch: Arc<StreamWatch>,
    pub(crate) metrics: Arc<Metrics>,
}

impl DatabaseWatch {
    /// Watches until `stop`, or until the group is bound to another database.
    ///
    /// # Errors
    /// When the group is bound to another database.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> Result<(), SettingError> {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failing = false;
        let mut open = BTreeMap::new();
        loop {
            if stop.run_until_cancelled(ticks.tick()).await.is_none() {
                self.save_final_state().await;
                return Ok(());
            }
            self.own = self.ownership.borrow().responsible_for();
            // A visit can take long, and its failure leaves losses unrecorded.
            self.report_open(&open);
            let read = self.read_binding().await;
            match &read {
                Ok(binding) => drop(self.bound.accept(self.streams.group(), binding.clone())?),
                // What Redis has lost is recorded all the same.
                Err(error) => {
                    tracing::debug!(error = one_line(error), "cannot read the database of the group");
                }
            }
            match self.visit().await {
                Ok(now_open) => {
                    if failing {
                        tracing::info!("watching the database recovered");
                    }
                    failing = false;
                    open = now_open;
                    if read.is_ok() {
                        self.mirror_open(&open).await;
                    }
                }
                Err(error) => {
                    let error = one_line(&error);
                    if !failing {
                        tracing::warn!(error, "cannot watch the database, retrying");
                    }
                    failing = true;
                }
            }
        }
    }

    /// Returns the binding of the group. Restores one that Redis has lost.
    async fn read_binding(&self) -> Result<Binding, fred::error::Error> {
        match self.streams.binding().await? {
            Some(binding) => Ok(binding),
            None => self.streams.bind(&self.bound.database, self.streams.consumer(), None).await,
        }
    }

    /// Saves the watermarks as this consumer leaves the streams. What is lost until the next start is then known exactly.
    async fn save_final_state(&mut self) {
        let round = self.stream_watch.begin_round(|| self.own.clone()).await;
        let samples =
            self.own.iter().map(async |partition| (*partition, self.streams.sample(*partition).await));
        let samples = join_all(samples).await.into_iter();
        let samples = samples.filter_map(|(partition, sample)| Some((partition, sample.ok()?)));
        self.stream_watch.sampled(round, samples);
        if let Err(error) = self.visit().await {
            tracing::debug!(error = one_line(&error), "cannot save the state of the streams");
        }
    }

    /// Visits Postgres once. Returns the numbers of open incidents by kind.
    async fn visit(&mut self) -> Result<BTreeMap<String, u64>, VisitError> {
        let mut connection = self.pool.get().await?;
        let visited = timeout(GIVE_UP, self.visit_with(&mut connection)).await;
        if !matches!(visited, Ok(Ok(_))) {
            // The connection may be in the middle of a transaction.
            drop(PooledSession::take(connection));
        }
        visited.map_err(|_| VisitError::Timeout)?
    }

    async fn visit_with(
        &mut self,
        connection: &mut PooledSession,
    ) -> Result<BTreeMap<String, u64>, VisitError> {
        let binding = &self.bound.binding;
        let mut transaction = connection.transaction().await?;
        transaction.batch_execute(TIMEOUTS).await?;
        // Within the transaction: behind a connection pooler, the next one may be on another server.
        let found = database::identity(&mut *transaction, &self.bound.database.address).await?;
        transaction.batch_execute(WAIT_FOR_NO_STANDBY).await?;
        let relation = relation(&found, binding);
        if relation == Relation::Other {
            return Err(VisitError::WrongDatabase(wrong_database(self.streams.group(), &found, binding)));
        }
        let known = &self.bound.database;
        let is_known = found.system_identifier == known.system_identifier && found.oid == known.oid;
        if relation == Relation::Copy && !is_known {
            tracing::warn!(warning = copy_warning(&found, binding), "database is a restored copy");
        }
        let has_failed_over = relation == Relation::Same
            && binding.timeline.is_some_and(|known| found.timeline.is_some_and(|timeline| timeline != known));
        // Before any watermark is saved: those in Postgres are from before the failover.
        let failover = if has_failed_over && !binding.awaits_standby {
            self.record_failover(&transaction, &found).await?
        } else {
            None
        };
        let exchanged = self.stream_watch.exchange(&*transaction, &self.streams, &self.own).await?;
        let prefix = self.streams.prefix();
        let scope = Scope { streams: &prefix, group: self.streams.group() };
        let open = incidents::open_by_kind(&*transaction, scope).await?;
        transaction.commit().await?;
        if let Some(incident) = failover {
            tracing::error!(
                detail = incident.detail,
                "Postgres continues on another timeline, commits may be lost"
            );
        }
        self.recorded(exchanged);
        if has_failed_over && binding.awaits_standby {
            tracing::warn!(
                before = binding.timeline,
                now = found.timeline,
                "Postgres continues on another timeline, its commits had waited for a standby"
            );
        }
        let is_recorded =
            found.timeline == binding.timeline && found.awaits_standby == binding.awaits_standby;
        // A standby does not know its timeline.
        if relation == Relation::Same && found.timeline.is_some() && !is_recorded {
            self.record_server(&found).await;
        }
        self.bound.database = found;
        Ok(open.into_iter().collect())
    }

    /// Records the state of the server in the binding.
    async fn record_server(&mut self, found: &DatabaseIdentity) {
        let binding = &mut self.bound.binding;
        binding.timeline = found.timeline;
        binding.awaits_standby = found.awaits_standby;
        binding.server_recorded = Some(format!("{:016x}", rand::random::<u64>()));
        // If this fails, the next binding read is the earlier one: the incident is found again, and is not recorded twice.
        if let Err(error) = self.streams.record_server(binding).await {
            tracing::debug!(error = one_line(&error), "cannot record the state of the server");
        }
    }

    fn recorded(&self, exchanged: Exchanged) {
        for recorded in exchanged.recorded.iter().filter(|recorded| recorded.is_first) {
            let NewIncident { kind, detail, .. } = &recorded.incident;
            tracing::error!(kind = kind.name(), detail, "incident recorded, see likesctl incidents list");
            self.metrics.lost(recorded.certainly_lost.try_into().unwrap_or(usize::MAX));
        }
        self.stream_watch.committed(exchanged);
    }

    /// Records that a standby was promoted. Returns the incident unless another consumer has recorded it.
    async fn record_failover(
        &self,
        transaction: &Transaction<'_>,
        found: &DatabaseIdentity,
    ) -> Result<Option<NewIncident>, tokio_postgres::Error> {
        let streams: Vec<String> =
            self.partitions.borrow().partitions().map(|partition| self.streams.key(partition)).collect();
        let group = self.streams.group();
        let watermarks = watermarks::load(transaction, group, &streams).await?;
        // The server that has these rows also has every commit before them. Nothing is known of a stream without a row.
        let known = watermarks.values().map(|stored| stored.watermark.settled_below).min();
        let from = known.filter(|_| watermarks.len() == streams.len()).unwrap_or_default();
        let binding = &self.bound.binding;
        // A server can return to a timeline that it had before.
        let since = binding.server_recorded.clone().unwrap_or_else(|| binding.bound_at_ms.to_string());
        let timeline = |timeline: Option<u32>| timeline.unwrap_or_default();
        let (before, now) = (timeline(binding.timeline), timeline(found.timeline));
        let system = found.system_identifier.as_deref().unwrap_or("unknown");
        let incident = NewIncident {
            event: format!(
                "{} {} {group} {system} {before} {now} {since}",
                IncidentKind::PostgresFailover.name(),
                self.streams.prefix()
            ),
            kind: IncidentKind::PostgresFailover,
            entries_lost: None,
            detail: failover_detail(&found.address, (before, now), from, self.retention),
            detected_by: self.streams.consumer().to_owned(),
        };
        let prefix = self.streams.prefix();
        let scope = Scope { streams: &prefix, group };
        let is_first = incidents::record(transaction, scope, &incident).await?;
        Ok(Some(incident).filter(|_| is_first))
    }

    fn report_open(&self, open: &BTreeMap<String, u64>) {
        let unrecorded = self.stream_watch.unrecorded();
        for kind in IncidentKind::ALL {
            let unrecorded = unrecorded.get(&kind).copied().unwrap_or(0);
            self.metrics.open_incidents(kind, open.get(kind.name()).copied().unwrap_or(0) + unrecorded);
        }
    }

    /// Records the number of open incidents in Redis.
    async fn mirror_open(&self, open: &BTreeMap<String, u64>) {
        let number = open.values().sum();
        if self.bound.binding.open_incidents != Some(number)
            && let Err(error) = self.streams.record_open_incidents(self.bound.database.id, number).await
        {
            tracing::debug!(error = one_line(&error), "cannot record the number of open incidents");
        }
    }
}

fn failover_detail(address: &str, (before, now): (u32, u32), from: EntryId, retention: Duration) -> String {
    let detail = format!(
        "{address} continues on timeline {now} instead of {before}: commits that were not replicated are lost, unless \
         replication was synchronous"
    );
    if retention.is_zero() {
        return format!(
            "{detail}; they cannot be stored again, because STREAM_RETENTION is 0s and acknowledged entries are trimmed"
        );
    }
    format!(
        "{detail}; to store them again, run likesctl reprocess --from {from} within STREAM_RETENTION ({})",
        humantime::format_duration(retention)
    )
}
