//! Notices what Redis loses: compares every sample of a stream with the one before, and with what consumers saw before a
//! restart. Losses are recorded in Postgres, which may be unavailable while they happen.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use shared::wire::partition::Partition;
use tokio::sync::{Mutex as AsyncMutex, MutexGuard as AsyncMutexGuard};
use tokio_postgres::{Error, GenericClient};

use crate::{
    group::{
        losses::{Loss, Since, loss, watermark},
        static_assignment::StaticAssignment,
    },
    store::{
        incidents::{self, IncidentKind, NewIncident, Scope},
        watermarks::{self, StoredWatermark, Watermark},
    },
    stream::{CreatedGroup, PartitionInfo, Sample, Streams},
};

/// Latest samples of all streams, with their losses that are not recorded yet.
#[derive(Default)]
pub(crate) struct StreamWatch {
    state: Mutex<State>,
    /// Locked by a round, so that samples are compared in the order in which they were taken.
    round: AsyncMutex<()>,
}

#[derive(Default)]
struct State {
    streams: BTreeMap<Partition, Watched>,
    /// Number of rounds of samples that have begun.
    rounds: u64,
}

#[derive(Clone)]
struct Watched {
    /// First sample, taken before this process has read anything, until it is compared with a watermark.
    first: Option<PartitionInfo>,
    info: PartitionInfo,
    /// Number of entries that this process had read.
    read: u64,
    /// Whether this consumer was responsible for the partition when the sample was taken.
    is_own: bool,
    /// Epoch in Postgres; `None` until it is known.
    epoch: Option<i64>,
    /// Watermark in Postgres that is not compared yet, with the latest round at that time. Another consumer may have saved it
    /// after a sample of that round.
    loaded: Option<(u64, StoredWatermark)>,
    lost: Option<Lost>,
    /// Creation of the group by this process, until no loss depends on it.
    created: Option<CreatedGroup>,
    saved: Option<Watermark>,
}

/// A round of samples that has begun. No other begins before it ends.
pub(crate) struct Round<'a> {
    number: u64,
    /// Partitions that this consumer was responsible for when the round began: its own, and those without an owner.
    own: BTreeSet<Partition>,
    _ends: AsyncMutexGuard<'a, ()>,
}

/// Losses of a stream that are not recorded yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lost {
    loss: Loss,
    /// Time of the last sample before the first of them, in Unix milliseconds.
    seen_ms: u64,
    /// Time of the sample that showed the last of them.
    found_ms: u64,
}

impl Lost {
    fn and(self, later: Self) -> Self {
        Self { loss: self.loss.and(later.loss), found_ms: later.found_ms, ..self }
    }

    /// Returns the losses that were found after `reported` was.
    fn since(self, reported: Self) -> Option<Self> {
        let loss = self.loss.without(reported.loss);
        (self != reported).then_some(Self { loss, seen_ms: reported.found_ms, ..self })
    }
}

/// Incident that was recorded.
pub(crate) struct Recorded {
    pub(crate) incident: NewIncident,
    /// Number of entries that are certainly lost.
    pub(crate) certainly_lost: u64,
    /// Whether this consumer was the first to record it.
    pub(crate) is_first: bool,
}

/// Changes to the state after a transaction was committed.
#[derive(Default)]
pub(crate) struct Exchanged {
    updates: Vec<(Partition, Update)>,
    pub(crate) recorded: Vec<Recorded>,
}

enum Update {
    /// The watermark in Postgres, if there is one.
    Loaded(Option<StoredWatermark>),
    Reported {
        epoch: i64,
        lost: Lost,
    },
    Saved(Watermark),
    /// Another consumer has changed the watermark in Postgres.
    Stale,
}

impl StreamWatch {
    /// Begins a round of samples, before the first of them is taken and after the round before has ended. `own` returns the
    /// partitions that this consumer is responsible for.
    pub(crate) async fn begin_round(&self, own: impl FnOnce() -> BTreeSet<Partition>) -> Round<'_> {
        let ends = self.round.lock().await;
        let own = own();
        let mut state = self.lock();
        state.rounds += 1;
        Round { number: state.rounds, own, _ends: ends }
    }

    /// Ends a round: compares its samples with the ones before, and with watermarks that were loaded before the round.
    pub(crate) fn sampled(&self, round: Round<'_>, samples: impl Iterator<Item = (Partition, Sample)>) {
        let Round { number, own, _ends } = round;
        let mut lost = Vec::new();
        let mut state = self.lock();
        for (partition, sample) in samples {
            let is_own = own.contains(&partition);
            let Some(known) = state.streams.get_mut(&partition) else {
                state.streams.insert(partition, Watched::of(sample, is_own));
                continue;
            };
            let losses = [known.sampled(sample, is_own), known.compare_with_loaded(number)];
            // The owner knows which entries were read, and logs the loss.
            lost.extend(losses.into_iter().flatten().filter(|_| is_own).map(|loss| (partition, loss)));
        }
        drop(state);
        log(&lost);
    }

    /// Loads the watermarks that are not known, records the losses of the partitions that this consumer is responsible for, and
    /// saves their watermarks, all within a transaction. The caller passes the result to [`StreamWatch::committed`].
    ///
    /// The owner of a partition knows best how many of its entries were read before they were lost. Others keep what they
    /// have seen until a watermark shows that it is recorded.
    pub(crate) async fn exchange(
        &self,
        transaction: &impl GenericClient,
        streams: &Streams,
        own: &BTreeSet<Partition>,
    ) -> Result<Exchanged, Error> {
        let mut exchanged = Exchanged::default();
        self.load(transaction, streams, own, &mut exchanged).await?;
        self.report(transaction, streams, own, &mut exchanged).await?;
        self.save(transaction, streams, own, &mut exchanged).await?;
        Ok(exchanged)
    }

    async fn load(
        &self,
        transaction: &impl GenericClient,
        streams: &Streams,
        own: &BTreeSet<Partition>,
        exchanged: &mut Exchanged,
    ) -> Result<(), Error> {
        let unknown = |(partition, watched): (&Partition, &Watched)| {
            let is_left_to_others = watched.lost.is_some() && !own.contains(partition);
            let is_wanted = watched.loaded.is_none() && (watched.epoch.is_none() || is_left_to_others);
            is_wanted.then(|| (*partition, streams.key(*partition)))
        };
        let unknown: Vec<(Partition, String)> = self.lock().streams.iter().filter_map(unknown).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let keys: Vec<String> = unknown.iter().map(|(_, key)| key.clone()).collect();
        let mut rows = watermarks::load(transaction, streams.group(), &keys).await?;
        for (partition, key) in unknown {
            exchanged.updates.push((partition, Update::Loaded(rows.remove(&key))));
        }
        Ok(())
    }

    async fn report(
        &self,
        transaction: &impl GenericClient,
        streams: &Streams,
        own: &BTreeSet<Partition>,
        exchanged: &mut Exchanged,
    ) -> Result<(), Error> {
        let mut by_kind: BTreeMap<IncidentKind, Vec<(Partition, Lost, StoredWatermark)>> = BTreeMap::new();
        for (partition, watched) in
            self.lock().streams.iter().filter(|(partition, _)| own.contains(partition))
        {
            if let (Some(lost), Some(epoch)) = (watched.lost, watched.epoch) {
                let stored = StoredWatermark { epoch: epoch + 1, watermark: watermark(&watched.info) };
                by_kind.entry(lost.loss.kind).or_default().push((*partition, lost, stored));
            }
        }
        for (kind, mut lost) in by_kind {
            let rows: Vec<_> =
                lost.iter().map(|(partition, _, stored)| (streams.key(*partition), stored.clone())).collect();
            let changed = watermarks::save(transaction, streams.group(), &rows, 1).await?;
            lost.retain(|(partition, lost, stored)| {
                let is_first = changed.contains(&streams.key(*partition));
                let reported = Update::Reported { epoch: stored.epoch, lost: *lost };
                let update = if is_first { reported } else { Update::Stale };
                exchanged.updates.push((*partition, update));
                is_first
            });
            if let Some(incident) = incident(kind, &lost, streams) {
                let prefix = streams.prefix();
                let scope = Scope { streams: &prefix, group: streams.group() };
                let is_first = incidents::record(transaction, scope, &incident).await?;
                let certain = lost.iter().filter(|(_, lost, _)| lost.loss.is_minimum);
                let certainly_lost = certain.map(|(_, lost, _)| lost.loss.undelivered).sum();
                exchanged.recorded.push(Recorded { incident, certainly_lost, is_first });
            }
        }
        Ok(())
    }

    async fn save(
        &self,
        transaction: &impl GenericClient,
        streams: &Streams,
        own: &BTreeSet<Partition>,
        exchanged: &mut Exchanged,
    ) -> Result<(), Error> {
        let mut changed = Vec::new();
        {
            let state = self.lock();
            for partition in own {
                let Some(Watched { info, epoch: Some(epoch), lost: None, saved, .. }) =
                    state.streams.get(partition)
                else {
                    continue;
                };
                let now = watermark(info);
                if saved.as_ref().is_none_or(|saved| differs(saved, &now)) {
                    changed.push((*partition, StoredWatermark { epoch: *epoch, watermark: now }));
                }
            }
        }
        if changed.is_empty() {
            return Ok(());
        }
        let rows: Vec<_> =
            changed.iter().map(|(partition, stored)| (streams.key(*partition), stored.clone())).collect();
        let saved = watermarks::save(transaction, streams.group(), &rows, 0).await?;
        for (partition, stored) in changed {
            let is_saved = saved.contains(&streams.key(partition));
            let update = if is_saved { Update::Saved(stored.watermark) } else { Update::Stale };
            exchanged.updates.push((partition, update));
        }
        Ok(())
    }

    /// Applies a committed exchange.
    pub(crate) fn committed(&self, updates: Exchanged) {
        let mut state = self.lock();
        let round = state.rounds;
        for (partition, update) in updates.updates {
            let Some(known) = state.streams.get_mut(&partition) else { continue };
            match update {
                Update::Loaded(Some(stored)) => known.loaded = Some((round, stored)),
                Update::Loaded(None) => {
                    known.first = None;
                    known.epoch = Some(0);
                    known.created = None;
                }
                Update::Reported { epoch, lost: reported } => {
                    known.epoch = Some(epoch);
                    // Another loss may have been found before the commit.
                    known.lost = known.lost.and_then(|lost| lost.since(reported));
                    known.created = None;
                    known.saved = None;
                }
                Update::Saved(watermark) => {
                    known.saved = Some(watermark);
                    known.created = None;
                }
                Update::Stale => known.epoch = None,
            }
        }
    }

    /// Returns whether there are losses that are not recorded yet, by kind.
    pub(crate) fn unrecorded(&self) -> BTreeMap<IncidentKind, u64> {
        self.lock().streams.values().filter_map(|watched| Some((watched.lost?.loss.kind, 1))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watched {
    fn of(Sample { info, read, created, .. }: Sample, is_own: bool) -> Self {
        Self {
            first: Some(info.clone()),
            info,
            read,
            is_own,
            epoch: None,
            loaded: None,
            lost: None,
            created,
            saved: None,
        }
    }

    /// Compares a sample with the one before. Returns the loss.
    fn sampled(&mut self, Sample { info, read, created, went_back }: Sample, is_own: bool) -> Option<Loss> {
        let before = watermark(&self.info);
        // What was read after the group was created is not of the lost stream.
        let read_until = created.as_ref().map_or(read, |created| created.read);
        let read_since = read_until.saturating_sub(self.read);
        // Others may have read entries of a partition that was theirs.
        let known_read = (self.is_own && is_own).then_some(read_since);
        let since = Since { info: &info, created: created.as_ref(), read: known_read, went_back };
        let lost = loss(&before, since);
        if let Some(loss) = lost {
            let lost = Lost { loss, seen_ms: before.sampled_ms, found_ms: info.now_ms };
            self.lost = Some(self.lost.map_or(lost, |earlier| earlier.and(lost)));
        }
        self.created = created.or(self.created.take());
        (self.info, self.read, self.is_own) = (info, read, is_own);
        lost
    }

    /// Compares the latest sample with the watermark that was loaded before its round. Returns a loss that was not known.
    fn compare_with_loaded(&mut self, round: u64) -> Option<Loss> {
        let (_, StoredWatermark { epoch, watermark }) =
            self.loaded.take_if(|(loaded_in, _)| *loaded_in < round)?;
        self.epoch = Some(epoch);
        let created = self.created.as_ref().filter(|created| created.stream.now_ms > watermark.sampled_ms);
        let since = loss(&watermark, Since { info: &self.info, created, read: None, went_back: false })
            .or_else(|| removed_before(self.first.take(), &watermark));
        self.first = None;
        let found = since.filter(|_| self.lost.is_none());
        let (seen_ms, found_ms) = (watermark.sampled_ms, self.info.now_ms);
        // A loss that a later watermark does not show was recorded by another consumer. One that both show was seen later by
        // this consumer, and therefore more exactly.
        let own = self.lost.filter(|lost| since.is_some() || seen_ms <= lost.seen_ms);
        self.lost = own.or(since.map(|loss| Lost { loss, seen_ms, found_ms }));
        if since.is_none() {
            self.created = None;
        }
        found
    }
}

/// Returns the entries that were removed between a watermark and the first sample. A later sample does not show them, after
/// the position of the group has moved.
fn removed_before(first: Option<PartitionInfo>, watermark: &Watermark) -> Option<Loss> {
    let first = first.filter(|first| first.now_ms > watermark.sampled_ms)?;
    let since = loss(watermark, Since { info: &first, created: None, read: None, went_back: false });
    since.filter(|loss| loss.kind == IncidentKind::EntriesRemoved)
}

/// Returns whether a watermark is worth saving: it differs by more than the time of the sample.
fn differs(saved: &Watermark, now: &Watermark) -> bool {
    Watermark { sampled_ms: now.sampled_ms, ..saved.clone() } != *now
}

fn log(lost: &[(Partition, Loss)]) {
    for kind in IncidentKind::ALL {
        let of_kind = || lost.iter().filter(|(_, loss)| loss.kind == kind);
        let Some(total) = of_kind().map(|(_, loss)| *loss).reduce(Loss::and) else { continue };
        let partitions = ranges(of_kind().map(|(partition, _)| *partition));
        let Loss { undelivered, pending, .. } = total;
        match kind {
            IncidentKind::StreamLost => tracing::error!(
                partitions,
                undelivered,
                pending,
                "data loss: streams vanished from Redis or went back to an earlier state"
            ),
            IncidentKind::EntriesRemoved => {
                tracing::error!(partitions, undelivered, "data loss: undelivered entries were removed");
            }
            IncidentKind::GroupLost => tracing::error!(
                partitions,
                "consumer groups vanished from Redis, reading their streams from the start"
            ),
            IncidentKind::PostgresFailover => {}
        }
    }
}

/// Returns partitions as ranges, such as `0-3,8`.
fn ranges(partitions: impl Iterator<Item = Partition>) -> String {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    let mut numbers: Vec<u16> = partitions.map(Partition::number).collect();
    numbers.sort_unstable();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    StaticAssignment::Ranges(ranges).to_string()
}

/// Returns the incident of the losses of one kind; `None` without a loss.
fn incident(
    kind: IncidentKind,
    lost: &[(Partition, Lost, StoredWatermark)],
    streams: &Streams,
) -> Option<NewIncident> {
    let (first, _, stored) = lost.first()?;
    let total = lost.iter().map(|(_, lost, _)| lost.loss).reduce(Loss::and)?;
    let seen_ms = lost.iter().map(|(_, lost, _)| lost.seen_ms).min()?;
    let seen = UNIX_EPOCH.checked_add(Duration::from_millis(seen_ms)).unwrap_or(SystemTime::UNIX_EPOCH);
    let seen = humantime::format_rfc3339_millis(seen);
    let partitions = ranges(lost.iter().map(|(partition, ..)| *partition));
    let Loss { undelivered, pending, is_minimum, .. } = total;
    let bound = if is_minimum { "at least" } else { "up to" };
    let detail = match kind {
        IncidentKind::StreamLost => {
            let pending = match pending {
                0 => String::new(),
                _ => format!("; up to {pending} pending entries lost unless their consumers are alive"),
            };
            format!(
                "streams of partitions {partitions} vanished from Redis or went back to an earlier state: {bound} \
                 {undelivered} undelivered entries lost{pending}; not counted are entries accepted after the last \
                 sample at {seen}"
            )
        }
        IncidentKind::EntriesRemoved => format!(
            "another program removed entries from the streams of partitions {partitions}: at least {undelivered} \
             undelivered entries lost since {seen}"
        ),
        IncidentKind::GroupLost => format!(
            "the consumer group vanished from the streams of partitions {partitions} after {seen}: entries that are \
             still in them are delivered again, and stored once"
        ),
        IncidentKind::PostgresFailover => return None,
    };
    Some(NewIncident {
        event: format!("{} {} {} {}", kind.name(), streams.key(*first), streams.group(), stored.epoch),
        kind,
        entries_lost: Some(undelivered),
        detail,
        detected_by: streams.consumer().to_owned(),
    })
}

#[cfg(test)]
mod tests;
