//! Group membership: sends heartbeats and derives the partitions of this consumer from the members.

use std::{sync::Arc, time::Duration};

use fred::prelude::Error;
use shared::{
    error_chain::one_line,
    runtime::admin::Check,
    wire::partition::{Partition, PartitionCount},
};
use thiserror::Error as ThisError;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    group::{
        assignment::{Assignment, assign},
        liveness::Liveness,
        ownership::{Contact, Ownership},
    },
    in_flight::InFlight,
    metrics::Metrics,
    stream::{
        HEARTBEAT_INTERVAL, Heartbeat, Heartbeats, LIVENESS_TIMEOUT, Member, MemberName, MemberState, Paused,
    },
};

/// Time without a successful write after which a consumer reports itself as stuck and gives its partitions to other members.
const STUCK_AFTER: Duration = Duration::from_secs(5);

/// Time to wait for a name that is in use. Longer than the liveness timeout: the heartbeat of a dead process expires.
const NAME_TIMEOUT: Duration = Duration::from_secs(6);

/// Error: another process sends heartbeats under this consumer's name.
#[derive(Debug, ThisError)]
#[error(
    "CONSUMER_NAME: '{name}' is in use by another consumer of the group {group}; expected a name that is unique in the group"
)]
pub(crate) struct NameTaken {
    name: String,
    group: String,
}

/// Consumer that has not joined the group yet, with the components that its membership needs.
pub(crate) struct Candidate<H> {
    pub(crate) heartbeats: H,
    /// Static assignment in the syntax of `CONSUMER_PARTITIONS`; empty for an automatic assignment.
    pub(crate) static_assignment: String,
    pub(crate) partitions: watch::Receiver<PartitionCount>,
    pub(crate) paused: watch::Receiver<Paused>,
    pub(crate) in_flight: Arc<InFlight>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) check: Check,
}

/// Membership of this consumer.
pub(crate) struct Membership<H> {
    context: Candidate<H>,
    heartbeat: Heartbeat,
    members: Vec<Member>,
    liveness: Liveness,
    /// `None` before the first heartbeat and after a failed one.
    contact: Option<Contact>,
    ownership: watch::Sender<Ownership>,
}

impl<H: Heartbeats> Candidate<H> {
    /// Joins the group. If the name belongs to a process that did not resign, waits until its heartbeat expires. Returns `None`
    /// if the shutdown begins first.
    ///
    /// # Errors
    /// Fails if another process keeps using the name. An unavailable Redis is not an error: until the first successful
    /// heartbeat this consumer knows no other member.
    pub(crate) async fn join(self, shutdown: &CancellationToken) -> Result<Option<Membership<H>>, NameTaken> {
        let mut membership = Membership::new(self);
        let deadline = Instant::now() + NAME_TIMEOUT;
        while !shutdown.is_cancelled() {
            // Not cancelled at shutdown: Redis may have recorded it, and others would leave a share to this consumer.
            match membership.send_heartbeat().await {
                Ok(()) if shutdown.is_cancelled() => membership.resign().await,
                Ok(()) => return Ok(Some(membership)),
                Err(in_use) if Instant::now() > deadline => return Err(in_use),
                Err(_) => {
                    shutdown.run_until_cancelled(sleep(HEARTBEAT_INTERVAL)).await;
                }
            }
        }
        Ok(None)
    }
}

impl<H: Heartbeats> Membership<H> {
    fn new(context: Candidate<H>) -> Self {
        let state = MemberState::Active;
        let static_assignment = context.static_assignment.clone();
        let this_member = Member {
            name: context.heartbeats.consumer().into(),
            process: context.heartbeats.process().to_owned(),
            state,
            static_assignment: static_assignment.clone(),
            heartbeat_at: 0,
            is_alive: true,
        };
        let ownership = watch::Sender::new(Ownership {
            assignment: Assignment::default(),
            members: Arc::default(),
            processes: Arc::default(),
            contact: None,
            partitions: *context.partitions.borrow(),
            paused: context.paused.borrow().clone(),
        });
        Self {
            context,
            heartbeat: Heartbeat { state, static_assignment, silent: Vec::new() },
            liveness: Liveness::default(),
            members: vec![this_member],
            contact: None,
            ownership,
        }
    }

    /// Subscribes to the ownership of this consumer.
    pub(crate) fn ownership(&self) -> watch::Receiver<Ownership> {
        self.ownership.subscribe()
    }

    /// Sends heartbeats until `drained`, then resigns. `leaving` is announced immediately: from then on the partitions
    /// belong to other members.
    ///
    /// # Errors
    /// Fails if another process took over the name while heartbeats of this process failed.
    pub(crate) async fn run(
        mut self,
        leaving: CancellationToken,
        drained: CancellationToken,
    ) -> Result<(), NameTaken> {
        let mut ticks = interval(HEARTBEAT_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut partitions = self.context.partitions.clone();
        let mut paused = self.context.paused.clone();
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                Ok(()) = partitions.changed() => {}
                Ok(()) = paused.changed() => {}
                () = leaving.cancelled(), if !self.is_leaving() => self.heartbeat.state = MemberState::Leaving,
                () = drained.cancelled() => break,
            }
            if !self.is_leaving() {
                let is_stuck = self.context.in_flight.stuck_for() >= STUCK_AFTER;
                self.heartbeat.state = if is_stuck { MemberState::Stuck } else { MemberState::Active };
            }
            self.send_heartbeat().await?;
        }
        self.resign().await;
        Ok(())
    }

    async fn resign(&self) {
        if let Err(error) = self.context.heartbeats.resign().await {
            tracing::warn!(
                error = one_line(&error),
                "could not resign from the group, membership expires after the liveness timeout"
            );
        }
    }

    fn is_leaving(&self) -> bool {
        self.heartbeat.state == MemberState::Leaving
    }

    async fn send_heartbeat(&mut self) -> Result<(), NameTaken> {
        let heartbeats = &self.context.heartbeats;
        let sent_at = Instant::now();
        match heartbeats.heartbeat(&self.heartbeat).await {
            Ok(Some(members)) => {
                self.update_members(members, sent_at);
                if self.context.check.pass() {
                    tracing::info!(members = self.members.len(), "heartbeat succeeded");
                }
            }
            Ok(None) => {
                let name = heartbeats.consumer().to_owned();
                let group = heartbeats.group().to_owned();
                return Err(NameTaken { name, group });
            }
            // The assignment stays unchanged: other members do not learn of changes either.
            Err(error) => self.heartbeat_failed(&error),
        }
        self.publish();
        Ok(())
    }

    fn heartbeat_failed(&mut self, error: &Error) {
        self.contact = None;
        let error = one_line(error);
        if self.context.check.fail(format!("heartbeat failed: {error}")) {
            tracing::warn!(error, "heartbeat failed, the partition assignment is unchanged");
        }
    }

    /// Updates the members after a successful heartbeat. During a Redis outage no member could send heartbeats, so no
    /// member counts as dead until Redis has been available for the liveness timeout: time for every live member to send a
    /// heartbeat.
    fn update_members(&mut self, mut members: Vec<Member>, sent_at: Instant) {
        let since = self.contact.map_or_else(Instant::now, |contact| contact.since);
        self.contact = Some(Contact { since, last: sent_at });
        self.liveness.observe(&mut members);
        self.heartbeat.silent = self.liveness.silent();
        let is_early = since.elapsed() < LIVENESS_TIMEOUT;
        let was_alive = |name: &MemberName| self.members.iter().any(|member| member.name == *name);
        members.retain(|member| member.is_alive || (is_early && was_alive(&member.name)));
        self.members = members;
    }

    fn publish(&self) {
        let partitions = *self.context.partitions.borrow();
        let name = self.context.heartbeats.consumer();
        let assignment = assign(partitions, &self.members, name);
        let members = Arc::new(self.members.iter().map(|member| member.name.clone()).collect());
        let processes = Arc::new(self.members.iter().map(|member| member.process.clone()).collect());
        let paused = self.context.paused.borrow().clone();
        let new = Ownership { assignment, members, processes, contact: self.contact, partitions, paused };
        let changed = self.ownership.send_if_modified(|old| {
            // Changes with each heartbeat, and is no reason to wake anybody.
            old.contact = new.contact;
            let changed = *old != new;
            if changed {
                *old = new.clone();
            }
            changed
        });
        if changed {
            self.log_ownership(&new);
        }
    }

    fn log_ownership(&self, ownership: &Ownership) {
        let Assignment { own, orphans } = &ownership.assignment;
        let owned = own.len();
        let members = self.members.len();
        let partitions = ownership.partitions.get();
        let read: Vec<Partition> = ownership.to_read().collect();
        self.context.metrics.owned(owned, orphans.len(), owned - read.len());
        if self.is_leaving() {
            tracing::info!(members, "leaving the consumer group");
        } else if own.is_empty() && self.heartbeat.state == MemberState::Stuck {
            tracing::warn!(members, "stuck: no rows could be stored, partitions released to other members");
        } else if own.is_empty() {
            tracing::info!(members, partitions, "standby: this consumer owns no partitions");
        } else {
            tracing::info!(owned, partitions, members, own = list(own), "partitions assigned");
        }
        if read.len() < owned {
            let paused: Vec<Partition> = own.iter().copied().filter(|own| !read.contains(own)).collect();
            tracing::warn!(paused = list(&paused), "partitions paused, resume with likesctl resume");
        }
        if !orphans.is_empty() {
            let list = list(orphans);
            tracing::error!(
                orphans = list,
                "orphaned partitions: no member reads them, set CONSUMER_PARTITIONS=auto or assign them"
            );
        }
    }
}

fn list(partitions: &[Partition]) -> String {
    partitions.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests;
