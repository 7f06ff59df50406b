//! Quarantine of one partition: which suspect entries are tried together, in which order, and which become dead letters. The
//! partition reader reads the records, begins the tries and ends them.

use std::collections::{BTreeMap, HashSet, VecDeque};

use tokio::time::Instant;

use crate::{
    entry::{EntryId, Position, RawEntry},
    group::ownership::Ownership,
    in_flight::InFlight,
    stream::QuarantineTry,
};

/// Number of tries into which a try is divided that a process did not survive. A death costs a restart, and a success costs a
/// transaction: more than two parts need fewer deaths to find the entry that causes them.
const PARTS: usize = 8;

/// Number of deaths of processes that tried an entry alone after which it becomes a dead letter. More than one, because a
/// process can also be killed by chance.
const MAX_DEATHS: usize = 2;

/// Entry that was delivered more than `MAX_DELIVERIES` times, and may have crashed consumers.
pub(super) struct Suspect {
    pub(super) entry: RawEntry,
    pub(super) deliveries: u64,
}

/// Next action of the quarantine.
pub(super) enum Planned {
    /// Processes died while they tried this entry alone.
    DeadLetter {
        suspect: Suspect,
        deaths: usize,
    },
    /// Nothing else may be in flight meanwhile.
    Alone(Suspect),
    Together(Vec<Suspect>),
}

impl Planned {
    fn of(suspects: Vec<Suspect>) -> Self {
        match <[Suspect; 1]>::try_from(suspects) {
            Ok([suspect]) => Self::Alone(suspect),
            Err(suspects) => Self::Together(suspects),
        }
    }
}

/// Try that has begun and whose entries are not all settled, or whose record is not removed.
struct Current {
    entries: Vec<Position>,
    is_on_record: bool,
}

/// Suspects of a partition, from their delivery until all of them are settled.
#[derive(Default)]
pub(super) struct Quarantine {
    /// Suspects without a verdict.
    suspects: Vec<Suspect>,
    /// Processes with a try on record that were no members when the records were read, and the time of that reading.
    absent: Option<(HashSet<String>, Instant)>,
    planned: VecDeque<Planned>,
    current: Option<Current>,
}

impl Quarantine {
    /// Adds suspects. Only while the quarantine is not busy.
    pub(super) fn add(&mut self, suspects: Vec<Suspect>) {
        self.suspects = suspects;
        self.absent = None;
    }

    /// Returns whether there are suspects that are not settled.
    pub(super) fn is_busy(&self) -> bool {
        !self.suspects.is_empty() || !self.planned.is_empty() || self.current.is_some()
    }

    /// Returns the suspects whose records must be read, in order. Empty while it is too early: a process that is no member may
    /// be a live one whose heartbeat is not known yet, or one that is just ending its tries.
    pub(super) fn to_judge(&self, ownership: &Ownership) -> Vec<EntryId> {
        let is_early =
            self.absent.as_ref().is_some_and(|(_, seen_at)| !ownership.knows_the_living_of(*seen_at));
        if is_early || self.current.is_some() {
            return Vec::new();
        }
        self.suspects.iter().map(|suspect| suspect.entry.at.id).collect()
    }

    /// Plans the tries of all suspects, given their records. A try counts as a death if its process is no member, was none when
    /// the try was first seen, and has not ended the try in between. If a process is seen for the first time, there is no plan
    /// yet.
    pub(super) fn judge(&mut self, records: Vec<Vec<QuarantineTry>>, ownership: &Ownership) {
        let processes = records.iter().flatten().map(|one| &one.process);
        let absent: HashSet<String> =
            processes.filter(|process| !ownership.processes.contains(*process)).cloned().collect();
        let seen_before = self.absent.take().map(|(absent, _)| absent).unwrap_or_default();
        if !absent.is_subset(&seen_before) {
            self.absent = Some((absent, Instant::now()));
            return;
        }
        let all = self.suspects.len();
        let mut by_size: BTreeMap<usize, Vec<Suspect>> = BTreeMap::new();
        for (suspect, tries) in self.suspects.drain(..).zip(records) {
            let died = || tries.iter().filter(|one| absent.contains(&one.process)).map(|one| one.entries);
            let deaths = died().filter(|entries| *entries == 1).count();
            if deaths >= MAX_DEATHS {
                self.planned.push_back(Planned::DeadLetter { suspect, deaths });
            } else {
                // A few suspects are tried alone at once.
                let size = died().map(|entries| entries / PARTS).min();
                let size = size.unwrap_or(if all <= PARTS { 1 } else { all });
                by_size.entry(size.max(1)).or_default().push(suspect);
            }
        }
        for (size, mut suspects) in by_size.into_iter().rev() {
            while !suspects.is_empty() {
                let rest = suspects.split_off(size.min(suspects.len()));
                self.planned.push_back(Planned::of(suspects));
                suspects = rest;
            }
        }
    }

    /// Takes the next action, once the current try is settled.
    pub(super) fn next(&mut self) -> Option<Planned> {
        if self.current.is_some() { None } else { self.planned.pop_front() }
    }

    /// Puts a try back that could not begin.
    pub(super) fn put_back(&mut self, suspects: Vec<Suspect>) {
        self.planned.push_front(Planned::of(suspects));
    }

    /// Drops the suspects that are not in flight. They stay pending, so that a later claim returns them.
    pub(super) fn give_up(&mut self) {
        self.suspects.clear();
        self.planned.clear();
    }

    /// Notes that a try is about to be recorded.
    pub(super) fn begin(&mut self, entries: Vec<Position>) {
        self.current = Some(Current { entries, is_on_record: true });
    }

    /// Returns whether the record of the current try should be removed: the process has survived the try, or waits for Postgres,
    /// or shuts down. Entries that Postgres does not take are survived, too.
    pub(super) fn must_end(&self, in_flight: &InFlight, is_shutdown: bool) -> bool {
        self.current.as_ref().is_some_and(|current| {
            let is_over = is_shutdown || in_flight.is_paused() || !in_flight.processes_any(&current.entries);
            current.is_on_record && is_over
        })
    }

    /// Notes that the record of the current try is removed.
    pub(super) fn ended(&mut self) {
        if let Some(current) = &mut self.current {
            current.is_on_record = false;
        }
    }

    /// Forgets the current try if it is over. Its held entries stay in flight, so that no redelivery admits them again.
    pub(super) fn release_settled(&mut self, in_flight: &InFlight) {
        self.current.take_if(|current| !current.is_on_record && !in_flight.processes_any(&current.entries));
    }

    /// Waits until the record of the current try should be removed, or until its entries are settled or held. Never returns without a
    /// current try.
    pub(super) async fn attention(&self, in_flight: &InFlight) {
        let Some(current) = &self.current else { return std::future::pending().await };
        tokio::select! {
            () = in_flight.settled_or_held(&current.entries) => {}
            () = in_flight.paused(), if current.is_on_record => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use shared::wire::partition::PartitionCount;

    use super::*;
    use crate::{
        group::{assignment::Assignment, ownership::Contact},
        stream::Paused,
        testing::position,
    };

    const MEMBER: &str = "member";

    fn ownership() -> Ownership {
        let long_ago = Instant::now().checked_sub(std::time::Duration::from_mins(1)).unwrap();
        Ownership {
            assignment: Assignment::default(),
            members: Arc::default(),
            processes: Arc::new([MEMBER.to_owned()].into()),
            contact: Some(Contact { since: long_ago, last: Instant::now() }),
            partitions: PartitionCount::new(1).unwrap(),
            paused: Paused::default(),
        }
    }

    fn suspects(seqs: impl IntoIterator<Item = u64>) -> Vec<Suspect> {
        let suspect =
            |seq| Suspect { entry: RawEntry { at: position(seq), fields: Some(Vec::new()) }, deliveries: 6 };
        seqs.into_iter().map(suspect).collect()
    }

    fn tried(tries: &[(&str, usize)]) -> Vec<QuarantineTry> {
        let one = |(process, entries): &(&str, usize)| QuarantineTry {
            process: (*process).to_owned(),
            entries: *entries,
        };
        tries.iter().map(one).collect()
    }

    /// Returns the planned actions as the numbers of their entries. A dead letter is negative.
    fn plan(quarantine: &mut Quarantine) -> Vec<Vec<i64>> {
        let seq = |suspect: &Suspect| i64::try_from(suspect.entry.at.id.seq).unwrap();
        let numbers = |planned| match planned {
            Planned::DeadLetter { suspect, .. } => vec![-seq(&suspect)],
            Planned::Alone(suspect) => vec![seq(&suspect)],
            Planned::Together(suspects) => suspects.iter().map(seq).collect(),
        };
        std::iter::from_fn(|| quarantine.next()).map(numbers).collect()
    }

    fn judged_twice(seqs: Vec<u64>, records: &[Vec<QuarantineTry>]) -> Vec<Vec<i64>> {
        let mut quarantine = Quarantine::default();
        quarantine.add(suspects(seqs));
        quarantine.judge(records.to_vec(), &ownership());
        if !quarantine.suspects.is_empty() {
            quarantine.judge(records.to_vec(), &ownership());
        }
        plan(&mut quarantine)
    }

    #[test]
    fn suspects_without_deaths_are_tried_together_and_a_few_alone() {
        let records = |n| vec![Vec::new(); n];
        assert_eq!(judged_twice((1..=3).collect(), &records(3)), [[1], [2], [3]]);
        assert_eq!(judged_twice((1..=100).collect(), &records(100)), [(1..=100).collect::<Vec<_>>()]);
    }

    #[test]
    fn only_tries_of_dead_processes_divide_a_try_and_count_as_deaths() {
        let records = [
            tried(&[("dead", 1), ("gone", 1)]),
            tried(&[("dead", 1), (MEMBER, 1)]),
            tried(&[("dead", 16), ("gone", 100)]),
            tried(&[("dead", 24), (MEMBER, 1)]),
            tried(&[("dead", 24)]),
        ];
        assert_eq!(judged_twice((1..=5).collect(), &records), [vec![-1], vec![4, 5], vec![3], vec![2]][..]);
    }

    #[test]
    fn an_absent_process_is_dead_only_if_its_try_is_still_on_record_after_a_later_heartbeat() {
        let mut quarantine = Quarantine::default();
        quarantine.add(suspects([1]));
        let before = ownership();
        quarantine.judge(vec![tried(&[("joining", 1), ("resigning", 1)])], &before);
        assert!(quarantine.to_judge(&before).is_empty(), "members are not known after the records");
        let after = ownership();
        assert_eq!(quarantine.to_judge(&after).len(), 1);
        quarantine.judge(vec![tried(&[("resigning", 1), ("another", 1)])], &after);
        assert!(quarantine.to_judge(&after).is_empty(), "another process is absent");
        quarantine.judge(vec![tried(&[])], &ownership());
        assert_eq!(plan(&mut quarantine), [[1]]);
    }

    proptest! {
        /// One entry kills each process that tries it. The others are settled, and the number of deaths is logarithmic.
        #[test]
        fn a_deadly_entry_becomes_the_only_dead_letter(n in 1..300_u64, deadly in 0..300_u64) {
            let deadly = deadly % n + 1;
            let mut left: Vec<(u64, Vec<QuarantineTry>)> = (1..=n).map(|seq| (seq, Vec::new())).collect();
            let mut deaths = 0;
            let mut dead_letters: Vec<u64> = Vec::new();
            while !left.is_empty() {
                let (seqs, records): (Vec<_>, Vec<_>) = left.iter().cloned().unzip();
                for planned in judged_twice(seqs, &records) {
                    let tried_now: Vec<u64> = planned.iter().map(|seq| seq.unsigned_abs()).collect();
                    if planned.iter().any(|seq| *seq < 0) {
                        dead_letters.extend(&tried_now);
                    } else if tried_now.contains(&deadly) {
                        deaths += 1;
                        let died = QuarantineTry { process: format!("p{deaths}"), entries: planned.len() };
                        for (_, record) in left.iter_mut().filter(|(seq, _)| tried_now.contains(seq)) {
                            record.push(died.clone());
                        }
                        break;
                    }
                    left.retain(|(seq, _)| !tried_now.contains(seq));
                }
            }
            prop_assert_eq!(dead_letters, [deadly]);
            prop_assert!(deaths <= n.ilog2() / PARTS.ilog2() + 3, "{} deaths", deaths);
        }
    }
}
