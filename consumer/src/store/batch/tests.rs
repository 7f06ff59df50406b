use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use proptest::prelude::*;
use shared::{
    redis::Incarnation,
    wire::{codec, partition::PartitionCount},
};
use tokio::sync::mpsc;

use super::*;
use crate::{
    entry::{EntryId, Position},
    store::gathering::{BatchLimits, Flush, Gathering},
};

fn entry(seq: u64, likes: Vec<Like>) -> Entry {
    let partition = PartitionCount::new(1).unwrap().of_user(1);
    let at = Position { partition, id: EntryId { ms: 1, seq }, incarnation: Incarnation::default() };
    let payload = codec::encode(&likes).into();
    Entry { at, likes, dead_letters: Vec::new(), payload, read_at: Instant::now(), producer: None }
}

fn like(user: i64, post: i64, at: i64) -> Like {
    Like::new(user.into(), post.into(), at.into()).unwrap()
}

fn limits(rows: usize) -> BatchLimits {
    BatchLimits { rows, linger: Duration::from_hours(1) }
}

#[tokio::test]
async fn a_batch_exceeds_its_row_limit_by_at_most_one_entry() {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    for seq in 0..4 {
        let user = i64::try_from(seq).unwrap() * 10;
        sender.send(entry(seq, (1..=4).map(|n| like(user + n, 1, 0)).collect())).unwrap();
    }
    let mut gathering = Gathering::new(limits(10));
    let (batch, flush) = gathering.batch(&mut receiver).await.unwrap();
    assert_eq!((batch.rows(), batch.entries.len(), flush), (12, 3, Flush::Full));
    drop(sender);
    let (batch, flush) = gathering.batch(&mut receiver).await.unwrap();
    assert_eq!((batch.rows(), flush), (4, Flush::Shutdown));
    assert!(gathering.batch(&mut receiver).await.is_none());
}

#[tokio::test]
async fn a_batch_takes_available_entries_and_waits_no_longer_than_its_linger() {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let linger = Duration::from_millis(20);
    let started = Instant::now();
    for user in 1..=2 {
        sender.send(entry(0, vec![like(user, 1, 0)])).unwrap();
    }
    let (batch, flush) =
        Gathering::new(BatchLimits { rows: 100, linger }).batch(&mut receiver).await.unwrap();
    assert_eq!((batch.rows(), flush), (2, Flush::Linger));
    assert!(started.elapsed() >= linger);
    // The linger time ended the wait, not the end of the channel.
    assert!(!sender.is_closed());
}

#[tokio::test]
async fn entries_gathered_before_a_batch_is_requested_are_in_it() {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let mut gathering = Gathering::new(limits(3));
    for user in 1..=2 {
        sender.send(entry(0, vec![like(user, 1, 0)])).unwrap();
    }
    assert!(gathering.full_batch(&mut receiver).now_or_never().is_none());
    assert!(receiver.is_empty());
    sender.send(entry(0, vec![like(3, 1, 0)])).unwrap();
    assert_eq!(gathering.full_batch(&mut receiver).now_or_never().unwrap().rows(), 3);

    sender.send(entry(0, vec![like(4, 1, 0)])).unwrap();
    drop(sender);
    assert!(gathering.full_batch(&mut receiver).now_or_never().is_none(), "the batch is not full");
    let (batch, flush) = gathering.batch(&mut receiver).await.unwrap();
    assert_eq!((batch.rows(), flush), (1, Flush::Shutdown));
}

/// Result of a pass.
struct Passed {
    committed: Committed,
    remainder: Option<Remainder>,
}

/// Makes a pass in which a statement fails if one of its rows has an obstacle.
fn pass(
    mut batch: Batch,
    obstacle_of: impl Fn(Like) -> Option<FailureClass>,
    evidence: &mut Evidence,
) -> Passed {
    while batch.next_rows(usize::MAX).is_some() || batch.retry_rejected(evidence) {
        let rows = batch.next_rows(usize::MAX).unwrap();
        let obstacle = rows.iter().find_map(|like| obstacle_of(*like));
        let result = match obstacle {
            Some(class) => Err(Obstacle { class, why: "no".to_owned() }),
            None => Ok(Stored { inserted: rows.len() as u64, discarded: 0 }),
        };
        let outcome = Outcome { rows: rows.len(), result };
        batch.record([outcome], evidence);
    }
    batch.judge(evidence);
    Passed { committed: batch.take_settled(), remainder: batch.remainder() }
}

/// Returns evidence of a table that has just taken rows.
fn recent() -> Evidence {
    let mut evidence = Evidence::default();
    evidence.inserted(1);
    evidence
}

/// Returns evidence that lets no rejection count.
fn none() -> Evidence {
    let mut evidence = Evidence::default();
    assert!(evidence.allows(evidence.allowance()));
    evidence
}

/// Returns the numbers of the entries.
fn numbers(entries: &[SettledEntry]) -> Vec<u64> {
    entries.iter().map(|entry| entry.at.id.seq).collect()
}

#[test]
fn a_rejected_row_becomes_a_dead_letter_for_each_of_its_entries() {
    let bad = like(7, 42, 1);
    let entries = vec![
        entry(0, vec![like(1, 42, 0), bad]),
        entry(1, vec![like(2, 42, 0)]),
        entry(2, vec![like(7, 42, 2), like(3, 42, 0)]),
    ];
    let rejects = |row: Like| (row == bad).then_some(FailureClass::Reject);
    let Passed { committed, remainder } = pass(Batch::new(entries, 5), rejects, &mut recent());
    assert!(remainder.is_none());
    assert_eq!(committed.tally(), Tally { inserted: 3, rejected: 1, deduplicated: 1, ..Tally::default() });
    let dead_letters: Vec<Vec<Bytes>> = committed
        .into_entries()
        .iter()
        .map(|entry| entry.dead_letters.iter().map(|dead| dead.payload().clone()).collect())
        .collect();
    let single = |like| Bytes::from(codec::encode(&[like]));
    assert_eq!(dead_letters, [vec![single(bad)], vec![], vec![single(like(7, 42, 2))]]);
}

#[test]
fn entries_without_waiting_rows_are_settled_and_the_others_keep_their_rejections() {
    let (blocked, bad) = (like(1, 42, 0), like(2, 42, 0));
    let entries = vec![
        entry(0, vec![blocked, bad]),
        entry(1, vec![like(3, 42, 0)]),
        entry(2, vec![bad]),
        entry(3, vec![blocked, like(4, 42, 0)]),
    ];
    let obstacles = |row: Like| match row.user_id() {
        1 => Some(FailureClass::Retry),
        2 => Some(FailureClass::Reject),
        _ => None,
    };
    let Passed { committed, remainder } = pass(Batch::new(entries, 6), obstacles, &mut recent());
    assert_eq!(committed.tally(), Tally { inserted: 2, rejected: 1, deduplicated: 2, ..Tally::default() });
    let settled = committed.into_entries();
    assert_eq!(numbers(&settled), [1, 2]);
    assert_eq!(settled[1].dead_letters.len(), 1);
    let Remainder { batch, obstacle } = remainder.unwrap();
    assert_eq!((batch.rows(), obstacle.class), (1, FailureClass::Retry));

    let later = pass(batch, |_| None, &mut recent());
    assert!(later.remainder.is_none());
    assert_eq!(later.committed.tally().inserted, 1);
    let settled = later.committed.into_entries();
    assert_eq!(numbers(&settled), [0, 3]);
    assert_eq!((settled[0].dead_letters.len(), settled[1].dead_letters.len()), (1, 0));
}

#[test]
fn rejections_that_do_not_count_wait() {
    let entries = vec![entry(0, vec![like(1, 42, 0)]), entry(1, vec![like(2, 42, 0)])];
    let Passed { committed, remainder } =
        pass(Batch::new(entries, 2), |_| Some(FailureClass::Reject), &mut none());
    assert!(committed.is_empty() && committed.tally() == Tally::default());
    let Remainder { batch, obstacle } = remainder.unwrap();
    assert_eq!((batch.rows(), obstacle.class), (2, FailureClass::Reject));
}

#[test]
fn a_row_is_rejected_by_two_rejections_with_an_insertion_in_between() {
    let entries = vec![entry(0, (1..=20).map(|user| like(user, 42, 0)).collect())];
    let evidence = &mut none();
    // The table begins to reject rows after the first half.
    let rejects_half = |row: Like| (row.user_id() > 10).then_some(FailureClass::Reject);
    let Passed { committed, remainder } = pass(Batch::new(entries, 20), rejects_half, evidence);
    assert_eq!((committed.tally().inserted, committed.tally().rejected), (10, 10), "few rows need no proof");

    let entries = |seq, users: std::ops::RangeInclusive<i64>| {
        vec![entry(seq, users.map(|user| like(user, 42, 0)).collect())]
    };
    assert!(remainder.is_none());
    let evidence = &mut none();
    let rejects_all = |_| Some(FailureClass::Reject);
    let waiting = pass(Batch::new(entries(1, 21..=60), 40), rejects_all, evidence).remainder.unwrap();
    let waiting = pass(waiting.batch, rejects_all, evidence).remainder.unwrap();
    assert_eq!(waiting.batch.rows(), 40, "nothing was inserted in between");
    // It takes other rows again, and is fixed for all but one of those that wait.
    evidence.inserted(1);
    let rejects_one = |row: Like| (row.user_id() == 33).then_some(FailureClass::Reject);
    let Passed { committed, remainder } = pass(waiting.batch, rejects_one, evidence);
    assert!(remainder.is_none());
    assert_eq!((committed.tally().inserted, committed.tally().rejected), (39, 1));
}

#[test]
fn settled_entries_can_be_taken_before_every_row_was_tried() {
    let entries = (0..4).map(|seq| entry(seq, vec![like(1 + i64::try_from(seq).unwrap(), 42, 0)])).collect();
    let mut batch = Batch::new(entries, 4);
    let stored = |rows| Outcome { rows, result: Ok(Stored { inserted: rows as u64, discarded: 0 }) };
    let blocked = || Obstacle { class: FailureClass::Retry, why: String::new() };
    let evidence = &mut none();
    batch.record([Outcome { rows: 1, result: Err(blocked()) }, stored(2)], evidence);
    let taken = batch.take_settled();
    assert_eq!(taken.tally().inserted, 2);
    assert_eq!(numbers(&taken.into_entries()), [1, 2]);
    batch.record([stored(1)], evidence);
    let taken = batch.take_settled();
    assert_eq!(taken.tally().inserted, 1);
    assert_eq!(numbers(&taken.into_entries()), [3]);
    assert_eq!(batch.remainder().unwrap().batch.entries(), 1);
}

#[test]
fn rows_of_a_later_pass_are_tried_in_key_order_and_those_without_a_turn_first() {
    let rows = |rows: &[(i64, i64)]| rows.iter().map(|(user, at)| like(*user, 42, *at)).collect();
    let mut batch = Batch::new(vec![entry(0, rows(&[(2, 5), (3, 5), (4, 5), (5, 5)]))], 4);
    for rows in [4, 2, 1] {
        let obstacle = Obstacle { class: FailureClass::Retry, why: String::new() };
        batch.record([Outcome { rows, result: Err(obstacle) }], &mut none());
    }
    let committed = batch.take_settled();
    assert!(committed.is_empty());
    let runs = |batch: &Batch| {
        let (first, second) = batch.rows.split_at(batch.first_run);
        [first, second]
            .map(|run| run.iter().map(|like| (like.user_id(), like.created_at_us())).collect::<Vec<_>>())
    };
    let held = batch.remainder().unwrap().batch;
    assert_eq!(runs(&held), [vec![(3, 5), (4, 5), (5, 5)], vec![(2, 5)]]);
    assert_eq!(held.next_rows(usize::MAX).unwrap().len(), 3, "no statement spans both runs");

    let other = entry(1, rows(&[(1, 9), (4, 1), (6, 9)]));
    let blocked = |_| Some(FailureClass::Retry);
    let other = pass(Batch::new(vec![other], 3), blocked, &mut none()).remainder.unwrap().batch;
    let other = pass(other, blocked, &mut none()).remainder.unwrap().batch;
    let mut merged = held.merge(other);
    assert_eq!(runs(&merged), [vec![(3, 5), (5, 5)], vec![(1, 9), (2, 5), (4, 1), (6, 9)]]);
    assert_eq!((merged.likes(), merged.entries()), (7, 2));
    assert_eq!(merged.passes(), 2, "no row starts again with little time");
    assert_eq!(merged.take_settled().tally().deduplicated, 1);
}

#[test]
fn entries_of_other_partitions_are_split_off_with_the_rows_that_only_they_have() {
    let partitions: Vec<_> = PartitionCount::new(2).unwrap().partitions().collect();
    let rows = |users: &[i64]| users.iter().map(|user| like(*user, 42, 0)).collect();
    let entries = [(0, rows(&[1, 2])), (1, rows(&[2, 3, 4])), (2, rows(&[5]))].map(|(seq, likes)| {
        let mut entry = entry(seq, likes);
        entry.at.partition = partitions[usize::from(seq == 1)];
        entry
    });
    let blocked = |like: Like| (like.user_id() != 4).then_some(FailureClass::Retry);
    let mut held = pass(Batch::new(entries.into(), 6), blocked, &mut none()).remainder.unwrap().batch;
    assert!(held.split_off_others(&partitions).is_none());
    let others = held.split_off_others(&partitions[..1]).unwrap();
    assert_eq!((others.entries(), others.rows()), (1, 1), "row 4 is stored, row 2 is kept");
    assert_eq!((held.entries(), held.rows(), held.passes()), (2, 3, 1));
    let later = pass(held, |_| None, &mut none());
    assert!(later.remainder.is_none());
    assert_eq!(numbers(&later.committed.into_entries()), [0, 2]);
}

#[test]
fn a_row_that_waits_keeps_no_verdict_of_another_batch() {
    let rejects_first = |counts| {
        move |entries| {
            let class =
                |like: Like| if like.user_id() == 1 { FailureClass::Reject } else { FailureClass::Retry };
            let evidence = &mut if counts { recent() } else { none() };
            pass(entries, |like| Some(class(like)), evidence).remainder.unwrap().batch
        }
    };
    let rejected = rejects_first(true)(Batch::new(vec![entry(0, vec![like(1, 42, 0), like(2, 42, 0)])], 2));
    let waiting = rejects_first(false)(Batch::new(vec![entry(1, vec![like(1, 42, 0)])], 1));
    let later = pass(rejected.merge(waiting), |_| None, &mut none());
    let settled = later.committed.into_entries();
    assert_eq!(numbers(&settled), [0, 1]);
    assert!(settled.iter().all(|entry| entry.dead_letters.is_empty()));
}

proptest! {
    #[test]
    fn rows_are_distinct_pairs_in_key_order_with_the_earliest_time(
        entries in prop::collection::vec(prop::collection::vec((1..6_i64, 1..6_i64, 0..100_i64), 0..10), 1..20),
    ) {
        let mut earliest = std::collections::BTreeMap::new();
        for &(user, post, at) in entries.iter().flatten() {
            earliest.entry((post, user)).and_modify(|t: &mut i64| *t = at.min(*t)).or_insert(at);
        }
        let entries: Vec<Entry> = entries
            .into_iter()
            .zip(0..)
            .map(|(likes, seq)| entry(seq, likes.into_iter().map(|(u, p, t)| like(u, p, t)).collect()))
            .collect();
        let likes = entries.iter().map(|entry| entry.likes.len()).sum();
        let positions: Vec<Position> = entries.iter().map(|entry| entry.at).collect();

        let batch = Batch::new(entries, likes);
        let rows: Vec<_> = batch.rows.iter().map(|l| ((l.post_id(), l.user_id()), l.created_at_us())).collect();
        prop_assert_eq!(rows, earliest.into_iter().collect::<Vec<_>>());
        let entries = pass(batch, |_| None, &mut none()).committed.into_entries();
        let settled: Vec<Position> = entries.iter().map(|entry| entry.at).collect();
        prop_assert_eq!(settled, positions);
    }

    /// Each row has a verdict, which changes between passes: 0 stores, 1 and 2 obstruct, 3 rejects.
    #[test]
    fn every_row_is_stored_or_rejected_by_a_verdict_about_itself_or_waits(
        verdicts in prop::collection::vec(prop::collection::vec(0..4_u8, 3), 1..100),
        per_entry in 1..7_usize,
    ) {
        let rows: Vec<Like> = (1..).zip(&verdicts).map(|(user, _)| like(user, 42, 0)).collect();
        let entries: Vec<Entry> =
            (0..).zip(rows.chunks(per_entry)).map(|(seq, rows)| entry(seq, rows.to_vec())).collect();
        let all = entries.len();
        let mut batch = Some(Batch::new(entries, rows.len()));
        let (mut settled, mut dead, mut stored) = (Vec::new(), 0, 0);
        let mut turn = 0;
        while turn < 3
            && let Some(current) = batch.take()
        {
            let verdict = |row: Like| {
                let row = usize::try_from(row.user_id()).unwrap() - 1;
                match verdicts[row].get(turn).copied().unwrap_or_default() {
                    0 => None,
                    3 => Some(FailureClass::Reject),
                    _ => Some(FailureClass::Retry),
                }
            };
            let Passed { committed, remainder } = pass(current, verdict, &mut recent());
            stored += committed.tally().inserted;
            dead += committed.tally().rejected;
            settled.extend(numbers(&committed.into_entries()));
            turn += 1;
            batch = remainder.map(|remainder| remainder.batch);
        }
        // The first verdict about a row that is not an obstacle decides.
        let first = |row: &Vec<u8>| row.iter().copied().find(|verdict| matches!(verdict, 0 | 3));
        let count = |wanted| verdicts.iter().filter(|row| first(row) == wanted).count() as u64;
        prop_assert_eq!((stored, dead), (count(Some(0)), count(Some(3))));
        let waiting = batch.map_or(0, |batch| batch.rows()) as u64;
        prop_assert_eq!(waiting, count(None));
        settled.sort_unstable();
        let decided = |entry: &[Vec<u8>]| entry.iter().all(|row| first(row).is_some());
        let expected: Vec<u64> =
            (0..).zip(verdicts.chunks(per_entry)).filter(|(_, rows)| decided(rows)).map(|(seq, _)| seq).collect();
        prop_assert_eq!(&settled, &expected);
        prop_assert!(settled.len() <= all);
    }
}
