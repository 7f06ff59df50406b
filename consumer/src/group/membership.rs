//! Membership of the group: heartbeats out, the partitions of this consumer back.

use std::{sync::Arc, time::Duration};

use fred::prelude::Error;
use shared::{
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
        ownership::Ownership,
    },
    in_flight::InFlight,
    metrics::Metrics,
    stream::{Heartbeat, Heartbeats, LIVENESS_TIMEOUT, Member, MemberState, Paused},
};

/// Between two heartbeats.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(750);

/// A consumer that could not store anything for this long leaves its partitions to those that can.
const STUCK_AFTER: Duration = Duration::from_secs(5);

/// A name is in use only when another process sends heartbeats under it for longer than a dead one would count as alive.
const NAME_PATIENCE: Duration = Duration::from_secs(6);

/// Another process sends heartbeats under this consumer's name.
#[derive(Debug, ThisError)]
#[error(
    "CONSUMER_NAME: '{name}' is in use by another consumer of the group {group}: allowed is a name that no other has"
)]
pub(crate) struct NameTaken {
    name: String,
    group: String,
}

/// A consumer that is not yet a member, and the parts that its membership works with.
pub(crate) struct Candidate<H> {
    pub(crate) heartbeats: H,
    /// As in `CONSUMER_PARTITIONS`; empty where the consumer has a share like others.
    pub(crate) static_assignment: String,
    pub(crate) partitions: watch::Receiver<PartitionCount>,
    pub(crate) paused: watch::Receiver<Paused>,
    pub(crate) in_flight: Arc<InFlight>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) check: Check,
}

/// One consumer's membership.
pub(crate) struct Membership<H> {
    context: Candidate<H>,
    heartbeat: Heartbeat,
    members: Vec<Member>,
    /// Since when Redis has answered every heartbeat.
    in_contact_since: Option<Instant>,
    ownership: watch::Sender<Ownership>,
}

impl<H: Heartbeats> Candidate<H> {
    /// Joins the group. Waits for a name that was used a moment ago, by a process that did not resign.
    ///
    /// # Errors
    /// When another process goes on to use the name. A failing Redis is no error: this consumer is the only member that
    /// it knows for now.
    pub(crate) async fn join(self) -> Result<Membership<H>, NameTaken> {
        let mut membership = Membership::new(self);
        let deadline = Instant::now() + NAME_PATIENCE;
        while let Err(in_use) = membership.send_heartbeat().await {
            if Instant::now() > deadline {
                return Err(in_use);
            }
            sleep(HEARTBEAT_INTERVAL).await;
        }
        Ok(membership)
    }
}

impl<H: Heartbeats> Membership<H> {
    fn new(context: Candidate<H>) -> Self {
        let state = MemberState::Active;
        let static_assignment = context.static_assignment.clone();
        let itself = Member {
            name: context.heartbeats.consumer().to_owned(),
            state,
            static_assignment: static_assignment.clone(),
            is_alive: true,
        };
        let token = format!("{:016x}", rand::random::<u64>());
        let ownership = watch::Sender::new(Ownership {
            assignment: Assignment::default(),
            members: Arc::default(),
            partitions: *context.partitions.borrow(),
            paused: context.paused.borrow().clone(),
        });
        Self {
            context,
            heartbeat: Heartbeat { token, state, static_assignment, liveness_timeout: LIVENESS_TIMEOUT },
            members: vec![itself],
            in_contact_since: None,
            ownership,
        }
    }

    /// Returns the partitions of this consumer, as they change.
    pub(crate) fn ownership(&self) -> watch::Receiver<Ownership> {
        self.ownership.subscribe()
    }

    /// Sends heartbeats until `drained`. From `leaving` on, which is announced at once, other members have the partitions.
    /// Resigns at the end.
    ///
    /// # Errors
    /// When another process has taken the name, while this one's heartbeats failed.
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
                let is_stuck = self.context.in_flight.paused_for() >= STUCK_AFTER;
                self.heartbeat.state = if is_stuck { MemberState::Stuck } else { MemberState::Active };
            }
            self.send_heartbeat().await?;
        }
        if let Err(error) = self.context.heartbeats.resign(&self.heartbeat.token).await {
            tracing::warn!(%error, "not resigned: others will notice after the liveness timeout");
        }
        Ok(())
    }

    fn is_leaving(&self) -> bool {
        self.heartbeat.state == MemberState::Leaving
    }

    async fn send_heartbeat(&mut self) -> Result<(), NameTaken> {
        let heartbeats = &self.context.heartbeats;
        match heartbeats.heartbeat(&self.heartbeat).await {
            Ok(Some(members)) => {
                self.update_members(members);
                if self.context.check.pass() {
                    tracing::info!(members = self.members.len(), "in touch with the group");
                }
            }
            Ok(None) => {
                let name = heartbeats.consumer().to_owned();
                let group = heartbeats.group().to_owned();
                return Err(NameTaken { name, group });
            }
            // The assignment stays as it is: the other members don't learn of changes either.
            Err(error) => self.lost_contact(&error),
        }
        self.publish();
        Ok(())
    }

    fn lost_contact(&mut self, error: &Error) {
        self.in_contact_since = None;
        if self.context.check.fail(format!("no heartbeat: {error}")) {
            tracing::warn!(%error, "no heartbeat: partitions stay where they are");
        }
    }

    /// While Redis was away no member could send heartbeats. So no member counts as dead until Redis has been there for
    /// long enough that every living one has sent another heartbeat.
    fn update_members(&mut self, mut members: Vec<Member>) {
        let in_contact_since = *self.in_contact_since.get_or_insert_with(Instant::now);
        let is_early = in_contact_since.elapsed() < LIVENESS_TIMEOUT;
        let was_alive = |name: &str| self.members.iter().any(|member| member.name == name);
        members.retain(|member| member.is_alive || (is_early && was_alive(&member.name)));
        self.members = members;
    }

    fn publish(&self) {
        let partitions = *self.context.partitions.borrow();
        let name = self.context.heartbeats.consumer();
        let assignment = assign(partitions, &self.members, name);
        let members = Arc::new(self.members.iter().map(|member| member.name.clone()).collect());
        let paused = self.context.paused.borrow().clone();
        let new = Ownership { assignment, members, partitions, paused };
        let changed = self.ownership.send_if_modified(|old| {
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
            tracing::info!(members, "leaving the group: others read from now on");
        } else if own.is_empty() && self.heartbeat.state == MemberState::Stuck {
            tracing::warn!(members, "stuck: others read what this consumer can't store");
        } else if own.is_empty() {
            tracing::info!(
                members,
                partitions,
                "standby: there are not more partitions than other consumers"
            );
        } else {
            tracing::info!(owned, partitions, members, own = list(own), "partitions assigned");
        }
        if read.len() < owned {
            let paused: Vec<Partition> = own.iter().copied().filter(|own| !read.contains(own)).collect();
            tracing::warn!(paused = list(&paused), "paused: not read until likesctl resume");
        }
        if !orphans.is_empty() {
            let list = list(orphans);
            tracing::error!(
                orphans = list,
                "nobody reads these partitions: start consumers with CONSUMER_PARTITIONS=auto, or fixed to them"
            );
        }
    }
}

fn list(partitions: &[Partition]) -> String {
    partitions.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests;
