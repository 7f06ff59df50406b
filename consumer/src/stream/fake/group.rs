//! In-memory fake of the streams and a consumer group, for consumer `a`.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use fred::prelude::{Error, ErrorKind};
use shared::{
    redis::Incarnation,
    wire::{codec, partition::Partition},
};
use tokio::time::{Instant, sleep};

use super::connection_lost;
use crate::{
    entry::{EntryId, Position, RawEntry},
    store::proof::Committed,
    stream::{
        AckOutcome, Claimed, ClaimedDeparted, GroupError, GroupStream, MemberName, Page, QuarantineTry,
        REASSIGN_CONSUMER,
    },
    testing::{Journal, like, numbers, position},
};

/// This consumer.
const CONSUMER: &str = "a";

/// Process of this consumer.
const PROCESS: &str = "process of a";

/// Command of the consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Operation {
    EnsureGroup,
    ReadNew,
    ReadOwnPending,
    Claim,
    ClaimDeparted,
    Deliver,
    Deliveries,
    ForgetDeleted,
    Quarantines,
    BeginQuarantine,
    EndQuarantine,
    Ack,
}

/// Outcome of a failed call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    NotExecuted,
    /// The command is executed, and the connection breaks before the reply.
    ReplyLost,
    Panic,
}

/// Streams, their consumer group and its pending entries list.
#[derive(Clone)]
pub(crate) struct FakeGroup {
    state: Arc<Mutex<State>>,
    pub(crate) journal: Journal,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<Position, Vec<(Bytes, Bytes)>>,
    is_missing: bool,
    /// Incarnation of the server. Positions are stored without it.
    incarnation: Incarnation,
    last_delivered: HashMap<Partition, EntryId>,
    pending: BTreeMap<Position, Pending>,
    quarantines: HashMap<Position, Vec<QuarantineTry>>,
    faults: Vec<(Operation, Fault)>,
    latencies: HashMap<Operation, Duration>,
}

struct Pending {
    consumer: String,
    deliveries: u64,
    delivered_at: Instant,
}

/// Methods for tests. Entry number n has the id `1-n` and a single like, by user n.
impl FakeGroup {
    pub(crate) fn new(journal: Journal) -> Self {
        Self { state: Arc::default(), journal }
    }

    pub(crate) fn append(&self, seq: u64) {
        let payload = codec::encode(&[like(seq)]).into();
        self.lock().entries.insert(position(seq), vec![(Bytes::from_static(b"l"), payload)]);
    }

    /// Appends an entry that is pending with a consumer after this number of deliveries.
    pub(crate) fn append_pending(&self, seq: u64, consumer: &str, deliveries: u64) {
        self.append(seq);
        let consumer = consumer.to_owned();
        let pending = Pending { consumer, deliveries, delivered_at: Instant::now() };
        let mut state = self.lock();
        state.pending.insert(position(seq), pending);
        state.last_delivered.insert(position(seq).partition, position(seq).id);
    }

    /// Deletes an entry from the stream. It stays in the pending entries list.
    pub(crate) fn delete(&self, seq: u64) {
        self.lock().entries.remove(&position(seq));
    }

    /// Acknowledges an entry, as its former owner may do.
    pub(crate) fn settle(&self, seq: u64) {
        self.lock().pending.remove(&position(seq));
    }

    /// Returns the idle time of a pending entry.
    pub(crate) fn idle(&self, seq: u64) -> Duration {
        self.lock().pending[&position(seq)].delivered_at.elapsed()
    }

    /// Removes the group, as when Redis loses its data.
    pub(crate) fn lose_group(&self) {
        let mut state = self.lock();
        state.is_missing = true;
        state.last_delivered.clear();
        state.pending.clear();
    }

    /// Records that a process tries an entry together with others, `entries` in all.
    pub(crate) fn set_quarantine(&self, seq: u64, process: &str, entries: usize) {
        let process = process.to_owned();
        self.lock().quarantines.entry(position(seq)).or_default().push(QuarantineTry { process, entries });
    }

    /// Removes the try of a process, as its end does.
    pub(crate) fn remove_quarantine(&self, seq: u64, process: &str) {
        self.lock().quarantines.entry(position(seq)).or_default().retain(|one| one.process != process);
    }

    /// Replaces the server by a replica that has not received this entry and all later ones.
    pub(crate) fn fail_over_without(&self, seq: u64) {
        let first = position(seq);
        let mut state = self.lock();
        state.incarnation = Incarnation::numbered(1);
        state.entries.retain(|at, _| *at < first);
        state.pending.retain(|at, _| *at < first);
        let delivered = EntryId { seq: seq - 1, ..first.id };
        state.last_delivered.insert(first.partition, delivered);
    }

    /// Makes the next call fail without being executed. Each call adds one failure.
    pub(crate) fn fail(&self, operation: Operation) {
        self.lock().faults.push((operation, Fault::NotExecuted));
    }

    /// Makes the next call be executed and lose its reply.
    pub(crate) fn lose_reply(&self, operation: Operation) {
        self.lock().faults.push((operation, Fault::ReplyLost));
    }

    /// Makes the next call panic.
    pub(crate) fn panic(&self, operation: Operation) {
        self.lock().faults.push((operation, Fault::Panic));
    }

    /// Sets the latency of all later replies. Commands are executed before the latency.
    pub(crate) fn slow(&self, operation: Operation, latency: Duration) {
        self.lock().latencies.insert(operation, latency);
    }

    /// Returns the numbers of the entries pending with `a`.
    pub(crate) fn own_pending(&self) -> Vec<u64> {
        self.pending_with(CONSUMER)
    }

    /// Returns the numbers of the entries pending with a consumer.
    pub(crate) fn pending_with(&self, consumer: &str) -> Vec<u64> {
        let state = self.lock();
        let pending = state.pending.iter().filter(|(_, pending)| pending.consumer == consumer);
        pending.map(|(at, _)| at.id.seq).collect()
    }

    /// Returns the tries of an entry on record, each as process and number of entries.
    pub(crate) fn quarantine(&self, seq: u64) -> Vec<(String, usize)> {
        let state = self.lock();
        let tries = state.quarantines.get(&position(seq)).into_iter().flatten();
        tries.map(|one| (one.process.clone(), one.entries)).collect()
    }

    /// Returns the number of entries that this process tries together with an entry, itself included; 0 if it does not try
    /// it.
    pub(crate) fn own_quarantine(&self, seq: u64) -> usize {
        let own = self.quarantine(seq).into_iter().find(|(process, _)| process == PROCESS);
        own.map_or(0, |(_, entries)| entries)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Runs a command with the prepared latency and fault. The journal shows `subject` after the operation.
    async fn call<T>(
        &self,
        operation: Operation,
        subject: String,
        command: impl FnOnce(&mut State) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let fault = {
            let mut state = self.lock();
            let fault = state.faults.iter().position(|(faulty, _)| *faulty == operation);
            fault.map(|index| state.faults.remove(index).1)
        };
        let outcome = match fault {
            None => "",
            Some(Fault::NotExecuted) => ": not executed",
            Some(Fault::ReplyLost) => ": reply lost",
            Some(Fault::Panic) => ": panic",
        };
        self.journal.record(format!("{operation:?}{subject}{outcome}"));
        let result = match fault {
            Some(Fault::NotExecuted) => Err(connection_lost()),
            _ => command(&mut self.lock()),
        };
        let latency = self.lock().latencies.get(&operation).copied();
        if let Some(latency) = latency {
            sleep(latency).await;
        }
        assert_ne!(fault, Some(Fault::Panic), "panic requested by a test");
        match fault {
            Some(Fault::ReplyLost) => Err(connection_lost()),
            _ => result,
        }
    }
}

impl State {
    fn require_group(&self) -> Result<(), Error> {
        if self.is_missing {
            return Err(Error::new(ErrorKind::NotFound, "NOGROUP No such key or consumer group"));
        }
        Ok(())
    }

    fn raw(&self, at: Position) -> RawEntry {
        let fields = self.entries.get(&at).cloned();
        RawEntry { at: Position { incarnation: self.incarnation, ..at }, fields }
    }

    /// Claims entries for `a`. Deleted entries stay pending and are returned separately.
    fn claim(&mut self, claimed: &[Position]) -> (Vec<RawEntry>, Vec<Position>) {
        let mut entries = Vec::new();
        let mut deleted = Vec::new();
        for at in claimed {
            if self.entries.contains_key(at) {
                let deliveries = self.pending.get(at).map_or(0, |pending| pending.deliveries);
                self.set_pending(*at, deliveries);
                entries.push(self.raw(*at));
            } else {
                deleted.push(Position { incarnation: self.incarnation, ..*at });
            }
        }
        (entries, deleted)
    }

    fn set_pending(&mut self, at: Position, deliveries: u64) {
        let pending = Pending { consumer: CONSUMER.to_owned(), deliveries, delivered_at: Instant::now() };
        self.pending.insert(at, pending);
    }

    fn pending_where(&self, partition: Partition, predicate: impl Fn(&Pending) -> bool) -> Vec<Position> {
        let pending =
            self.pending.iter().filter(|(at, pending)| at.partition == partition && predicate(pending));
        pending.map(|(at, _)| *at).collect()
    }
}

fn stored(at: Position) -> Position {
    stored_at(at.partition, at.id)
}

fn stored_at(partition: Partition, id: EntryId) -> Position {
    Position { partition, id, incarnation: Incarnation::default() }
}

impl GroupStream for FakeGroup {
    async fn ensure_group(&self, partition: Partition) -> Result<(), GroupError> {
        let ensured = self.call(Operation::EnsureGroup, String::new(), |state| {
            state.is_missing = false;
            Ok(())
        });
        ensured.await.map_err(|source| GroupError { stream: partition.to_string(), source })
    }

    async fn read_new(&self, partition: Partition, page: Page) -> Result<Vec<RawEntry>, Error> {
        let read = self.call(Operation::ReadNew, String::new(), |state| {
            state.require_group()?;
            let last = state.last_delivered.get(&partition).copied().unwrap_or_default();
            let new = state.entries.keys().filter(|at| at.partition == partition && at.id > last);
            let new: Vec<Position> = new.copied().take(usize::try_from(page.count).unwrap()).collect();
            if let Some(last) = new.last() {
                state.last_delivered.insert(partition, last.id);
            }
            for at in &new {
                state.set_pending(*at, 1);
            }
            Ok(new.into_iter().map(|at| state.raw(at)).collect())
        });
        read.await
    }

    async fn read_own_pending(
        &self,
        partition: Partition,
        after: EntryId,
        page: Page,
    ) -> Result<Vec<RawEntry>, Error> {
        let read = self.call(Operation::ReadOwnPending, String::new(), |state| {
            state.require_group()?;
            let mut own = state.pending_where(partition, |pending| pending.consumer == CONSUMER);
            own.retain(|at| at.id > after);
            own.truncate(usize::try_from(page.count).unwrap());
            Ok(own.into_iter().map(|at| state.raw(at)).collect())
        });
        read.await
    }

    async fn claim(
        &self,
        partition: Partition,
        min_idle_ms: u64,
        cursor: EntryId,
        page: Page,
    ) -> Result<Claimed, Error> {
        let claimed = self.call(Operation::Claim, String::new(), |state| {
            state.require_group()?;
            let min_idle = Duration::from_millis(min_idle_ms);
            let mut idle =
                state.pending_where(partition, |pending| pending.delivered_at.elapsed() >= min_idle);
            idle.retain(|at| at.id >= cursor);
            idle.retain(|at| state.entries.contains_key(at) || state.pending[at].consumer == CONSUMER);
            let rest = idle.split_off(idle.len().min(usize::try_from(page.count).unwrap()));
            let (entries, deleted) = state.claim(&idle);
            Ok(Claimed { entries, deleted, cursor: rest.first().map(|at| at.id).unwrap_or_default() })
        });
        claimed.await
    }

    async fn claim_departed(
        &self,
        partition: Partition,
        members: &HashSet<MemberName>,
        idle_ms: u64,
        page: Page,
    ) -> Result<Option<ClaimedDeparted>, Error> {
        let claimed = self.call(Operation::ClaimDeparted, String::new(), |state| {
            state.require_group()?;
            let idle = Duration::from_millis(idle_ms);
            let departed = state.pending.values().find(|pending| {
                let has_departed = !members.contains(&MemberName::from(pending.consumer.as_str()))
                    && pending.delivered_at.elapsed() >= idle;
                has_departed || pending.consumer == REASSIGN_CONSUMER
            });
            let Some(from) = departed.map(|pending| pending.consumer.clone()) else { return Ok(None) };
            let mut left = state.pending_where(partition, |pending| pending.consumer == from);
            left.truncate(usize::try_from(page.count).unwrap());
            let (entries, deleted) = state.claim(&left);
            Ok(Some(ClaimedDeparted { from, entries, deleted }))
        });
        claimed.await
    }

    /// Idle times never stand still here.
    async fn restamp(&self, _: Partition, _: &HashSet<MemberName>, _: EntryId) -> Result<(), Error> {
        Ok(())
    }

    async fn deliver(&self, entries: &[Position]) -> Result<Vec<u64>, Error> {
        let ids = numbers(entries.iter().map(|at| at.id.seq));
        let delivered = self.call(Operation::Deliver, ids, |state| {
            let mut deliver = |at: &Position| {
                let at = stored(*at);
                let pending = state.pending.get(&at).filter(|pending| pending.consumer == CONSUMER);
                let Some(deliveries) = pending.map(|pending| pending.deliveries + 1) else { return 0 };
                state.set_pending(at, deliveries);
                deliveries
            };
            Ok(entries.iter().map(&mut deliver).collect())
        });
        delivered.await
    }

    async fn deliveries(&self, at: Position) -> Result<u64, Error> {
        let deliveries = self.call(Operation::Deliveries, numbers([at.id.seq]), |state| {
            Ok(state.pending.get(&stored(at)).map_or(0, |pending| pending.deliveries))
        });
        deliveries.await
    }

    async fn forget_deleted(&self, entries: &[Position]) -> Result<(), Error> {
        let ids = numbers(entries.iter().map(|at| at.id.seq));
        let forgotten = self.call(Operation::ForgetDeleted, ids, |state| {
            for at in entries {
                state.pending.remove(&stored(*at));
            }
            Ok(())
        });
        forgotten.await
    }

    async fn quarantines(
        &self,
        partition: Partition,
        ids: &[EntryId],
    ) -> Result<Vec<Vec<QuarantineTry>>, Error> {
        let records = self.call(Operation::Quarantines, String::new(), |state| {
            let records = ids.iter().map(|id| state.quarantines.get(&stored_at(partition, *id)));
            Ok(records.map(|record| record.cloned().unwrap_or_default()).collect())
        });
        records.await
    }

    async fn begin_quarantine(
        &self,
        partition: Partition,
        ids: &[EntryId],
        entries: usize,
    ) -> Result<(), Error> {
        let begun = self.call(Operation::BeginQuarantine, numbers(ids.iter().map(|id| id.seq)), |state| {
            for id in ids {
                let tries = state.quarantines.entry(stored_at(partition, *id)).or_default();
                tries.retain(|one| one.process != PROCESS);
                tries.push(QuarantineTry { process: PROCESS.to_owned(), entries });
            }
            Ok(())
        });
        begun.await
    }

    async fn end_quarantine(&self, partition: Partition) -> Result<(), Error> {
        let ended = self.call(Operation::EndQuarantine, String::new(), |state| {
            let State { quarantines, pending, .. } = state;
            quarantines.retain(|at, tries| {
                tries.retain(|one| at.partition != partition || one.process != PROCESS);
                !tries.is_empty() && pending.contains_key(at)
            });
            Ok(())
        });
        ended.await
    }

    async fn ack(&self, committed: Committed) -> AckOutcome {
        let mut outcome = AckOutcome { entries: committed.into_entries(), ..AckOutcome::default() };
        let ids: Vec<u64> = outcome.entries.iter().map(|entry| entry.at.id.seq).collect();
        let entries = &outcome.entries;
        let acked = self.call(Operation::Ack, numbers(ids.iter().copied()), |state| {
            if entries.iter().any(|entry| entry.at.incarnation != state.incarnation) {
                return Err(Error::new(ErrorKind::NotFound, "another incarnation"));
            }
            let pending: Vec<_> =
                entries.iter().filter(|entry| state.pending.remove(&stored(entry.at)).is_some()).collect();
            Ok(pending.len() as u64)
        });
        match acked.await {
            Ok(acknowledged) => outcome.acknowledged = acknowledged,
            Err(error) => {
                if error.details() == "another incarnation" {
                    outcome.replaced = entries.iter().map(|entry| entry.at.partition).collect();
                }
                outcome.failed = Some((ids.len(), error));
            }
        }
        outcome
    }
}
