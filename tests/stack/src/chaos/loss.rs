//! A Redis that loses all its data, and what consumers report as lost.

use std::{collections::HashMap, time::Duration};

use devstack::{StackError, backlog::Keys, process::wait_until, program};
use fred::{bytes::Bytes, prelude::Value};
use serde::Deserialize;
use shared::{
    redis::{Connections, Retry},
    wire::codec,
};

use crate::chaos::{
    check, group,
    injector::{Injector, InjectorError},
    plan::Fault,
};

/// Time in which consumers take two samples of the streams.
const TWO_SAMPLES: Duration = Duration::from_secs(5);

/// Time limit for consumers to stop reading, and for their reports of a loss.
const REPORT_LIMIT: Duration = Duration::from_secs(30);

/// Everything that Redis has lost.
#[derive(Default)]
pub(crate) struct Lost {
    /// Payloads of undelivered entries.
    pub(crate) payloads: Vec<Bytes>,
    /// Fields of dead letters.
    pub(crate) dead_letters: Vec<HashMap<String, Bytes>>,
}

/// Incident, as `likesctl incidents list` prints it.
#[derive(Deserialize)]
struct Incident {
    kind: String,
    entries_lost: Option<u64>,
    detail: String,
}

impl Injector {
    /// Removes all data of Redis, with entries that no consumer has read. Ingest is stopped meanwhile, so that the loss is known
    /// exactly.
    ///
    /// # Errors
    /// When consumers report another number of entries, or have reported a loss before.
    pub(super) fn flush_redis(&mut self, fault: Fault) -> Result<(), InjectorError> {
        self.check_reports()?;
        self.pause_consumers()?;
        self.stack.replace_ingest()?;
        self.pause(fault.outage);
        self.stack.ingest.stop()?;
        self.pause(TWO_SAMPLES);
        self.runtime.block_on(self.lost.read(&self.redis))?;
        self.lost.payloads.iter().for_each(|payload| self.malformed.lose(payload));
        self.redis_command("FLUSHALL", &[])?;
        wait_until(REPORT_LIMIT, || self.check_reports().is_ok());
        self.check_reports()?;
        // Records the cluster settings again, which likesctl needs.
        self.stack.replace_ingest()?;
        Ok(self.likesctl(&["incidents", "acknowledge", "--all", "--yes"])?)
    }

    /// Stops ingest, and the consumers from reading once nothing is pending. Redis forgets with all its data that they are
    /// paused.
    fn pause_consumers(&mut self) -> Result<(), InjectorError> {
        self.stack.ingest.stop()?;
        self.likesctl(&["drain", "--timeout", "60s"])?;
        self.likesctl(&["pause", "--yes"])?;
        let paused = wait_until(REPORT_LIMIT, || self.are_partitions_paused());
        if paused { Ok(()) } else { Err(InjectorError::Unpaused) }
    }

    /// Compares the entries that Redis has lost with the ones that consumers have reported.
    fn check_reports(&self) -> Result<(), InjectorError> {
        let lost = self.lost.payloads.len() as u64;
        let reported = self.reported_losses()?;
        if reported == lost {
            return Ok(());
        }
        let details: Vec<String> = self.incidents()?.into_iter().map(|incident| incident.detail).collect();
        Err(InjectorError::Misreported { lost, reported, incidents: details.join("; ") })
    }

    /// Number of entries that consumers have reported as lost since the start of the run.
    pub(crate) fn reported_losses(&self) -> Result<u64, InjectorError> {
        Ok(self.incidents()?.iter().filter_map(|incident| incident.entries_lost).sum())
    }

    /// Incidents since the start of the run, without failovers of Postgres.
    fn incidents(&self) -> Result<Vec<Incident>, InjectorError> {
        let arguments = ["incidents", "list", "--all", "--limit", "1000", "-o", "json"];
        let output = program::command("likesctl", &self.urls())?.args(arguments).output();
        let output = output.map_err(|source| StackError::Spawn { program: "likesctl".to_owned(), source })?;
        // The exit code tells whether incidents are open.
        let listed = serde_json::from_slice(&output.stdout);
        let mut incidents: Vec<Incident> = listed.map_err(InjectorError::Incidents)?;
        incidents.retain(|incident| incident.kind != "postgres_failover");
        Ok(incidents)
    }

    /// Returns whether consumers own all partitions and read none.
    fn are_partitions_paused(&self) -> bool {
        let sum = |name: &str| {
            let of_consumer =
                |consumer: &program::Program| consumer.metrics().map(|metrics| metrics.sum(name));
            self.stack.consumers.iter().map(of_consumer).sum::<Result<f64, _>>()
        };
        let owned = sum("likestream_partitions_owned").unwrap_or_default();
        let all = Keys::default().partitions().count();
        owned >= all as f64 && sum("likestream_partitions_paused").is_ok_and(|paused| paused >= owned)
    }

    fn likesctl(&self, arguments: &[&str]) -> Result<(), StackError> {
        program::run("likesctl", arguments, &self.urls())
    }

    /// Servers for `likesctl`, without the users of the programs.
    fn urls(&self) -> [(&'static str, String); 2] {
        [("REDIS_URL", self.stack.redis.url()), ("DATABASE_URL", self.stack.postgres.url("postgres"))]
    }
}

impl Lost {
    /// Adds everything that Redis is about to lose.
    async fn read(&mut self, redis: &Connections) -> Result<(), fred::error::Error> {
        let keys = Keys::default();
        for stream in keys.streams() {
            let delivered = group::last_delivered(redis, &stream).await?;
            let range = [stream.as_str(), &format!("({delivered}"), "+"].map(Value::from).into();
            let entries: Vec<(String, HashMap<String, Bytes>)> =
                redis.run(&stream, Retry::Idempotent, "XRANGE", range).await?;
            let payloads = entries.into_iter().filter_map(|(_, mut fields)| fields.remove(codec::FIELD));
            self.payloads.extend(payloads);
        }
        self.dead_letters.extend(check::dead_letters(redis).await?);
        Ok(())
    }
}
