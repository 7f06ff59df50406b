//! Samples the backlog of all partitions, for metrics: dashboards, alerts and autoscaling.

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
    group::ownership::Ownership,
    stream::{PartitionInfo, Streams},
};

/// Between two samples of all partitions, and at least for each of them: every consumer samples.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);
const INTERVAL_PER_PARTITION: Duration = Duration::from_millis(20);

/// Bounded so that acknowledgements don't wait behind samples.
const CONCURRENT_SAMPLES: usize = 16;

/// The last samples of the partitions.
#[derive(Default)]
pub(crate) struct Backlog {
    /// `None` while Redis does not answer.
    samples: Mutex<Option<HashMap<Partition, PartitionSample>>>,
}

/// A sample of a partition.
#[derive(Clone, Copy)]
struct PartitionSample {
    backlog: u64,
    pending: u64,
    oldest_age: Duration,
    oldest_pending_age: Duration,
    dead_letters: u64,
}

impl PartitionSample {
    fn of(info: &PartitionInfo) -> Self {
        let age = |id: Option<_>| Duration::from_millis(id.map_or(0, |id| info.age_ms(id)));
        let oldest_pending = info.group.as_ref().and_then(|group| group.oldest_pending);
        Self {
            backlog: info.backlog(),
            pending: info.group.as_ref().map_or(0, |group| group.pending),
            oldest_age: age(info.oldest()),
            oldest_pending_age: age(oldest_pending),
            dead_letters: info.dead,
        }
    }
}

impl Backlog {
    /// Observes the total, and the figures of those partitions that are this consumer's or no consumer's.
    pub(crate) fn observe(
        self: &Arc<Self>,
        meter: &Meter,
        group: &str,
        ownership: &watch::Receiver<Ownership>,
    ) {
        let group = KeyValue::new(names::MESSAGING_CONSUMER_GROUP_NAME, group.to_owned());
        let backlog = Arc::clone(self);
        let total = move |observer: &dyn AsyncInstrument<u64>| {
            if let Some(samples) = &*backlog.lock() {
                let total = samples.values().map(|sample| sample.backlog).sum();
                observer.observe(total, std::slice::from_ref(&group));
            }
        };
        meter
            .u64_observable_gauge(metric::BACKLOG)
            .with_description("Entries not stored yet, lag and pending, over all partitions")
            .with_callback(total)
            .build();

        let count = |name: &'static str, what: &'static str, of: fn(&PartitionSample) -> u64| {
            let backlog = Arc::clone(self);
            let ownership = ownership.clone();
            let observe = move |observer: &dyn AsyncInstrument<u64>| {
                backlog.of_each(&ownership, |partition, sample| {
                    observer.observe(of(sample), &[label(partition)]);
                });
            };
            meter.u64_observable_gauge(name).with_description(what).with_callback(observe).build();
        };
        count(metric::PARTITION_BACKLOG, "Entries of a partition not stored yet", |sample| sample.backlog);
        count(metric::PARTITION_PENDING, "Pending entries of a partition", |sample| sample.pending);
        count(metric::PARTITION_DEAD_LETTERS, "Dead letters of a partition in Redis", |sample| {
            sample.dead_letters
        });

        let age = |name: &'static str, what: &'static str, of: fn(&PartitionSample) -> Duration| {
            let backlog = Arc::clone(self);
            let ownership = ownership.clone();
            let observe = move |observer: &dyn AsyncInstrument<f64>| {
                let show = |partition, sample: &PartitionSample| {
                    observer.observe(of(sample).as_secs_f64(), &[label(partition)]);
                };
                backlog.of_each(&ownership, show);
            };
            let gauge = meter.f64_observable_gauge(name).with_unit("s").with_description(what);
            gauge.with_callback(observe).build();
        };
        age(metric::PARTITION_OLDEST_AGE, "Age of the oldest entry of the backlog", |sample| {
            sample.oldest_age
        });
        age(metric::PARTITION_OLDEST_PENDING_AGE, "Age of the oldest pending entry", |sample| {
            sample.oldest_pending_age
        });
    }

    fn of_each(
        &self,
        ownership: &watch::Receiver<Ownership>,
        mut observe: impl FnMut(Partition, &PartitionSample),
    ) {
        let ownership = ownership.borrow();
        let assignment = &ownership.assignment;
        let samples = self.lock();
        let Some(samples) = &*samples else { return };
        for partition in assignment.own.iter().chain(&assignment.orphans) {
            if let Some(sample) = samples.get(partition) {
                observe(*partition, sample);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<HashMap<Partition, PartitionSample>>> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a part of Redis doesn't answer, the last samples of its partitions stay.
    fn update(&self, infos: &HashMap<Partition, PartitionInfo>) {
        let mut samples = self.lock();
        if infos.is_empty() {
            *samples = None;
            return;
        }
        let samples = samples.get_or_insert_default();
        samples.extend(infos.iter().map(|(partition, info)| (*partition, PartitionSample::of(info))));
    }
}

fn label(partition: Partition) -> KeyValue {
    KeyValue::new(names::PARTITION, partition.to_string())
}

/// Samples for ever.
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
        let infos = count.partitions().map(async |partition| (partition, streams.inspect(partition).await));
        let mut infos = stream::iter(infos).buffer_unordered(CONCURRENT_SAMPLES);
        let mut inspected = HashMap::new();
        let mut failed = None;
        while let Some((partition, info)) = infos.next().await {
            match info {
                Ok(info) => drop(inspected.insert(partition, info)),
                Err(error) => failed = Some(error),
            }
        }
        backlog.update(&inspected);
        match &failed {
            Some(error) if !failing => {
                tracing::warn!(%error, "the backlog is not known of all partitions");
            }
            None if failing => tracing::info!("the backlog is known again"),
            _ => {}
        }
        failing = failed.is_some();
    }
}
