//! Samples the backlog of all partitions, for the metrics that dashboards, alerts and autoscaling use, and to notice losses.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use fred::prelude::Error;
use futures_util::{StreamExt, stream};
use opentelemetry::{
    KeyValue,
    metrics::{AsyncInstrument, Meter},
};
use shared::{
    error_chain::one_line,
    telemetry::names::{self, metric},
    wire::partition::{Partition, PartitionCount},
};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use crate::{
    group::ownership::Ownership,
    stream::{PartitionInfo, Sample, Streams},
    upkeep::stream_watch::StreamWatch,
};

/// Interval between two samples of all partitions: the larger of `SAMPLE_INTERVAL` and `INTERVAL_PER_PARTITION` times the
/// number of partitions. Every consumer samples all partitions.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(2);
const INTERVAL_PER_PARTITION: Duration = Duration::from_millis(20);

/// Maximum number of concurrent samples. Bounded so that samples do not delay acknowledgements.
const CONCURRENT_SAMPLES: usize = 16;

/// Latest samples of all partitions.
#[derive(Default)]
pub(crate) struct Backlog {
    /// `None` while Redis does not respond.
    samples: Mutex<Option<HashMap<Partition, PartitionSample>>>,
}

/// Sample of one partition.
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
    /// Registers the gauges: the total backlog, and the samples of owned and orphaned partitions.
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
                backlog.for_each_reported(&ownership, |partition, sample| {
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
                backlog.for_each_reported(&ownership, show);
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

    fn for_each_reported(
        &self,
        ownership: &watch::Receiver<Ownership>,
        mut observe: impl FnMut(Partition, &PartitionSample),
    ) {
        let reported = ownership.borrow().responsible_for();
        let samples = self.lock();
        let Some(samples) = &*samples else { return };
        for partition in reported {
            if let Some(sample) = samples.get(&partition) {
                observe(partition, sample);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<HashMap<Partition, PartitionSample>>> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the samples of the inspected partitions. Partitions on a server that does not respond keep their last
    /// sample; if no server responds, all samples are removed.
    fn update(&self, round: &HashMap<Partition, Sample>) {
        let mut samples = self.lock();
        if round.is_empty() {
            *samples = None;
            return;
        }
        let samples = samples.get_or_insert_default();
        samples
            .extend(round.iter().map(|(partition, sample)| (*partition, PartitionSample::of(&sample.info))));
    }
}

fn label(partition: Partition) -> KeyValue {
    KeyValue::new(names::PARTITION, partition.to_string())
}

/// Takes samples of all partitions.
pub(crate) struct Sampler {
    pub(crate) streams: Streams,
    pub(crate) partitions: watch::Receiver<PartitionCount>,
    pub(crate) ownership: watch::Receiver<Ownership>,
    pub(crate) backlog: Arc<Backlog>,
    pub(crate) stream_watch: Arc<StreamWatch>,
}

impl Sampler {
    /// Samples periodically until dropped. Cancels `first_sampled` after the first samples.
    pub(crate) async fn run(self, first_sampled: CancellationToken) {
        let mut failing = false;
        let mut period = Duration::ZERO;
        let mut ticks = interval(SAMPLE_INTERVAL);
        loop {
            let count = *self.partitions.borrow();
            let new_period = SAMPLE_INTERVAL.max(INTERVAL_PER_PARTITION * u32::from(count.get()));
            if period != new_period {
                period = new_period;
                ticks = interval(period);
                ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            }
            ticks.tick().await;
            let sampled = self.sample().await;
            first_sampled.cancel();
            match &sampled {
                Err(error) if !failing => {
                    tracing::warn!(error = one_line(error), "backlog sampling failed");
                }
                Ok(()) if failing => tracing::info!("backlog sampling recovered"),
                _ => {}
            }
            failing = sampled.is_err();
        }
    }

    /// Samples once. Partitions whose sample fails are left out.
    ///
    /// # Errors
    /// When a sample fails.
    async fn sample(&self) -> Result<(), Error> {
        let count = *self.partitions.borrow();
        let round = self.stream_watch.begin_round(|| self.ownership.borrow().responsible_for()).await;
        let samples =
            count.partitions().map(async |partition| (partition, self.streams.sample(partition).await));
        let mut samples = stream::iter(samples).buffer_unordered(CONCURRENT_SAMPLES);
        let mut taken = HashMap::new();
        let mut failed = None;
        while let Some((partition, sample)) = samples.next().await {
            match sample {
                Ok(sample) => drop(taken.insert(partition, sample)),
                Err(error) => failed = Some(error),
            }
        }
        self.backlog.update(&taken);
        self.stream_watch.sampled(round, taken.into_iter());
        failed.map_or(Ok(()), Err)
    }
}
