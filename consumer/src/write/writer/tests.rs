use std::collections::HashSet;

use futures_util::FutureExt;
use shared::{
    runtime::admin::Health,
    telemetry::spans::Tracing,
    wire::{
        codec,
        dead_letter::{DeadLetter, DeadLike, Reason},
        partition::{Partition, PartitionCount},
    },
};
use tokio::{task::JoinHandle, time::Instant};

use super::*;
use crate::{
    group::assignment::Assignment,
    in_flight::{InFlight, InFlightLimits},
    store::{error::Phase, fake::FakeStore},
    stream::fake::{FakeGroup, Operation},
    testing::{self, Journal, failing, like, partition, pass, position, settle},
};

const SECOND: Duration = Duration::from_secs(1);
const IN_FLIGHT: InFlightLimits = InFlightLimits { rows: 100, bytes: 1_000 };
const LIMITS: BatchLimits = BatchLimits { rows: 2, linger: Duration::from_millis(10) };

/// Running writer between its channel, a fake store and a fake group.
struct Running {
    journal: Journal,
    store: FakeStore,
    group: FakeGroup,
    in_flight: Arc<InFlight>,
    health: Health,
    entries: mpsc::UnboundedSender<Entry>,
    ownership: watch::Sender<Ownership>,
    run: JoinHandle<()>,
}

fn ownership(own: &[Partition]) -> Ownership {
    Ownership {
        assignment: Assignment { own: own.to_vec(), orphans: Vec::new() },
        members: Arc::default(),
        processes: Arc::default(),
        contact: None,
        partitions: PartitionCount::new(1).unwrap(),
        paused: crate::stream::Paused::default(),
    }
}

fn start(limits: BatchLimits) -> Running {
    let journal = Journal::default();
    let store = FakeStore::new(journal.clone());
    let group = FakeGroup::new(journal.clone());
    let in_flight = Arc::new(InFlight::default());
    let health = Health::default();
    let check = health.check("writer");
    check.pass();
    let ownership = watch::Sender::new(ownership(&[partition()]));
    let writer = Writer {
        store: store.clone(),
        limits,
        acknowledger: Acknowledger {
            streams: group.clone(),
            in_flight: Arc::clone(&in_flight),
            commit_times: Arc::default(),
            metrics: testing::metrics(),
            tracing: BatchTracing::new(Tracing::default(), "likes:{partition}", "group", "a"),
            log_rates: Arc::default(),
        },
        check,
        ownership: ownership.subscribe(),
        in_flight_limits: IN_FLIGHT,
    };
    let (entries, receiver) = mpsc::unbounded_channel();
    let run = tokio::spawn(writer.run(receiver));
    Running { journal, store, group, in_flight, health, entries, ownership, run }
}

impl Running {
    /// Delivers an entry with one like, as a partition reader does.
    fn send(&self, seq: u64) {
        self.send_with(seq, Vec::new());
    }

    fn send_with(&self, seq: u64, dead_letters: Vec<DeadLetter>) {
        self.deliver(Entry {
            at: position(seq),
            likes: vec![like(seq)],
            dead_letters,
            payload: codec::encode(&[like(seq)]).into(),
            read_at: Instant::now(),
            producer: None,
        });
    }

    /// Delivers an entry that cannot be decoded.
    fn send_undecodable(&self, seq: u64) {
        let dead_letter = DeadLetter::of_entry(Reason::Undecodable, String::new(), &[]);
        self.deliver(Entry::discarded(position(seq), dead_letter, Instant::now()));
    }

    fn deliver(&self, entry: Entry) {
        let seq = entry.at.id.seq;
        self.group.append_pending(seq, "a", 1);
        assert!(self.in_flight.admit(entry.at, 1), "entry {seq} is in flight");
        self.entries.send(entry).unwrap();
    }

    /// Closes the channel, waits until the writer ends, and returns all recorded calls.
    async fn finish(self) -> Vec<String> {
        drop(self.entries);
        self.run.await.unwrap();
        assert!(
            self.in_flight.idle().now_or_never().is_some() && self.in_flight.is_empty(),
            "entries are in flight"
        );
        assert_eq!(self.group.own_pending(), [0; 0], "entries are pending");
        self.journal.lines()
    }

    fn has_permit(&self) -> bool {
        self.in_flight.read_permit(IN_FLIGHT).now_or_never().is_some()
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_whose_commit_reply_was_lost_is_written_again_before_ack() {
    let writer = start(LIMITS);
    writer.store.lose_reply();
    writer.send(1);
    writer.send(2);
    pass(SECOND).await;
    assert_eq!(writer.store.stored(), [1, 2]);
    assert_eq!(
        writer.in_flight.read_permit(IN_FLIGHT).now_or_never().unwrap().left.rows,
        IN_FLIGHT.rows,
        "released once"
    );
    assert_eq!(writer.finish().await, ["Write 1 2: reply lost", "Write 1 2", "Ack 1 2"]);
}

#[tokio::test(start_paused = true)]
async fn unacknowledged_entries_are_written_again_on_redelivery() {
    let writer = start(LIMITS);
    writer.group.fail(Operation::Ack);
    writer.send(1);
    pass(SECOND).await;
    assert!(!writer.in_flight.contains(position(1)));
    assert_eq!(writer.group.own_pending(), [1]);
    writer.send(1);
    pass(SECOND).await;
    writer.send(2);
    let calls = ["Write 1", "Ack 1: not executed", "Write 1", "Ack 1", "Write 2", "Ack 2"];
    assert_eq!(writer.finish().await, calls);
}

#[tokio::test(start_paused = true)]
async fn an_entry_whose_dead_letters_are_not_appended_is_not_stored() {
    let writer = start(LIMITS);
    writer.group.fail(Operation::Ack);
    writer.send(1);
    let bad = DeadLike { index: 1, why: "bad", bytes: b"x" };
    writer.send_with(2, DeadLetter::of_likes(Reason::InvalidLike, [bad]));
    pass(SECOND).await;
    assert_eq!(writer.group.own_pending(), [1, 2]);
    assert_eq!(writer.in_flight.stored_of(&[position(1), position(2)]), HashSet::from([position(1)]));
}

#[tokio::test(start_paused = true)]
async fn an_acknowledgement_without_a_reply_releases_its_entries() {
    let writer = start(LIMITS);
    writer.group.lose_reply(Operation::Ack);
    writer.send(1);
    pass(SECOND).await;
    assert!(!writer.in_flight.contains(position(1)));
    assert_eq!(writer.finish().await, ["Write 1", "Ack 1: reply lost"]);
}

#[tokio::test(start_paused = true)]
async fn reading_is_paused_from_a_failure_to_the_next_success() {
    let writer = start(LIMITS);
    writer.store.slow(SECOND);
    writer.store.fail(WriteError::Timeout(Phase::Rows));
    writer.store.fail(WriteError::Answer);
    writer.send(1);
    pass(SECOND / 2).await;
    assert!(writer.has_permit());
    for _ in 0..3 {
        pass(SECOND * 3 / 4).await;
        assert!(!writer.has_permit());
        let error = failing(&writer.health, "writer").unwrap();
        assert!(error.starts_with("Postgres did not"), "{error}");
    }
    pass(SECOND).await;
    assert!(writer.has_permit());
    assert_eq!(writer.in_flight.stuck_for(), Duration::ZERO);
    assert_eq!(failing(&writer.health, "writer"), None);
    assert_eq!(writer.finish().await, ["Write 1: not stored", "Write 1: not stored", "Write 1", "Ack 1"]);
}

/// Returns the delays between the attempts of a batch that fails three times, and the readiness detail.
async fn waits_after(error: fn() -> WriteError) -> (Vec<Duration>, Option<String>) {
    let writer = start(LIMITS);
    (0..3).for_each(|_| writer.store.fail(error()));
    writer.send(1);
    settle().await;
    pass(LIMITS.linger).await;
    let reason = failing(&writer.health, "writer");
    let journal = writer.journal.clone();
    writer.finish().await;
    let mut attempts = journal.times("Write 1: not stored");
    attempts.extend(journal.times("Write 1"));
    (attempts.windows(2).map(|pair| pair[1] - pair[0]).collect(), reason)
}

#[tokio::test(start_paused = true)]
async fn a_halting_error_is_retried_slowly_and_fails_the_check() {
    let (waits, reason) = waits_after(|| WriteError::SharedSession(None)).await;
    assert!((SECOND / 2..=SECOND * 2).contains(&waits[0]), "{waits:?}");
    assert!(waits[2] >= SECOND * 2, "{waits:?}");
    let reason = reason.unwrap();
    assert_eq!(
        reason,
        "writes to Postgres are halted: a connection pooler shares the sessions of Postgres; set \
         POSTGRES_POOLING=transaction on all consumers behind it"
    );
}

#[tokio::test(start_paused = true)]
async fn a_transient_error_is_retried_quickly_and_fails_the_check() {
    let (waits, reason) = waits_after(|| WriteError::Timeout(Phase::Rows)).await;
    assert!(waits[0] <= SECOND / 20 && waits[2] <= SECOND / 4, "{waits:?}");
    assert!(waits[2] > waits[0], "{waits:?}");
    assert_eq!(reason.as_deref(), Some("Postgres did not respond within WRITE_TIMEOUT"));
}

#[tokio::test(start_paused = true)]
async fn shutdown_during_a_retry_waits_until_the_batch_is_acknowledged() {
    let writer = start(LIMITS);
    (0..20).for_each(|_| writer.store.fail(WriteError::Timeout(Phase::Rows)));
    writer.send(1);
    pass(SECOND).await;
    let calls = writer.finish().await;
    assert_eq!(calls.len(), 22);
    assert_eq!(calls[20..], ["Write 1", "Ack 1"]);
}

#[tokio::test(start_paused = true)]
async fn shutdown_during_an_acknowledgement_waits_for_it() {
    let writer = start(LIMITS);
    writer.group.slow(Operation::Ack, SECOND);
    writer.send(1);
    pass(SECOND / 2).await;
    assert!(writer.in_flight.contains(position(1)));
    let in_flight = Arc::clone(&writer.in_flight);
    assert_eq!(writer.finish().await, ["Write 1", "Ack 1"]);
    assert!(!in_flight.contains(position(1)));
}

#[tokio::test(start_paused = true)]
async fn shutdown_while_a_batch_is_gathered_writes_it_immediately() {
    let writer = start(BatchLimits { linger: SECOND * 3_600, ..LIMITS });
    let started = Instant::now();
    writer.send(1);
    settle().await;
    assert_eq!(writer.journal.lines(), [""; 0]);
    assert_eq!(writer.finish().await, ["Write 1", "Ack 1"]);
    assert!(started.elapsed() < SECOND);
}

#[tokio::test(start_paused = true)]
async fn shutdown_during_a_write_also_writes_the_entries_gathered_meanwhile() {
    let writer = start(BatchLimits { rows: 3, ..LIMITS });
    writer.store.slow(SECOND);
    writer.send(1);
    pass(SECOND / 2).await;
    writer.send(2);
    writer.send(3);
    settle().await;
    assert_eq!(writer.finish().await, ["Write 1", "Ack 1", "Write 2 3", "Ack 2 3"]);
}

#[tokio::test(start_paused = true)]
async fn the_next_batch_is_gathered_during_a_write_and_written_when_full() {
    let writer = start(BatchLimits { linger: SECOND * 3_600, ..LIMITS });
    writer.store.slow(SECOND);
    let started = Instant::now();
    (1..=5).for_each(|seq| writer.send(seq));
    pass(SECOND * 2).await;
    assert_eq!(writer.journal.times("Write 1 2"), [started + SECOND]);
    assert_eq!(writer.journal.times("Write 3 4"), [started + SECOND * 2], "the second batch did not wait");
    pass(SECOND * 60).await;
    assert!(writer.in_flight.contains(position(5)), "the third batch is not full");
    assert_eq!(writer.finish().await[4..], ["Write 5", "Ack 5"]);
}

#[tokio::test(start_paused = true)]
async fn at_most_one_batch_is_written_during_an_acknowledgement() {
    let writer = start(LIMITS);
    writer.group.slow(Operation::Ack, SECOND * 10);
    for seq in 1..=3 {
        writer.send(seq);
        pass(SECOND).await;
    }
    assert_eq!(writer.journal.lines(), ["Write 1", "Ack 1", "Write 2", "Ack 2"]);
    assert_eq!(writer.finish().await[4..], ["Write 3", "Ack 3"]);
}

#[tokio::test(start_paused = true)]
async fn a_panic_during_an_acknowledgement_ends_the_writer_without_another_batch() {
    let writer = start(LIMITS);
    writer.group.panic(Operation::Ack);
    writer.send(1);
    pass(SECOND).await;
    assert!(writer.run.is_finished());
    assert!(writer.run.await.unwrap_err().is_panic());
}

#[tokio::test(start_paused = true)]
async fn a_panic_during_the_last_acknowledgement_ends_the_writer() {
    let writer = start(LIMITS);
    writer.group.slow(Operation::Ack, SECOND);
    writer.group.panic(Operation::Ack);
    writer.send(1);
    pass(SECOND / 2).await;
    drop(writer.entries);
    assert!(writer.run.await.unwrap_err().is_panic());
}

#[tokio::test(start_paused = true)]
async fn entries_read_before_a_failover_of_redis_are_stored_and_not_acknowledged() {
    let writer = start(LIMITS);
    writer.store.slow(SECOND);
    writer.send(1);
    pass(SECOND / 2).await;
    writer.group.fail_over_without(1);
    // The new primary assigns the id again, and delivers it to another consumer.
    writer.group.append_pending(1, "b", 1);
    pass(SECOND * 2).await;
    assert_eq!(writer.journal.lines(), ["Write 1", "Ack 1"]);
    assert!(!writer.in_flight.contains(position(1)));
    assert!(
        writer.in_flight.take_redelivery(partition()),
        "an entry that the replica has is recovered at once"
    );
    assert_eq!(writer.group.deliveries(position(1)).await.unwrap(), 1, "still pending");
}

#[tokio::test(start_paused = true)]
async fn a_waiting_row_does_not_hold_up_other_rows() {
    let writer = start(LIMITS);
    writer.store.obstruct(1, FailureClass::Retry);
    writer.send(1);
    writer.send(2);
    pass(SECOND / 100).await;
    assert_eq!(writer.journal.lines(), ["Write 1 2", "Ack 2"]);
    writer.send(3);
    pass(SECOND * 60).await;
    assert!(writer.journal.lines().contains(&"Ack 3".to_owned()));
    assert!(writer.has_permit() && writer.in_flight.contains(position(1)));
    assert_eq!(failing(&writer.health, "writer"), None, "Postgres stores other rows");
    let tries = writer.journal.times("Write 1").len();
    assert!((12..30).contains(&tries), "{tries}");
    writer.store.take(1);
    assert_eq!(writer.finish().await.last().unwrap(), "Ack 1");
}

#[tokio::test(start_paused = true)]
async fn waiting_rows_of_several_batches_are_tried_together() {
    let writer = start(LIMITS);
    for seq in [1, 3] {
        writer.store.obstruct(seq, FailureClass::Retry);
    }
    (1..=4).for_each(|seq| writer.send(seq));
    pass(SECOND).await;
    assert_eq!(writer.store.stored(), [2, 4]);
    writer.store.take(1);
    writer.store.take(3);
    let calls = writer.finish().await;
    assert_eq!(calls[calls.len() - 2..], ["Write 1 3", "Ack 1 3"]);
}

#[tokio::test(start_paused = true)]
async fn a_table_that_rejects_every_row_halts_without_dead_letters() {
    let writer = start(BatchLimits { rows: 20, ..LIMITS });
    for user in 1..=40 {
        writer.store.obstruct(user, FailureClass::Reject);
    }
    (1..=40).for_each(|seq| writer.send(seq));
    pass(SECOND * 60).await;
    let reason = failing(&writer.health, "writer").unwrap();
    assert!(reason.starts_with("writes to Postgres are halted: the table rejects every row: "), "{reason}");
    assert!(writer.journal.lines().iter().all(|call| !call.starts_with("Ack")));
    assert!(writer.has_permit(), "another row may show that the table takes rows");
    assert!(writer.in_flight.stuck_for() > SECOND * 30, "other members may store its rows");

    (1..=39).for_each(|user| writer.store.take(user));
    pass(SECOND * 20).await;
    assert_eq!(writer.store.stored().len(), 39);
    assert_eq!(failing(&writer.health, "writer"), None);
    assert_eq!(writer.in_flight.stuck_for(), Duration::ZERO);
    writer.finish().await;
}

#[tokio::test(start_paused = true)]
async fn only_rows_that_the_table_takes_end_a_stall() {
    let writer = start(BatchLimits { rows: 20, ..LIMITS });
    (1..=21).for_each(|user| writer.store.obstruct(user, FailureClass::Reject));
    (1..=20).for_each(|seq| writer.send(seq));
    pass(SECOND).await;
    assert!(failing(&writer.health, "writer").is_some());
    writer.send_undecodable(50);
    pass(SECOND).await;
    assert!(failing(&writer.health, "writer").is_some(), "an entry without rows");
    writer.send(21);
    pass(SECOND).await;
    assert_eq!(writer.group.own_pending().len(), 20, "user 21 has become a dead letter");
    assert!(failing(&writer.health, "writer").is_some());
    assert!(writer.in_flight.stuck_for() > SECOND * 2);
    writer.send(22);
    pass(SECOND).await;
    assert_eq!(failing(&writer.health, "writer"), None);
    writer.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_beside_held_rows_begins_no_stall() {
    let writer = start(BatchLimits { rows: 1, ..LIMITS });
    writer.store.obstruct(3, FailureClass::Reject);
    writer.send(1);
    settle().await;
    writer.store.obstruct(2, FailureClass::Retry);
    writer.send(2);
    settle().await;
    writer.send(4);
    pass(SECOND).await;
    assert_eq!(failing(&writer.health, "writer"), None);
    writer.send(3);
    pass(SECOND).await;
    assert_eq!(writer.group.own_pending(), [2]);
    assert_eq!(failing(&writer.health, "writer"), None);
    writer.store.take(2);
    writer.finish().await;
}

#[tokio::test(start_paused = true)]
async fn held_entries_of_lost_partitions_are_left_to_their_owner() {
    let writer = start(BatchLimits { rows: 20, ..LIMITS });
    (1..=20).for_each(|user| writer.store.obstruct(user, FailureClass::Reject));
    (1..=20).for_each(|seq| writer.send(seq));
    pass(SECOND * 10).await;
    assert!(writer.in_flight.stuck_for() > SECOND * 9);
    // A stuck consumer loses its partitions.
    writer.ownership.send_replace(ownership(&[]));
    pass(SECOND * 20).await;
    assert!(writer.in_flight.is_empty());
    assert_eq!(writer.group.own_pending().len(), 20);
    assert_eq!(writer.in_flight.stuck_for(), Duration::ZERO, "it may own partitions again");
    assert_eq!(failing(&writer.health, "writer"), None);

    let before = writer.journal.lines().len();
    (1..=20).for_each(|user| writer.store.take(user));
    pass(SECOND * 60).await;
    assert_eq!(writer.journal.lines().len(), before, "the owner decides about these rows");
}

#[tokio::test(start_paused = true)]
async fn rejected_rows_never_fill_the_in_flight_limit() {
    let writer = start(BatchLimits { rows: 20, ..LIMITS });
    (1..=120).for_each(|user| writer.store.obstruct(user, FailureClass::Reject));
    (1..=120).for_each(|seq| writer.send(seq));
    pass(SECOND).await;
    assert_eq!(writer.group.own_pending().len(), 120);
    assert!(writer.has_permit(), "another row may show that the table takes rows");
    assert!(!writer.in_flight.contains(position(120)), "its entry stays pending");
    let reason = failing(&writer.health, "writer").unwrap();
    assert!(reason.contains("the table rejects every row"), "{reason}");
    writer.send(121);
    pass(SECOND).await;
    assert_eq!(writer.group.own_pending(), (81..=120).collect::<Vec<_>>());
    assert!(writer.in_flight.is_empty());
    assert_eq!(failing(&writer.health, "writer"), None);
}

#[tokio::test(start_paused = true)]
async fn rejections_count_as_soon_as_the_table_takes_another_row() {
    let writer = start(BatchLimits { rows: 20, ..LIMITS });
    for user in 1..=20 {
        writer.store.obstruct(user, FailureClass::Reject);
    }
    (1..=20).for_each(|seq| writer.send(seq));
    pass(SECOND * 30).await;
    assert_eq!(writer.group.own_pending().len(), 20);
    writer.send(21);
    pass(SECOND / 10).await;
    assert_eq!(writer.group.own_pending(), [0; 0]);
    assert_eq!(failing(&writer.health, "writer"), None);
    writer.finish().await;
}

#[tokio::test(start_paused = true)]
async fn entries_are_acknowledged_while_the_rest_of_their_batch_is_written() {
    let writer = start(BatchLimits { rows: 4, ..LIMITS });
    writer.store.write_in_parts();
    writer.store.slow(SECOND);
    writer.store.obstruct(4, FailureClass::Retry);
    (1..=4).for_each(|seq| writer.send(seq));
    pass(SECOND * 9 / 2).await;
    let calls = ["Write 1 2 3 4", "Write 1 2", "Ack 1 2", "Write 3 4", "Write 3", "Ack 3"];
    assert_eq!(writer.journal.lines(), calls);
    let acked = writer.journal.times("Ack 1 2")[0];
    assert_eq!(writer.journal.times("Write 3 4")[0] - acked, SECOND, "during the next write");
    writer.store.take(4);
    assert_eq!(writer.finish().await.last().unwrap(), "Ack 4");
}

#[tokio::test(start_paused = true)]
async fn held_rows_that_fill_the_in_flight_limit_are_reported_and_make_the_consumer_stuck() {
    let writer = start(BatchLimits { rows: 101, ..LIMITS });
    for user in 1..=100 {
        writer.store.obstruct(user, FailureClass::Retry);
    }
    (1..=101).for_each(|seq| writer.send(seq));
    pass(SECOND * 10).await;
    assert_eq!(writer.store.stored(), [101]);
    assert!(!writer.has_permit());
    let reason = failing(&writer.health, "writer").unwrap();
    assert_eq!(reason, "held rows fill the in-flight limit: obstructed");
    assert!(writer.in_flight.stuck_for() > SECOND * 9);
    writer.store.take(1);
    pass(SECOND * 10).await;
    assert_eq!(failing(&writer.health, "writer"), None);
    assert_eq!(writer.in_flight.stuck_for(), Duration::ZERO);
    (1..=100).for_each(|user| writer.store.take(user));
    writer.finish().await;
}

/// Starts a writer with three held entries, whose rows the table takes in parts from then on.
async fn start_with_held_entries() -> Running {
    let writer = start(BatchLimits { rows: 3, ..LIMITS });
    (1..=3).for_each(|user| writer.store.obstruct(user, FailureClass::Retry));
    (1..=3).for_each(|seq| writer.send(seq));
    settle().await;
    writer.store.write_in_parts();
    for user in [1, 3] {
        writer.store.take(user);
    }
    writer
}

#[tokio::test(start_paused = true)]
async fn nothing_waits_for_held_entries_while_a_pass_over_them_goes_on() {
    let writer = start_with_held_entries().await;
    let is_drained = || writer.in_flight.drained(partition()).now_or_never().is_some();
    assert!(is_drained());
    writer.store.slow(SECOND);
    // Parts: all rows, row 1, both others.
    pass(SECOND * 5 / 2).await;
    assert_eq!(writer.journal.lines().last().unwrap(), "Ack 1");
    assert!(is_drained(), "the others are held still");
    (1..=3).for_each(|user| writer.store.take(user));
    writer.finish().await;
}

#[tokio::test(start_paused = true)]
async fn the_last_pass_goes_on_until_every_row_was_tried() {
    let writer = start_with_held_entries().await;
    let Running { group, in_flight, store, entries, run, .. } = writer;
    drop(entries);
    run.await.unwrap();
    assert_eq!((store.stored(), group.own_pending()), (vec![1, 3], vec![2]));
    assert!(in_flight.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_failing_pass_over_held_rows_ends_with_the_shutdown() {
    let writer = start_with_held_entries().await;
    (0..1_000).for_each(|_| writer.store.fail(WriteError::Answer));
    pass(SECOND * 60).await;
    let Running { group, in_flight, entries, run, .. } = writer;
    let started = Instant::now();
    drop(entries);
    run.await.unwrap();
    assert!(started.elapsed() < SECOND * 6, "{:?}", started.elapsed());
    assert_eq!(group.own_pending(), [1, 2, 3]);
    assert!(in_flight.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_pass_over_held_rows_that_ends_during_the_shutdown_is_the_last_one() {
    let writer = start(BatchLimits { rows: 1, ..LIMITS });
    writer.store.obstruct(1, FailureClass::Retry);
    writer.send(1);
    settle().await;
    writer.store.slow(SECOND * 5);
    pass(SECOND).await;
    let Running { journal, entries, run, .. } = writer;
    let before = journal.lines().len();
    drop(entries);
    run.await.unwrap();
    assert_eq!(journal.lines()[before..], ["Write 1"]);
}

/// Shuts down with one held entry, of user 1, and returns the last calls.
async fn shut_down_with_a_held_entry(prepare: impl FnOnce(&FakeStore)) -> Vec<String> {
    let writer = start(LIMITS);
    writer.store.obstruct(1, FailureClass::Retry);
    writer.send(1);
    writer.send(2);
    pass(SECOND * 60).await;
    prepare(&writer.store);
    let Running { journal, group, in_flight, entries, run, .. } = writer;
    let (before, started) = (journal.lines().len(), Instant::now());
    drop(entries);
    run.await.unwrap();
    assert!(started.elapsed() < SECOND);
    assert!(in_flight.is_empty());
    assert_eq!(group.own_pending().len(), usize::from(!journal.lines().contains(&"Ack 1".to_owned())));
    journal.lines().split_off(before)
}

#[tokio::test(start_paused = true)]
async fn shutdown_tries_held_rows_once_more_and_leaves_the_rest_pending() {
    assert_eq!(shut_down_with_a_held_entry(|_| {}).await, ["Write 1"]);
    assert_eq!(shut_down_with_a_held_entry(|store| store.take(1)).await, ["Write 1", "Ack 1"]);
    let failing = |store: &FakeStore| store.fail(WriteError::Answer);
    assert_eq!(shut_down_with_a_held_entry(failing).await, ["Write 1: not stored"]);
}
