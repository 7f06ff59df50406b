//! How much of the streams is still to be done, for those who watch and for those who scale.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use opentelemetry::{
    KeyValue,
    metrics::{AsyncInstrument, Meter},
};
use shared::{
    telemetry::names::{self, metric},
    wire::partition::{Partition, PartitionCount},
};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

use crate::{
    group::membership::Ownership,
    stream::{PartitionInfo, Streams},
};

/// Between two looks at all partitions, and at least for each of them: every consumer looks.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);
const INTERVAL_PER_PARTITION: Duration = Duration::from_millis(20);

/// So that acknowledgements don't wait behind them.
const LOOKS_AT_ONCE: usize = 16;

/// What was last seen of the partitions.
#[derive(Default)]
pub(crate) struct Backlog {
    /// Nothing while Redis doesn't say.
    seen: Mutex<Option<HashMap<Partition, Seen>>>,
}

/// What was seen of a partition.
#[derive(Clone, Copy)]
struct Seen {
    backlog: u64,
    pending: u64,
    oldest_age: Duration,
    oldest_pending_age: Duration,
    dead_letters: u64,
}

impl Seen {
    fn of(look: &PartitionInfo) -> Self {
        let age = |id: Option<_>| Duration::from_millis(id.map_or(0, |id| look.age_ms(id)));
        let oldest_pending = look.group.as_ref().and_then(|group| group.oldest_pending);
        Self {
            backlog: look.backlog(),
            pending: look.group.as_ref().map_or(0, |group| group.pending),
            oldest_age: age(look.oldest()),
            oldest_pending_age: age(oldest_pending),
            dead_letters: look.dead,
        }
    }
}

impl Backlog {
    /// Shows it: the total, and what there is to say of those partitions that are this consumer's or nobody's.
    pub(crate) fn observe(
        self: &Arc<Self>,
        meter: &Meter,
        group: &str,
        ownership: &watch::Receiver<Ownership>,
    ) {
        let group = KeyValue::new(names::MESSAGING_CONSUMER_GROUP_NAME, group.to_owned());
        let backlog = Arc::clone(self);
        let total = move |observer: &dyn AsyncInstrument<u64>| {
            if let Some(seen) = &*backlog.lock() {
                observer.observe(seen.values().map(|seen| seen.backlog).sum(), std::slice::from_ref(&group));
            }
        };
        meter
            .u64_observable_gauge(metric::BACKLOG)
            .with_description("Entries that are not stored yet, undelivered and pending, over all partitions")
            .with_callback(total)
            .build();

        let count = |name: &'static str, what: &'static str, of: fn(&Seen) -> u64| {
            let (backlog, ownership) = (Arc::clone(self), ownership.clone());
            let observe = move |observer: &dyn AsyncInstrument<u64>| {
                backlog
                    .of_each(&ownership, |partition, seen| observer.observe(of(seen), &[label(partition)]));
            };
            meter.u64_observable_gauge(name).with_description(what).with_callback(observe).build();
        };
        count(metric::PARTITION_BACKLOG, "Entries of a partition that are not stored yet", |seen| {
            seen.backlog
        });
        count(metric::PARTITION_PENDING, "Those that were delivered and are not acknowledged", |seen| {
            seen.pending
        });
        count(metric::PARTITION_DEAD_LETTERS, "Dead letters that are in Redis", |seen| seen.dead_letters);

        let age = |name: &'static str, what: &'static str, of: fn(&Seen) -> Duration| {
            let (backlog, ownership) = (Arc::clone(self), ownership.clone());
            let observe = move |observer: &dyn AsyncInstrument<f64>| {
                let show =
                    |partition, seen: &Seen| observer.observe(of(seen).as_secs_f64(), &[label(partition)]);
                backlog.of_each(&ownership, show);
            };
            let gauge = meter.f64_observable_gauge(name).with_unit("s").with_description(what);
            gauge.with_callback(observe).build();
        };
        age(metric::PARTITION_OLDEST_AGE, "How long ago the oldest of the backlog was accepted", |seen| {
            seen.oldest_age
        });
        age(
            metric::PARTITION_OLDEST_PENDING_AGE,
            "How long ago the oldest of the pending was accepted",
            |seen| seen.oldest_pending_age,
        );
    }

    fn of_each(&self, ownership: &watch::Receiver<Ownership>, mut show: impl FnMut(Partition, &Seen)) {
        let (ownership, seen) = (ownership.borrow(), self.lock());
        let (assignment, Some(seen)) = (&ownership.assignment, &*seen) else { return };
        for partition in assignment.own.iter().chain(&assignment.orphans) {
            if let Some(seen) = seen.get(partition) {
                show(*partition, seen);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<HashMap<Partition, Seen>>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a part of Redis doesn't answer, what was known of its partitions counts.
    fn sampled(&self, looks: HashMap<Partition, PartitionInfo>) {
        let mut seen = self.lock();
        if looks.is_empty() {
            *seen = None;
            return;
        }
        let known = seen.get_or_insert_default();
        known.extend(looks.into_iter().map(|(partition, look)| (partition, Seen::of(&look))));
    }
}

fn label(partition: Partition) -> KeyValue {
    KeyValue::new(names::PARTITION, partition.to_string())
}

/// Looks for ever.
pub(crate) async fn sample(
    streams: Streams,
    partitions: watch::Receiver<PartitionCount>,
    backlog: Arc<Backlog>,
) {
    let mut failing = false;
    let mut period = Duration::ZERO;
    let mut ticks = interval(SAMPLE_INTERVAL);
    loop {
        let count = *partitions.borrow();
        let wanted = SAMPLE_INTERVAL.max(INTERVAL_PER_PARTITION * u32::from(count.get()));
        if period != wanted {
            period = wanted;
            ticks = interval(period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        ticks.tick().await;
        let looks = count.partitions().map(async |partition| (partition, streams.look(partition).await));
        let mut looks = stream::iter(looks).buffer_unordered(LOOKS_AT_ONCE);
        let (mut seen, mut failed) = (HashMap::new(), None);
        while let Some((partition, look)) = looks.next().await {
            match look {
                Ok(look) => drop(seen.insert(partition, look)),
                Err(error) => failed = Some(error),
            }
        }
        backlog.sampled(seen);
        match &failed {
            Some(error) if !failing => {
                tracing::warn!(%error, "how much waits is not known of all partitions");
            }
            None if failing => tracing::info!("how much waits is known again"),
            _ => {}
        }
        failing = failed.is_some();
    }
}
