//! How everything stands, from one look: what `status`, `consumers`, `top` and the checks are made of.

use std::collections::BTreeMap;

use consumer::{
    group::assignment::assign,
    stream::{Member, MemberInfo, MemberState, PartitionInfo},
};
use fred::prelude::Error;
use futures_util::future::{try_join_all, try_join3};
use serde::Serialize;
use shared::wire::partition::Partition;

use crate::{context::Context, exit::CliError};

/// How a group stands.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Overview {
    pub(crate) stream: String,
    pub(crate) group: String,
    pub(crate) redis: String,
    /// All partitions are paused, those to come as well.
    pub(crate) all_paused: bool,
    pub(crate) partitions: Vec<PartitionOverview>,
    pub(crate) consumers: Vec<ConsumerOverview>,
    pub(crate) total: Total,
}

/// How one partition stands.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PartitionOverview {
    pub(crate) partition: u16,
    /// Whether the group is there.
    pub(crate) has_group: bool,
    pub(crate) paused: bool,
    pub(crate) owners: Vec<String>,
    pub(crate) length: u64,
    /// Entries that there ever were.
    pub(crate) entries_added: u64,
    /// Undelivered entries, where that is known.
    pub(crate) lag: Option<u64>,
    pub(crate) pending: u64,
    /// Undelivered and pending entries, where both are known.
    pub(crate) backlog: Option<u64>,
    pub(crate) oldest_age_ms: Option<u64>,
    pub(crate) oldest_pending: Option<String>,
    pub(crate) oldest_pending_idle_ms: Option<u64>,
    pub(crate) last_commit_ms_ago: Option<u64>,
    pub(crate) last_delivered_id: Option<String>,
    pub(crate) last_generated_id: String,
    pub(crate) dead: u64,
}

/// How one consumer stands.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ConsumerOverview {
    pub(crate) name: String,
    /// `able`, `stuck`, `leaving`, `dead`, or `gone`: it has no heartbeat on record, but entries or a name in the group.
    pub(crate) state: &'static str,
    pub(crate) partitions: Vec<u16>,
    /// What it is fixed to, if it is.
    pub(crate) fixed: Option<String>,
    pub(crate) pending: u64,
    /// Since its last heartbeat.
    pub(crate) beat_ms_ago: Option<u64>,
    /// Since Redis last heard of it in any partition.
    pub(crate) idle_ms: Option<u64>,
}

/// Over all partitions.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Total {
    /// Nothing where it isn't known everywhere.
    pub(crate) lag: Option<u64>,
    pub(crate) pending: u64,
    pub(crate) backlog: Option<u64>,
    pub(crate) oldest_age_ms: Option<u64>,
    pub(crate) oldest_pending_idle_ms: Option<u64>,
    pub(crate) last_commit_ms_ago: Option<u64>,
    pub(crate) dead: u64,
    pub(crate) paused: u64,
    /// Partitions that nobody reads, and that are not paused.
    pub(crate) unowned: u64,
}

impl Context {
    /// Now, by Redis's clock.
    pub(crate) async fn now_ms(&self) -> Result<u64, Error> {
        let first = self.partitions.of_user(1);
        Ok(self.streams.look(first).await?.now_ms)
    }

    /// Whether a consumer is a member, or in the group in any partition.
    pub(crate) async fn knows_consumer(&self, name: &str) -> Result<bool, Error> {
        if self.streams.members().await?.iter().any(|seen| seen.member.name == name) {
            return Ok(true);
        }
        let in_group = try_join_all(self.partitions.partitions().map(|p| self.streams.consumers(p))).await?;
        Ok(in_group.iter().flatten().any(|consumer| consumer.name == name))
    }

    /// A name that nobody has is a mistake.
    ///
    /// # Errors
    /// When the group doesn't know it, or Redis fails.
    pub(crate) async fn check_consumer(&self, name: &str) -> Result<(), CliError> {
        if self.knows_consumer(name).await? { Ok(()) } else { Err(self.unknown_consumer(name)) }
    }

    /// What to say of such a name.
    pub(crate) fn unknown_consumer(&self, name: &str) -> CliError {
        CliError::failed(format!("the group {} knows no consumer '{name}'", self.streams.group()))
    }

    /// How these partitions stand, and the consumers.
    pub(crate) async fn overview(&self, partitions: &[Partition]) -> Result<Overview, Error> {
        let streams = &self.streams;
        let looks = try_join_all(partitions.iter().map(|partition| streams.look(*partition))).await?;
        let in_group = try_join_all(partitions.iter().map(|partition| streams.consumers(*partition))).await?;
        // Each of them is large, and together too large for a stack.
        let (seen, commits, paused) = try_join3(
            Box::pin(streams.members()),
            Box::pin(streams.commit_times()),
            Box::pin(streams.paused()),
        )
        .await?;
        let mut consumers = members(&seen, self);
        for consumer in in_group.into_iter().flatten() {
            let known = consumers
                .entry(consumer.name.clone())
                .or_insert_with(|| ConsumerOverview::gone(consumer.name));
            known.pending += consumer.pending;
            known.idle_ms = Some(known.idle_ms.map_or(consumer.idle_ms, |idle| idle.min(consumer.idle_ms)));
        }
        let rows = partitions.iter().zip(looks).map(|(partition, look)| {
            let owners = consumers.values().filter(|c| c.partitions.contains(&partition.number()));
            let owners = owners.map(|consumer| consumer.name.clone()).collect();
            let last_commit = commits.get(&partition.number()).map(|at| look.now_ms.saturating_sub(*at));
            PartitionOverview::new(*partition, &look, owners, paused.contains(*partition), last_commit)
        });
        let rows: Vec<PartitionOverview> = rows.collect();
        Ok(Overview {
            stream: self.keys.to_string(),
            group: streams.group().to_owned(),
            redis: self.server.clone(),
            all_paused: paused.all,
            total: Total::of(&rows),
            partitions: rows,
            consumers: consumers.into_values().collect(),
        })
    }
}

fn members(seen: &[MemberInfo], context: &Context) -> BTreeMap<String, ConsumerOverview> {
    let alive: Vec<Member> =
        seen.iter().filter(|seen| seen.member.is_alive).map(|seen| seen.member.clone()).collect();
    let overview = |MemberInfo { member, beat_ms_ago }: &MemberInfo| {
        let (partitions, state) = if member.is_alive {
            let own = assign(context.partitions, &alive, &member.name).own;
            let state = match member.condition {
                MemberState::Active => "able",
                MemberState::Stuck => "stuck",
                MemberState::Leaving => "leaving",
            };
            (own.iter().map(|partition| partition.number()).collect(), state)
        } else {
            (Vec::new(), "dead")
        };
        ConsumerOverview {
            name: member.name.clone(),
            state,
            partitions,
            fixed: Some(member.fixed.clone()).filter(|fixed| !fixed.is_empty()),
            pending: 0,
            beat_ms_ago: Some(*beat_ms_ago),
            idle_ms: None,
        }
    };
    seen.iter().map(|seen| (seen.member.name.clone(), overview(seen))).collect()
}

impl ConsumerOverview {
    fn gone(name: String) -> Self {
        let partitions = Vec::new();
        Self { name, state: "gone", partitions, fixed: None, pending: 0, beat_ms_ago: None, idle_ms: None }
    }

    /// Whether it beats.
    pub(crate) fn is_alive(&self) -> bool {
        matches!(self.state, "able" | "stuck" | "leaving")
    }
}

impl PartitionOverview {
    fn new(
        partition: Partition,
        look: &PartitionInfo,
        owners: Vec<String>,
        paused: bool,
        last_commit_ms_ago: Option<u64>,
    ) -> Self {
        let group = look.group.clone();
        let known = group.as_ref();
        // Without the group all of the stream is still to be delivered: a group is made from the first entry on.
        let lag = known.map_or(Some(look.length), |group| group.lag);
        let pending = known.map_or(0, |group| group.pending);
        Self {
            partition: partition.number(),
            has_group: group.is_some(),
            paused,
            owners,
            length: look.length,
            entries_added: look.entries_added,
            lag,
            pending,
            backlog: lag.map(|lag| lag + pending),
            oldest_age_ms: look.oldest().map(|id| look.age_ms(id)),
            oldest_pending: known.and_then(|group| group.oldest_pending).map(|id| id.to_string()),
            oldest_pending_idle_ms: known.and_then(|group| group.oldest_pending_idle_ms),
            last_commit_ms_ago,
            last_delivered_id: known.map(|group| group.last_delivered.to_string()),
            last_generated_id: look.last_generated.to_string(),
            dead: look.dead,
        }
    }
}

impl Total {
    fn of(rows: &[PartitionOverview]) -> Self {
        let largest = |of: fn(&PartitionOverview) -> Option<u64>| rows.iter().filter_map(of).max();
        let sum = |of: fn(&PartitionOverview) -> Option<u64>| rows.iter().map(of).sum::<Option<u64>>();
        Self {
            lag: sum(|row| row.lag),
            pending: rows.iter().map(|row| row.pending).sum(),
            backlog: sum(|row| row.backlog),
            oldest_age_ms: largest(|row| row.oldest_age_ms),
            oldest_pending_idle_ms: largest(|row| row.oldest_pending_idle_ms),
            last_commit_ms_ago: rows.iter().filter_map(|row| row.last_commit_ms_ago).min(),
            dead: rows.iter().map(|row| row.dead).sum(),
            paused: rows.iter().filter(|row| row.paused).count() as u64,
            unowned: rows.iter().filter(|row| row.owners.is_empty() && !row.paused).count() as u64,
        }
    }
}
