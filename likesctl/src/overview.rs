//! A snapshot of the whole pipeline, for `status`, `consumers`, `top` and `doctor`.

use std::collections::BTreeMap;

use consumer::{
    entry::EntryId,
    group::assignment::assign,
    stream::{Member, MemberInfo, MemberState, PartitionInfo},
};
use fred::prelude::Error;
use futures_util::future::{try_join_all, try_join4};
use serde::Serialize;
use shared::{redis::Impaired, wire::partition::Partition};

use crate::context::Context;

/// State of a consumer group.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Overview {
    pub(crate) stream: String,
    pub(crate) group: String,
    pub(crate) redis: String,
    /// Redis servers that are not connected or refuse commands, each with the reason.
    pub(crate) redis_problems: Vec<String>,
    /// Whether all partitions are paused, including partitions that are added later.
    pub(crate) all_paused: bool,
    /// Incidents that are not acknowledged, as consumers counted them last.
    pub(crate) open_incidents: Option<u64>,
    pub(crate) partitions: Vec<PartitionOverview>,
    pub(crate) consumers: Vec<ConsumerOverview>,
    pub(crate) total: Total,
}

/// State of one partition.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PartitionOverview {
    pub(crate) partition: u16,
    /// Whether the group exists on this partition.
    pub(crate) has_group: bool,
    pub(crate) paused: bool,
    pub(crate) owners: Vec<String>,
    pub(crate) length: u64,
    /// Number of entries appended since the stream was created.
    pub(crate) entries_added: u64,
    /// Undelivered entries, if known.
    pub(crate) lag: Option<u64>,
    pub(crate) pending: u64,
    /// Undelivered and pending entries, if both are known.
    pub(crate) backlog: Option<u64>,
    pub(crate) oldest_age_ms: Option<u64>,
    pub(crate) oldest_pending: Option<String>,
    pub(crate) oldest_pending_idle_ms: Option<u64>,
    pub(crate) last_commit_ms_ago: Option<u64>,
    pub(crate) last_delivered_id: Option<String>,
    pub(crate) last_generated_id: String,
    /// Time by which the last id is ahead of Redis's clock.
    #[serde(skip)]
    pub(crate) ids_ahead_ms: u64,
    /// Whether no id is left, so that Redis rejects further entries.
    #[serde(skip)]
    pub(crate) ids_exhausted: bool,
    pub(crate) dead: u64,
}

/// State of one consumer.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ConsumerOverview {
    pub(crate) name: String,
    /// `active`, `stuck`, `leaving`, `dead`, or `gone`: known to the group, without a recorded heartbeat.
    pub(crate) state: &'static str,
    pub(crate) partitions: Vec<u16>,
    pub(crate) static_assignment: Option<String>,
    pub(crate) pending: u64,
    pub(crate) heartbeat_ms_ago: Option<u64>,
    /// Time since the last command of this consumer on any partition.
    pub(crate) idle_ms: Option<u64>,
}

/// Totals over all partitions: sums, and the largest ages.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Total {
    /// Unknown if the lag of any partition is unknown.
    pub(crate) lag: Option<u64>,
    pub(crate) pending: u64,
    pub(crate) backlog: Option<u64>,
    pub(crate) oldest_age_ms: Option<u64>,
    pub(crate) oldest_pending_idle_ms: Option<u64>,
    pub(crate) last_commit_ms_ago: Option<u64>,
    pub(crate) dead: u64,
    pub(crate) paused: u64,
    /// Number of partitions that are not paused and have no owner.
    pub(crate) unowned: u64,
}

impl Context {
    /// Collects the state of the given partitions and of all consumers.
    pub(crate) async fn overview(&self, partitions: &[Partition]) -> Result<Overview, Error> {
        let streams = &self.streams;
        let inspected = try_join_all(partitions.iter().map(|partition| streams.inspect(*partition))).await?;
        let in_group = try_join_all(partitions.iter().map(|partition| streams.consumers(*partition))).await?;
        // Boxed, because together these futures are too large for the stack.
        let (infos, commits, paused, binding) = try_join4(
            Box::pin(streams.members()),
            Box::pin(streams.commit_times()),
            Box::pin(streams.paused()),
            Box::pin(streams.binding()),
        )
        .await?;
        let (_, impaired) = self.redis.check().await;
        let mut consumers = members(&infos, self);
        for consumer in in_group.into_iter().flatten() {
            let known = consumers
                .entry(consumer.name.clone())
                .or_insert_with(|| ConsumerOverview::gone(consumer.name));
            known.pending += consumer.pending;
            known.idle_ms = Some(known.idle_ms.map_or(consumer.idle_ms, |idle| idle.min(consumer.idle_ms)));
        }
        let rows = partitions.iter().zip(inspected).map(|(partition, info)| {
            let owners = consumers.values().filter(|c| c.partitions.contains(&partition.number()));
            let owners = owners.map(|consumer| consumer.name.clone()).collect();
            let last_commit = commits.get(&partition.number()).map(|at| info.now_ms.saturating_sub(*at));
            PartitionOverview::new(*partition, &info, owners, paused.contains(*partition), last_commit)
        });
        let rows: Vec<PartitionOverview> = rows.collect();
        Ok(Overview {
            stream: self.keys.to_string(),
            group: streams.group().to_owned(),
            redis: self.server.clone(),
            redis_problems: impaired.iter().map(Impaired::to_string).collect(),
            all_paused: paused.all,
            open_incidents: binding.and_then(|binding| binding.open_incidents),
            total: Total::of(&rows),
            partitions: rows,
            consumers: consumers.into_values().collect(),
        })
    }
}

fn members(infos: &[MemberInfo], context: &Context) -> BTreeMap<String, ConsumerOverview> {
    let alive: Vec<Member> =
        infos.iter().filter(|info| info.member.is_alive).map(|info| info.member.clone()).collect();
    let overview = |MemberInfo { member, heartbeat_ms_ago, .. }: &MemberInfo| {
        let (partitions, state) = if member.is_alive {
            let own = assign(context.partitions, &alive, &member.name).own;
            let state = match member.state {
                MemberState::Active => "active",
                MemberState::Stuck => "stuck",
                MemberState::Leaving => "leaving",
            };
            (own.iter().map(|partition| partition.number()).collect(), state)
        } else {
            (Vec::new(), "dead")
        };
        ConsumerOverview {
            name: member.name.to_string(),
            state,
            partitions,
            static_assignment: Some(member.static_assignment.clone()).filter(|fixed| !fixed.is_empty()),
            pending: 0,
            heartbeat_ms_ago: Some(*heartbeat_ms_ago),
            idle_ms: None,
        }
    };
    infos.iter().map(|info| (info.member.name.to_string(), overview(info))).collect()
}

impl ConsumerOverview {
    fn gone(name: String) -> Self {
        Self {
            name,
            state: "gone",
            partitions: Vec::new(),
            static_assignment: None,
            pending: 0,
            heartbeat_ms_ago: None,
            idle_ms: None,
        }
    }

    /// Returns whether the last heartbeat is within the liveness timeout.
    pub(crate) fn is_alive(&self) -> bool {
        matches!(self.state, "active" | "stuck" | "leaving")
    }
}

impl PartitionOverview {
    fn new(
        partition: Partition,
        info: &PartitionInfo,
        owners: Vec<String>,
        paused: bool,
        last_commit_ms_ago: Option<u64>,
    ) -> Self {
        let group = info.group.as_ref();
        // Without the group, the whole stream is undelivered: consumers create the group at the first entry.
        let lag = group.map_or(Some(info.length), |group| group.lag);
        let pending = group.map_or(0, |group| group.pending);
        Self {
            partition: partition.number(),
            has_group: group.is_some(),
            paused,
            owners,
            length: info.length,
            entries_added: info.entries_added,
            lag,
            pending,
            backlog: lag.map(|lag| lag + pending),
            oldest_age_ms: info.oldest().map(|id| info.age_ms(id)),
            oldest_pending: group.and_then(|group| group.oldest_pending).map(|id| id.to_string()),
            oldest_pending_idle_ms: group.and_then(|group| group.oldest_pending_idle_ms),
            last_commit_ms_ago,
            last_delivered_id: group.map(|group| group.last_delivered.to_string()),
            last_generated_id: info.last_generated.to_string(),
            ids_ahead_ms: info.last_generated.ms.saturating_sub(info.now_ms),
            ids_exhausted: info.last_generated == EntryId::MAX,
            dead: info.dead,
        }
    }

    /// Formats the owners for a table.
    pub(crate) fn owner(&self) -> String {
        match (&self.owners[..], self.paused) {
            ([], true) => "paused".to_owned(),
            ([], false) => "none".to_owned(),
            (owners, true) => format!("{} (paused)", owners.join(",")),
            (owners, false) => owners.join(","),
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
