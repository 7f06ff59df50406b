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

#[test]
fn a_rejected_row_becomes_a_dead_letter_for_each_of_its_entries() {
    let bad = like(7, 42, 1);
    let entries = vec![
        entry(0, vec![like(1, 42, 0), bad]),
        entry(1, vec![like(2, 42, 0)]),
        entry(2, vec![like(7, 42, 2), like(3, 42, 0)]),
    ];
    let batch = Batch::new(entries, 5);
    let mut stored = Vec::new();
    let mut pieces = batch.pieces();
    let mut outcomes = Vec::new();
    while let Some(rows) = pieces.next_rows() {
        if rows.contains(&bad) {
            outcomes.push(pieces.rejected("no".to_owned()));
        } else {
            stored.extend(rows.iter().map(Like::user_id));
            outcomes.push(pieces.stored(rows.len() as u64));
        }
    }
    let mut batch = batch.into_committed(false).unwrap_err();
    batch.record(outcomes);
    assert_eq!(stored, [1, 2, 3]);
    assert!(batch.next_rows().is_none());
    let committed = batch.into_committed(false).unwrap();
    assert_eq!((committed.inserted(), committed.rejected()), (3, 1));
    let dead_letters: Vec<Vec<Bytes>> = committed
        .into_entries()
        .iter()
        .map(|entry| entry.dead_letters.iter().map(|dead| dead.payload().clone()).collect())
        .collect();
    let single = |like| Bytes::from(codec::encode(&[like]));
    assert_eq!(dead_letters, [vec![single(bad)], vec![], vec![single(like(7, 42, 2))]]);
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
        let mut batch = batch;
        if batch.next_rows().is_some() {
            batch.record([PieceOutcome::Stored { inserted: 0 }]);
        }
        let entries = batch.into_committed(false).unwrap().into_entries();
        let settled: Vec<Position> = entries.iter().map(|entry| entry.at).collect();
        prop_assert_eq!(settled, positions);
    }
}
