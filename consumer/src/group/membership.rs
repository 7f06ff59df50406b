//! Membership of the group: heartbeats out, and what this consumer is to read back.

use std::{collections::HashSet, sync::Arc, time::Duration};

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
    group::assignment::{Assignment, assign},
    in_flight::InFlight,
    metrics::Metrics,
    stream::{Heartbeat, Member, MemberState, Paused, Streams},
};

/// Between two heartbeats.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(750);

/// Unheard of for this long, a member counts as dead: its partitions go to others, and its pending entries with them.
pub(crate) const LIVENESS_TIMEOUT: Duration = Duration::from_secs(4);

/// A consumer that could not store anything for this long leaves its partitions to those that can.
const STUCK_AFTER: Duration = Duration::from_secs(5);

/// A name is in use only when somebody beats under it for longer than one that has died would count as alive.
const NAME_PATIENCE: Duration = Duration::from_secs(6);

/// Another process beats under this consumer's name.
#[derive(Debug, ThisError)]
#[error(
    "CONSUMER_NAME: '{name}' is in use by another consumer of the group {group}: allowed is a name that no other has"
)]
pub struct NameTaken {
    name: String,
    group: String,
}

/// What this consumer is to read, and who else is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ownership {
    pub(crate) assignment: Assignment,
    /// The names of all members: their pending entries are theirs.
    pub(crate) members: Arc<HashSet<String>>,
    pub(crate) partitions: PartitionCount,
    /// What somebody wants nobody to read for now.
    pub(crate) paused: Paused,
}

impl Ownership {
    /// The partitions that are this consumer's.
    pub(crate) fn own(&self) -> &[Partition] {
        &self.assignment.own
    }

    /// Those of them that it is to read.
    pub(crate) fn to_read(&self) -> impl Iterator<Item = Partition> {
        self.own().iter().copied().filter(|partition| !self.paused.contains(*partition))
    }
}

/// One consumer's membership.
pub(crate) struct Membership {
    streams: Streams,
    beat: Heartbeat,
    partitions: watch::Receiver<PartitionCount>,
    members: Vec<Member>,
    in_flight: Arc<InFlight>,
    /// Since when Redis has answered every beat.
    in_touch_since: Option<Instant>,
    ownership: watch::Sender<Ownership>,
    paused: watch::Receiver<Paused>,
    metrics: Arc<Metrics>,
    check: Check,
}

impl Membership {
    /// Joins the group. A name that was used a moment ago, by a process that did not resign, is waited for.
    ///
    /// # Errors
    /// When another process goes on to use the name. That Redis fails is none: then this consumer is alone for now.
    pub(crate) async fn join(
        streams: Streams,
        fixed: String,
        partitions: watch::Receiver<PartitionCount>,
        in_flight: Arc<InFlight>,
        paused: watch::Receiver<Paused>,
        metrics: Arc<Metrics>,
        check: Check,
    ) -> Result<Self, NameTaken> {
        let token = format!("{:016x}", rand::random::<u64>());
        let condition = MemberState::Active;
        let beat = Heartbeat { token, condition, fixed, liveness_timeout: LIVENESS_TIMEOUT };
        let myself = Member {
            name: streams.consumer().to_owned(),
            condition,
            fixed: beat.fixed.clone(),
            is_alive: true,
        };
        let ownership = watch::Sender::new(Ownership {
            assignment: Assignment::default(),
            members: Arc::default(),
            partitions: *partitions.borrow(),
            paused: paused.borrow().clone(),
        });
        let members = vec![myself];
        let mut membership = Self {
            streams,
            beat,
            partitions,
            members,
            in_flight,
            in_touch_since: None,
            ownership,
            paused,
            metrics,
            check,
        };
        let give_up_at = Instant::now() + NAME_PATIENCE;
        while let Err(taken) = membership.send_heartbeat().await {
            if Instant::now() > give_up_at {
                return Err(taken);
            }
            sleep(HEARTBEAT_INTERVAL).await;
        }
        Ok(membership)
    }

    /// What this consumer is to read, from now on.
    pub(crate) fn ownership(&self) -> watch::Receiver<Ownership> {
        self.ownership.subscribe()
    }

    /// Beats until `leaving`, which it then says at once so that others take over, and from then on says until `gone`.
    /// In the end it resigns.
    ///
    /// # Errors
    /// When another process has taken the name, while this one was not heard of.
    pub(crate) async fn run(
        mut self,
        leaving: CancellationToken,
        gone: CancellationToken,
    ) -> Result<(), NameTaken> {
        let mut ticks = interval(HEARTBEAT_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut partitions, mut paused) = (self.partitions.clone(), self.paused.clone());
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                Ok(()) = partitions.changed() => {}
                Ok(()) = paused.changed() => {}
                () = leaving.cancelled(), if !self.is_leaving() => self.beat.condition = MemberState::Leaving,
                () = gone.cancelled() => break,
            }
            if !self.is_leaving() {
                let stuck = self.in_flight.paused_for() >= STUCK_AFTER;
                self.beat.condition = if stuck { MemberState::Stuck } else { MemberState::Active };
            }
            self.send_heartbeat().await?;
        }
        if let Err(error) = self.streams.resign(&self.beat.token).await {
            tracing::warn!(%error, "not resigned: others will notice by and by");
        }
        Ok(())
    }

    fn is_leaving(&self) -> bool {
        self.beat.condition == MemberState::Leaving
    }

    async fn send_heartbeat(&mut self) -> Result<(), NameTaken> {
        match self.streams.beat(&self.beat).await {
            Ok(Some(members)) => {
                self.heard(members);
                if self.check.pass() {
                    tracing::info!(members = self.members.len(), "in touch with the group");
                }
            }
            Ok(None) => {
                let (name, group) = (self.streams.consumer().to_owned(), self.streams.group().to_owned());
                return Err(NameTaken { name, group });
            }
            // Who owns what stays as it is: nobody else hears of changes either.
            Err(error) => self.out_of_touch(&error),
        }
        self.publish();
        Ok(())
    }

    fn out_of_touch(&mut self, error: &Error) {
        self.in_touch_since = None;
        if self.check.fail(format!("no heartbeat: {error}")) {
            tracing::warn!(%error, "no heartbeat: partitions stay where they are");
        }
    }

    /// After Redis was away nobody has been heard of for a while. So nobody is dead until Redis has been there for
    /// long enough that the living have been heard of again.
    fn heard(&mut self, mut members: Vec<Member>) {
        let in_touch_since = *self.in_touch_since.get_or_insert_with(Instant::now);
        let is_early = in_touch_since.elapsed() < LIVENESS_TIMEOUT;
        let was_alive = |name: &str| self.members.iter().any(|member| member.name == name);
        members.retain(|member| member.is_alive || (is_early && was_alive(&member.name)));
        self.members = members;
    }

    fn publish(&self) {
        let partitions = *self.partitions.borrow();
        let name = self.streams.consumer();
        let assignment = assign(partitions, &self.members, name);
        let members = Arc::new(self.members.iter().map(|member| member.name.clone()).collect());
        let paused = self.paused.borrow().clone();
        let new = Ownership { assignment, members, partitions, paused };
        let changed = self.ownership.send_if_modified(|old| {
            let changed = *old != new;
            if changed {
                *old = new.clone();
            }
            changed
        });
        if changed {
            self.tell(&new);
        }
    }

    fn tell(&self, ownership: &Ownership) {
        let Assignment { own, orphans } = &ownership.assignment;
        let (owned, members, partitions) = (own.len(), self.members.len(), ownership.partitions.get());
        let read: Vec<Partition> = ownership.to_read().collect();
        self.metrics.owned(owned, orphans.len(), owned - read.len());
        if self.is_leaving() {
            tracing::info!(members, "leaving the group: others read from now on");
        } else if own.is_empty() && self.beat.condition == MemberState::Stuck {
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
