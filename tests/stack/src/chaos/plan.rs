//! Sequence of faults, determined by a seed.

use std::{fmt, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};

use crate::stack_redis::Deployment;

/// Time between two faults in milliseconds.
const PAUSE_MS: std::ops::RangeInclusive<u64> = 500..=2_500;

/// Duration of an outage in milliseconds.
const OUTAGE_MS: std::ops::RangeInclusive<u64> = 300..=3_000;

/// Number of malformed entries per fault.
const MALFORMED: std::ops::RangeInclusive<u32> = 1..=20;

/// Kind of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum FaultKind {
    /// SIGKILL, then a replacement.
    KillConsumer,
    KillIngest,
    /// Graceful shutdown, which must succeed, and a replacement, one process after another.
    RollOutConsumers,
    RollOutIngest,
    RestartPostgres,
    /// SIGKILL of all processes at once.
    KillPostgres,
    FreezePostgres,
    /// The primary dies, and its synchronous standby takes over.
    FailOverPostgres,
    RestartRedis,
    KillRedis,
    FreezeRedis,
    CutRedisConnections,
    CutPostgresConnections,
    /// A consumer is killed while the server is frozen.
    KillConsumerAtFrozenPostgres,
    KillConsumerAtFrozenRedis,
    /// Redis refuses writes.
    FillRedis,
    /// Redis loses all its data, which consumers must report.
    FlushRedis,
    /// A consumer with another database must not join the group.
    OtherDatabase,
    /// Entries that must become dead letters.
    Malformed,
    /// A nullable column that likestream does not know.
    AddColumn,
    /// The primary key is dropped and created again in one transaction.
    RebuildKey,
    /// The primary key is missing for a while.
    DropKey,
    /// A column has another type for a while.
    ChangeType,
    /// Consumers may not insert.
    RevokeRights,
    /// Postgres requires another password than the one that consumers can read.
    RotatePostgresPassword,
    /// Redis requires other passwords than the ones that ingest and the consumers can read.
    RotateRedisPasswords,
    /// A trigger that takes a millisecond per row.
    SlowRows,
    /// A transaction of another application holds a key that is sent soon, and ends without it.
    LockKey,
    /// Large entries have to pass a slow link between Redis and the consumers.
    SlowLink,
    /// Migration of the slot of a partition to another primary.
    MoveSlot,
}

impl FaultKind {
    /// Kinds for every deployment of Redis.
    pub(crate) const COMMON: [Self; 28] = [
        Self::KillConsumer,
        Self::KillIngest,
        Self::RollOutConsumers,
        Self::RollOutIngest,
        Self::RestartPostgres,
        Self::KillPostgres,
        Self::FreezePostgres,
        Self::FailOverPostgres,
        Self::RestartRedis,
        Self::KillRedis,
        Self::FreezeRedis,
        Self::CutRedisConnections,
        Self::CutPostgresConnections,
        Self::KillConsumerAtFrozenPostgres,
        Self::KillConsumerAtFrozenRedis,
        Self::FillRedis,
        Self::FlushRedis,
        Self::OtherDatabase,
        Self::Malformed,
        Self::AddColumn,
        Self::RebuildKey,
        Self::DropKey,
        Self::ChangeType,
        Self::RevokeRights,
        Self::RotatePostgresPassword,
        Self::RotateRedisPasswords,
        Self::SlowRows,
        Self::LockKey,
    ];

    /// Kinds for a deployment of Redis.
    pub(crate) fn all(redis: Deployment) -> Vec<Self> {
        let special = match redis {
            // The nodes of a cluster name their own addresses, so no link can be in between.
            Deployment::One => Self::SlowLink,
            Deployment::Cluster => Self::MoveSlot,
        };
        Self::COMMON.into_iter().chain([special]).collect()
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::KillConsumer => "kill -9 of a consumer",
            Self::KillIngest => "kill -9 of ingest",
            Self::RollOutConsumers => "rolling restart of the consumers",
            Self::RollOutIngest => "graceful restart of ingest",
            Self::RestartPostgres => "restart of Postgres",
            Self::KillPostgres => "kill -9 of Postgres",
            Self::FreezePostgres => "frozen Postgres",
            Self::FailOverPostgres => "failover of Postgres",
            Self::RestartRedis => "restart of Redis",
            Self::KillRedis => "kill -9 of Redis",
            Self::FreezeRedis => "frozen Redis",
            Self::CutRedisConnections => "killed connections to Redis",
            Self::CutPostgresConnections => "killed connections to Postgres",
            Self::KillConsumerAtFrozenPostgres => "kill -9 of a consumer while Postgres is frozen",
            Self::KillConsumerAtFrozenRedis => "kill -9 of a consumer while Redis is frozen",
            Self::FillRedis => "Redis out of memory",
            Self::FlushRedis => "flushed Redis",
            Self::OtherDatabase => "consumer of another database",
            Self::Malformed => "malformed entries",
            Self::AddColumn => "another column",
            Self::RebuildKey => "rebuilt key",
            Self::DropKey => "dropped key",
            Self::ChangeType => "another column type",
            Self::RevokeRights => "revoked rights",
            Self::RotatePostgresPassword => "rotated password of Postgres",
            Self::RotateRedisPasswords => "rotated passwords of Redis",
            Self::SlowRows => "slow rows",
            Self::LockKey => "locked key",
            Self::SlowLink => "slow link to Redis",
            Self::MoveSlot => "slot migration",
        };
        f.pad(name)
    }
}

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) kind: FaultKind,
    /// Pause before the fault.
    pub(crate) after: Duration,
    /// Duration of the outage, for kinds that have one.
    pub(crate) outage: Duration,
    /// Number of the affected consumer, partition or column, modulo their count.
    pub(crate) target: usize,
    /// Number of malformed entries.
    pub(crate) malformed: u32,
}

/// Endless sequence of faults. Every kind occurs once before any kind repeats.
pub(crate) struct Plan {
    random: StdRng,
    kinds: Vec<FaultKind>,
    deck: Vec<FaultKind>,
}

impl Plan {
    pub(crate) fn new(seed: u64, kinds: Vec<FaultKind>) -> Self {
        Self { random: StdRng::seed_from_u64(seed), kinds, deck: Vec::new() }
    }
}

impl Iterator for Plan {
    type Item = Fault;

    fn next(&mut self) -> Option<Fault> {
        if self.deck.is_empty() {
            self.deck.clone_from(&self.kinds);
            self.deck.shuffle(&mut self.random);
        }
        let kind = self.deck.pop()?;
        Some(Fault {
            kind,
            after: Duration::from_millis(self.random.random_range(PAUSE_MS)),
            outage: Duration::from_millis(self.random.random_range(OUTAGE_MS)),
            target: self.random.random_range(0..usize::from(u16::MAX)),
            malformed: self.random.random_range(MALFORMED),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_are_determined_by_their_seed() {
        let plan = |seed| Plan::new(seed, FaultKind::all(Deployment::One)).take(100).collect::<Vec<_>>();
        assert_eq!(plan(7), plan(7));
        assert_ne!(plan(7), plan(8));
    }

    #[test]
    fn every_fault_kind_occurs_before_any_repeats() {
        let all = FaultKind::all(Deployment::Cluster);
        let plan = Plan::new(1, all.clone());
        let mut kinds: Vec<FaultKind> = plan.take(all.len()).map(|fault| fault.kind).collect();
        kinds.sort_unstable();
        assert_eq!(kinds, all);
    }
}
