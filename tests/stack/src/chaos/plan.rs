//! Which faults come when: all of it follows from a seed.

use std::{fmt, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};

use crate::stack_redis::Deployment;

/// Between two faults, in milliseconds.
const PAUSE_MS: std::ops::RangeInclusive<u64> = 500..=2_500;

/// How long something is frozen or away, in milliseconds.
const OUTAGE_MS: std::ops::RangeInclusive<u64> = 300..=3_000;

/// How many malformed entries come at once.
const MALFORMED: std::ops::RangeInclusive<u32> = 1..=20;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// SIGKILL, and a new one in its place.
    KillConsumer,
    KillIngest,
    /// SIGTERM, which has to end well, and a new one in its place; one after the other.
    RollOutConsumers,
    RollOutIngest,
    RestartPostgres,
    /// All of its processes at once.
    KillPostgres,
    FreezePostgres,
    RestartRedis,
    KillRedis,
    FreezeRedis,
    CutRedisConnections,
    CutPostgresConnections,
    /// A consumer is killed while the server is frozen.
    KillConsumerAtFrozenPostgres,
    KillConsumerAtFrozenRedis,
    /// Redis takes no more writes.
    FillRedis,
    /// Entries that can't be stored, or not all of them.
    Malformed,
    /// A partition's slot of a cluster goes to another master.
    MoveSlot,
}

impl Kind {
    /// What can happen with one Redis.
    pub(crate) const COMMON: [Self; 16] = [
        Self::KillConsumer,
        Self::KillIngest,
        Self::RollOutConsumers,
        Self::RollOutIngest,
        Self::RestartPostgres,
        Self::KillPostgres,
        Self::FreezePostgres,
        Self::RestartRedis,
        Self::KillRedis,
        Self::FreezeRedis,
        Self::CutRedisConnections,
        Self::CutPostgresConnections,
        Self::KillConsumerAtFrozenPostgres,
        Self::KillConsumerAtFrozenRedis,
        Self::FillRedis,
        Self::Malformed,
    ];

    /// What can happen with a Redis that is run so.
    pub(crate) fn all(redis: Deployment) -> Vec<Self> {
        let of_clusters = [Self::MoveSlot].into_iter().filter(|_| redis == Deployment::Cluster);
        Self::COMMON.into_iter().chain(of_clusters).collect()
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self {
            Self::KillConsumer => "kill -9 of a consumer",
            Self::KillIngest => "kill -9 of ingest",
            Self::RollOutConsumers => "roll-out of the consumers",
            Self::RollOutIngest => "roll-out of ingest",
            Self::RestartPostgres => "restart of Postgres",
            Self::KillPostgres => "kill -9 of Postgres",
            Self::FreezePostgres => "frozen Postgres",
            Self::RestartRedis => "restart of Redis",
            Self::KillRedis => "kill -9 of Redis",
            Self::FreezeRedis => "frozen Redis",
            Self::CutRedisConnections => "cut connections to Redis",
            Self::CutPostgresConnections => "cut connections to Postgres",
            Self::KillConsumerAtFrozenPostgres => "kill -9 of a consumer at a frozen Postgres",
            Self::KillConsumerAtFrozenRedis => "kill -9 of a consumer at a frozen Redis",
            Self::FillRedis => "Redis out of memory",
            Self::Malformed => "malformed entries",
            Self::MoveSlot => "move of a slot",
        };
        f.pad(words)
    }
}

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    /// How long to wait before it.
    pub(crate) after: Duration,
    /// How long it lasts, where that makes sense.
    pub(crate) outage: Duration,
    /// Which consumer or partition, where it is about one; counted over all, to be taken modulo their number.
    pub(crate) which: usize,
    /// How many malformed entries.
    pub(crate) malformed: u32,
}

/// Faults without end. Every kind comes once before any comes twice.
pub(crate) struct Plan {
    random: StdRng,
    kinds: Vec<Kind>,
    deck: Vec<Kind>,
}

impl Plan {
    pub(crate) fn new(seed: u64, kinds: Vec<Kind>) -> Self {
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
            which: self.random.random_range(0..usize::from(u16::MAX)),
            malformed: self.random.random_range(MALFORMED),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_always_makes_the_same_plan_and_another_one_another() {
        let plan = |seed| Plan::new(seed, Kind::all(Deployment::One)).take(100).collect::<Vec<_>>();
        assert_eq!(plan(7), plan(7));
        assert_ne!(plan(7), plan(8));
    }

    #[test]
    fn every_kind_comes_before_any_comes_again() {
        let all = Kind::all(Deployment::Cluster);
        let plan = Plan::new(1, all.clone());
        let mut kinds: Vec<Kind> = plan.take(all.len()).map(|fault| fault.kind).collect();
        kinds.sort_unstable();
        assert_eq!(kinds, all);
    }
}
