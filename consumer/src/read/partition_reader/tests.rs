#![expect(clippy::unchecked_time_subtraction, reason = "of constants")]

use futures_util::FutureExt;
use shared::{
    runtime::admin::Health,
    wire::{
        dead_letter::{DeadLetter, Reason},
        partition::PartitionCount,
    },
};
use tokio::task::JoinHandle;

use super::*;
use crate::{
    group::{assignment::Assignment, ownership::Contact},
    stream::fake::{FakeGroup, Operation},
    testing::{self, Journal, LogCapture, failing, partition, pass, position, settle},
};

const SECOND: Duration = Duration::from_secs(1);
const CLAIM_MIN_IDLE: Duration = Duration::from_secs(30);
const MAX_DELIVERIES: u64 = 5;
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(750);
const LIMITS: InFlightLimits = InFlightLimits { rows: 200, bytes: 16 << 20 };

/// Running reader of a single partition, between a fake group and the channel to the writer.
struct Running {
    journal: Journal,
    group: FakeGroup,
    in_flight: Arc<InFlight>,
    health: Health,
    ownership: watch::Sender<Ownership>,
    wanted: watch::Sender<bool>,
    shutdown: CancellationToken,
    entries: mpsc::UnboundedReceiver<Entry>,
    run: JoinHandle<()>,
}

/// Starts a reader once the test has prepared the group and the entries in flight.
fn start_after(prepare: impl FnOnce(&FakeGroup, &InFlight)) -> Running {
    let journal = Journal::default();
    let group = FakeGroup::new(journal.clone());
    let in_flight = Arc::new(InFlight::default());
    prepare(&group, &in_flight);
    let health = Health::default();
    let shutdown = CancellationToken::new();
    let (sender, entries) = mpsc::unbounded_channel();
    let context = ReadContext {
        streams: group.clone(),
        limits: ReadLimits {
            in_flight: LIMITS,
            redis_timeout: SECOND * 2,
            poll_min: Duration::from_millis(4),
            claim_min_idle: CLAIM_MIN_IDLE,
            max_deliveries: MAX_DELIVERIES,
            started: Instant::now(),
        },
        in_flight: Arc::clone(&in_flight),
        entries: sender,
        metrics: testing::metrics(),
        tracing: Tracing::default(),
        health: ReadHealth::new(health.check("reader")),
        shutdown: shutdown.clone(),
    };
    let ownership = watch::Sender::new(Ownership {
        assignment: Assignment { own: vec![partition()], orphans: Vec::new() },
        members: Arc::new(["a", "b"].map(Into::into).into()),
        processes: Arc::new(["process of a", "process of b"].map(str::to_owned).into()),
        contact: None,
        partitions: PartitionCount::new(1).unwrap(),
        paused: crate::stream::Paused::default(),
    });
    let wanted = watch::Sender::new(true);
    let reader = PartitionReader::new(
        partition(),
        Arc::new(context),
        ownership.subscribe(),
        wanted.subscribe(),
        false,
    );
    let run = tokio::spawn(reader.run());
    tokio::spawn(send_heartbeats(ownership.clone()));
    Running { journal, group, in_flight, health, ownership, wanted, shutdown, entries, run }
}

/// Updates the contact, as the membership does.
async fn send_heartbeats(ownership: watch::Sender<Ownership>) {
    let since = Instant::now();
    loop {
        let last = Instant::now();
        ownership.send_if_modified(|ownership| {
            ownership.contact = Some(Contact { since, last });
            false
        });
        sleep(HEARTBEAT_INTERVAL).await;
    }
}

fn start() -> Running {
    start_after(|_, _| ())
}

impl Drop for Running {
    fn drop(&mut self) {
        self.run.abort();
    }
}

impl Running {
    /// Returns the numbers of the entries sent to the writer since the last call.
    fn received(&mut self) -> Vec<u64> {
        std::iter::from_fn(|| self.entries.try_recv().ok()).map(|entry| entry.at.id.seq).collect()
    }

    /// Settles entries, as the writer does.
    fn release(&self, entries: &[u64]) {
        self.in_flight.release(entries.iter().map(|seq| position(*seq)));
    }

    /// Acknowledges entries and settles them.
    async fn settle(&self, entries: &[u64]) {
        let settled: Vec<Position> = entries.iter().map(|seq| position(*seq)).collect();
        self.group.forget_deleted(&settled).await.unwrap();
        self.release(entries);
    }

    fn calls(&self, operation: Operation) -> Vec<Instant> {
        self.journal.times(&format!("{operation:?}"))
    }

    /// Returns all calls except the periodic reads of new entries.
    fn other_calls(&self) -> Vec<String> {
        let mut calls = self.journal.lines();
        calls.retain(|call| call != "ReadNew");
        calls
    }

    /// Asserts that the reader ends without any time passing.
    async fn assert_ended(&mut self) {
        settle().await;
        assert!(self.run.is_finished(), "the reader is still running: {:?}", self.journal.lines());
        (&mut self.run).now_or_never().unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn new_entries_are_read_in_order_and_idle_polling_slows_down() {
    let mut reader = start();
    reader.group.append(1);
    pass(SECOND).await;
    reader.group.append(2);
    let before = reader.calls(Operation::ReadNew).len();
    pass(SECOND).await;
    assert_eq!(reader.received(), [1, 2]);
    let reads = reader.calls(Operation::ReadNew).len() - before;
    assert!((15..30).contains(&reads), "{reads}");
}

// Lost replies

#[tokio::test(start_paused = true)]
async fn entries_of_a_lost_reply_are_recovered_before_new_ones_are_read() {
    let mut reader = start();
    pass(SECOND).await;
    reader.group.lose_reply(Operation::ReadNew);
    reader.group.append(1);
    pass(Duration::from_millis(70)).await;
    reader.group.append(2);
    pass(SECOND).await;
    assert_eq!(reader.received(), [1]);
    reader.release(&[1]);
    pass(SECOND).await;
    assert_eq!(reader.received(), [2]);
    let calls = reader.journal.lines();
    let lost = calls.iter().position(|call| call == "ReadNew: reply lost").unwrap();
    assert_eq!(calls[lost + 1..lost + 4], ["ReadOwnPending", "Deliver 1", "ReadOwnPending"]);
}

#[tokio::test(start_paused = true)]
async fn recovery_waits_until_no_entry_of_the_partition_is_in_flight() {
    let mut reader = start();
    reader.group.append(1);
    pass(SECOND).await;
    assert_eq!(reader.received(), [1]);
    reader.group.lose_reply(Operation::ReadNew);
    reader.group.append(2);
    pass(SECOND * 60).await;
    assert_eq!(reader.calls(Operation::ReadOwnPending), []);
    assert_eq!(reader.received(), [0; 0], "no new entry is read");
    reader.release(&[1]);
    pass(SECOND).await;
    assert_eq!(reader.received(), [1, 2], "1 was released without being acknowledged, and is still pending");
}

#[tokio::test(start_paused = true)]
async fn recovery_continues_until_no_pending_entry_is_left() {
    let mut reader = start_after(|group, _| {
        (1..=150).for_each(|seq| group.append_pending(seq, "a", 1));
        group.append(151);
        group.fail(Operation::ClaimDeparted);
    });
    let mut received = Vec::new();
    for _ in 0..3 {
        pass(SECOND).await;
        let page = reader.received();
        reader.release(&page);
        received.push(page);
    }
    assert_eq!(received, [(1..=100).collect::<Vec<_>>(), (101..=150).collect(), vec![151]]);
}

#[tokio::test(start_paused = true)]
async fn a_failed_recovery_starts_again_from_the_first_pending_entry() {
    let mut reader = start_after(|group, _| {
        group.append(1);
        group.lose_reply(Operation::ReadNew);
        group.fail(Operation::ReadOwnPending);
        group.lose_reply(Operation::ReadOwnPending);
        group.fail(Operation::Deliver);
    });
    pass(SECOND * 2).await;
    assert_eq!(reader.received(), [1]);
    let recovery = [
        "ReadNew: reply lost",
        "ReadOwnPending: not executed",
        "ReadOwnPending: reply lost",
        "ReadOwnPending",
        "Deliver 1: not executed",
        "ReadOwnPending",
        "Deliver 1",
    ];
    assert_eq!(reader.other_calls()[2..], recovery);
}

#[tokio::test(start_paused = true)]
async fn entries_of_a_lost_claim_are_recovered() {
    for operation in [Operation::ClaimDeparted, Operation::Claim] {
        let owner = if operation == Operation::Claim { "b" } else { "departed" };
        let mut reader = start_after(|group, _| group.append_pending(1, owner, 1));
        pass(CLAIM_MIN_IDLE - SECOND * 28).await;
        reader.group.lose_reply(operation);
        pass(CLAIM_MIN_IDLE * 2).await;
        assert_eq!(reader.received(), [1], "{operation:?}");
        assert_eq!(reader.group.own_pending(), [1]);
    }
}

#[tokio::test(start_paused = true)]
async fn retries_back_off_exponentially_and_reset_after_a_success() {
    let reader = start_after(|group, _| {
        group.fail(Operation::ClaimDeparted);
        (0..10).for_each(|_| group.fail(Operation::ReadOwnPending));
    });
    settle().await;
    let why = failing(&reader.health, "reader").unwrap();
    assert!(why.starts_with("cannot read from Redis (partitions affected: 1): "), "{why}");
    pass(SECOND * 10).await;
    assert_eq!(failing(&reader.health, "reader"), None);
    reader.group.fail(Operation::ReadNew);
    pass(SECOND).await;

    let failed = reader.journal.times("ReadOwnPending: not executed");
    let waits: Vec<Duration> = failed.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let mut step = Duration::from_millis(50);
    for wait in waits {
        assert!((step / 2..=step).contains(&wait), "{wait:?} of {step:?}");
        step = (step * 2).min(SECOND / 2);
    }
    let failed_again = reader.journal.times("ReadNew: not executed")[0];
    let recovered = *reader.calls(Operation::ReadOwnPending).last().unwrap();
    assert!(recovered - failed_again <= Duration::from_millis(25), "{:?}", recovered - failed_again);
}

#[tokio::test(start_paused = true)]
async fn a_missing_group_is_recreated_at_the_first_entry_without_delay() {
    let mut reader = start();
    reader.group.append(1);
    pass(SECOND).await;
    assert_eq!(reader.received(), [1]);
    reader.release(&[1]);
    reader.group.lose_group();
    let before = Instant::now();
    let created = loop {
        if let Some(created) = reader.calls(Operation::EnsureGroup).first() {
            break *created;
        }
        assert!(before.elapsed() < SECOND);
        pass(Duration::from_millis(1)).await;
    };
    assert_eq!(*reader.calls(Operation::ReadOwnPending).last().unwrap(), created, "no wait after the error");
    pass(SECOND).await;
    assert_eq!(reader.received(), [1], "a new group starts at the first entry");
}

#[tokio::test(start_paused = true)]
async fn creation_of_a_group_is_retried_after_a_delay() {
    let mut reader = start_after(|group, _| {
        group.append(1);
        group.lose_group();
        group.fail(Operation::EnsureGroup);
    });
    pass(SECOND).await;
    let calls = reader.other_calls();
    assert_eq!(calls[..3], ["ClaimDeparted", "EnsureGroup: not executed", "ReadOwnPending"]);
    assert_eq!(reader.received(), [1]);
}

// Loss of ownership

#[tokio::test(start_paused = true)]
async fn a_read_delivers_its_entries_even_if_ownership_is_lost() {
    let mut reader = start();
    pass(SECOND).await;
    reader.group.slow(Operation::ReadNew, SECOND);
    reader.group.append(1);
    pass(SECOND / 2).await;
    assert_eq!(reader.group.own_pending(), [1], "the reply is on its way");
    reader.wanted.send_replace(false);
    settle().await;
    assert!(!reader.run.is_finished(), "a read is never dropped");
    pass(SECOND).await;
    reader.group.append(2);
    reader.assert_ended().await;
    assert_eq!(reader.received(), [1]);
    assert_eq!(reader.group.own_pending(), [1]);
}

#[tokio::test(start_paused = true)]
async fn a_claim_delivers_its_entries_even_if_ownership_is_lost() {
    let mut reader = start_after(|group, _| {
        group.append_pending(1, "departed", 1);
        group.slow(Operation::ClaimDeparted, SECOND * 5);
    });
    // The first claim runs before the entry is idle for long enough.
    pass(SECOND * 8).await;
    assert_eq!(reader.group.own_pending(), [1]);
    reader.wanted.send_replace(false);
    pass(SECOND * 5).await;
    reader.assert_ended().await;
    assert_eq!(reader.received(), [1]);
}

#[tokio::test(start_paused = true)]
async fn entries_of_a_lost_reply_are_recovered_after_ownership_is_lost() {
    let mut reader = start();
    pass(SECOND).await;
    reader.group.lose_reply(Operation::ReadNew);
    reader.group.slow(Operation::ReadNew, SECOND);
    reader.group.append(1);
    pass(SECOND / 2).await;
    reader.wanted.send_replace(false);
    pass(SECOND * 2).await;
    assert_eq!(reader.received(), [1]);
    assert!(!reader.run.is_finished(), "there may be more once this one is settled");
    reader.release(&[1]);
    reader.assert_ended().await;
}

#[tokio::test(start_paused = true)]
async fn a_reader_without_ownership_ends_while_waiting_for_a_permit() {
    let mut reader = start_after(|_, in_flight| in_flight.pause());
    pass(SECOND * 10).await;
    assert_eq!(reader.journal.lines(), [""; 0]);
    reader.wanted.send_replace(false);
    reader.assert_ended().await;
    assert_eq!(reader.journal.lines(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_reader_without_ownership_ends_while_waiting_for_the_next_read() {
    let mut reader = start();
    pass(SECOND).await;
    reader.wanted.send_replace(false);
    reader.assert_ended().await;
}

// Shutdown during each wait

#[tokio::test(start_paused = true)]
async fn shutdown_between_two_reads_ends_the_reader() {
    let mut reader = start();
    pass(SECOND).await;
    reader.shutdown.cancel();
    reader.assert_ended().await;
}

#[tokio::test(start_paused = true)]
async fn shutdown_during_a_read_delivers_its_entries() {
    let mut reader = start();
    pass(SECOND).await;
    reader.group.slow(Operation::ReadNew, SECOND);
    reader.group.append(1);
    pass(SECOND / 2).await;
    reader.shutdown.cancel();
    settle().await;
    assert!(!reader.run.is_finished(), "a read is never dropped");
    pass(SECOND).await;
    reader.group.append(2);
    reader.assert_ended().await;
    assert_eq!(reader.received(), [1]);
}

#[tokio::test(start_paused = true)]
async fn shutdown_during_a_claim_leaves_no_undelivered_entry_in_flight() {
    for operation in [Operation::ClaimDeparted, Operation::Claim, Operation::Deliver] {
        let owner = if operation == Operation::Claim { "b" } else { "departed" };
        let mut reader = start_after(|group, _| {
            group.append_pending(1, owner, 1);
            group.slow(operation, SECOND * 5);
        });
        // Wait until the entry is claimed and the reply is under way.
        for _ in 0..600 {
            if reader.group.own_pending() == [1] {
                break;
            }
            pass(SECOND / 10).await;
        }
        assert_eq!(reader.group.own_pending(), [1], "{operation:?}");
        assert_eq!(reader.received(), [0; 0], "{operation:?}");
        reader.shutdown.cancel();
        pass(SECOND * 10).await;
        reader.assert_ended().await;
        // Either the writer received the entry, or it stays pending for the next member.
        let received = !reader.received().is_empty();
        assert_eq!(reader.in_flight.contains(position(1)), received, "{operation:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn shutdown_during_the_wait_for_a_permit_ends_the_reader() {
    let mut reader = start_after(|_, in_flight| in_flight.pause());
    pass(SECOND).await;
    reader.shutdown.cancel();
    reader.assert_ended().await;
    assert_eq!(reader.journal.lines(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn shutdown_during_a_recovery_leaves_its_entries_pending() {
    let mut reader = start();
    reader.group.append(1);
    pass(SECOND).await;
    reader.group.lose_reply(Operation::ReadNew);
    reader.group.append(2);
    pass(SECOND).await;
    reader.shutdown.cancel();
    reader.assert_ended().await;
    assert_eq!(reader.received(), [1]);
    assert_eq!(reader.group.own_pending(), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn shutdown_during_the_wait_after_an_error_ends_the_reader() {
    let mut reader = start_after(|group, _| {
        group.fail(Operation::ClaimDeparted);
        (0..100).for_each(|_| group.fail(Operation::ReadOwnPending));
    });
    pass(SECOND * 10).await;
    reader.shutdown.cancel();
    reader.assert_ended().await;
}

#[tokio::test(start_paused = true)]
async fn shutdown_while_waiting_for_a_quarantine_starts_none() {
    let mut reader = start_after(|group, in_flight| {
        in_flight.admit(position(1), 1);
        group.append_pending(2, "departed", MAX_DELIVERIES);
    });
    pass(SECOND * 10).await;
    assert_eq!(reader.group.own_pending(), [2]);
    reader.shutdown.cancel();
    reader.assert_ended().await;
    assert_eq!(reader.received(), [0; 0]);
    assert_eq!(reader.group.own_quarantine(2), 0);
    assert!(
        reader.in_flight.read_permit(LIMITS).now_or_never().is_some(),
        "the exclusive permit is returned"
    );
}

#[tokio::test(start_paused = true)]
async fn shutdown_during_a_quarantine_leaves_the_entry_with_the_writer() {
    let mut reader = start_after(|group, _| {
        group.append_pending(1, "departed", MAX_DELIVERIES);
        group.append_pending(2, "departed", MAX_DELIVERIES);
    });
    pass(SECOND * 10).await;
    reader.shutdown.cancel();
    reader.assert_ended().await;
    assert_eq!(reader.received(), [1]);
    assert!(reader.in_flight.contains(position(1)));
    assert_eq!(reader.group.own_quarantine(1), 0, "the writer drains it; a kill meanwhile is not its fault");
    assert_eq!(reader.group.own_quarantine(2), 0, "no further quarantine begins");
}

#[tokio::test(start_paused = true)]
async fn a_reader_ends_after_the_writer() {
    let mut reader = start();
    pass(SECOND).await;
    reader.entries.close();
    reader.group.append(1);
    pass(SECOND).await;
    reader.assert_ended().await;
    assert_eq!(reader.group.own_pending(), [1]);
}

// Redelivery

#[tokio::test(start_paused = true)]
async fn an_entry_in_flight_is_not_delivered_twice() {
    let mut reader = start();
    reader.group.append(1);
    pass(CLAIM_MIN_IDLE * 10).await;
    assert_eq!(reader.group.deliveries(position(1)).await.unwrap(), 1);
    assert!(reader.group.idle(1) < CLAIM_MIN_IDLE + SECOND * 3, "no other member claims it");
    assert_eq!(reader.received(), [1]);
    reader.group.append(2);
    pass(SECOND).await;
    assert_eq!(reader.received(), [2], "reading does not wait for a quarantine");
    assert_eq!(reader.group.own_quarantine(1), 0);
}

#[tokio::test(start_paused = true)]
async fn recovery_counts_no_delivery_of_held_entries() {
    let mut reader = start();
    (1..=2).for_each(|seq| reader.group.append(seq));
    pass(SECOND).await;
    assert_eq!(reader.received(), [1, 2]);
    reader.in_flight.set_held([position(1)].into_iter());
    reader.release(&[2]);
    reader.group.fail(Operation::ReadNew);
    pass(SECOND).await;
    assert_eq!(reader.received(), [2]);
    let mut deliveries = Vec::new();
    for seq in [1, 2] {
        deliveries.push(reader.group.deliveries(position(seq)).await.unwrap());
    }
    assert_eq!(deliveries, [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_was_settled_before_it_is_delivered_again_is_not_processed() {
    let mut reader = start_after(|group, _| {
        group.append_pending(1, "b", 1);
        group.slow(Operation::Claim, SECOND);
    });
    pass(CLAIM_MIN_IDLE + SECOND).await;
    // Its owner settles it, after it was listed.
    assert_eq!(reader.group.own_pending(), [1]);
    reader.group.settle(1);
    pass(SECOND * 2).await;
    assert_eq!(reader.received(), [0; 0]);
}

#[tokio::test(start_paused = true)]
async fn entries_of_a_departed_member_are_claimed_after_the_liveness_timeout() {
    let mut reader = start_after(|group, _| group.append_pending(1, "departed", 1));
    pass(LIVENESS_TIMEOUT - SECOND).await;
    assert_eq!(reader.received(), [0; 0]);
    pass(SECOND * 3).await;
    assert_eq!(reader.received(), [1]);
}

#[tokio::test(start_paused = true)]
async fn a_page_of_a_departed_member_that_is_in_flight_does_not_delay_the_next_page() {
    let mut reader = start_after(|group, in_flight| {
        (1..=CLAIM_COUNT + 1).for_each(|seq| group.append_pending(seq, "departed", 1));
        (1..=CLAIM_COUNT).for_each(|seq| assert!(in_flight.admit(position(seq), 1)));
    });
    while reader.group.pending_with("departed").len() > 1 {
        pass(SECOND / 100).await;
    }
    pass(SECOND / 10).await;
    assert_eq!(reader.received(), [CLAIM_COUNT + 1]);
}

#[tokio::test(start_paused = true)]
async fn a_delivery_is_counted_before_the_wait_for_a_permit() {
    let mut reader = start_after(|group, _| {
        group.append_pending(1, "departed", 1);
        group.slow(Operation::ClaimDeparted, SECOND);
    });
    while reader.group.own_pending().is_empty() {
        pass(SECOND / 100).await;
    }
    reader.in_flight.pause();
    pass(SECOND * 10).await;
    assert_eq!(reader.received(), [0; 0]);
    assert_eq!(reader.group.deliveries(position(1)).await.unwrap(), 2, "this process holds the entry");
    reader.in_flight.resume();
    pass(SECOND).await;
    assert_eq!(reader.received(), [1]);
}

#[tokio::test(start_paused = true)]
async fn entries_of_a_member_are_claimed_only_after_claim_min_idle() {
    let mut reader = start_after(|group, _| group.append_pending(1, "b", 1));
    pass(CLAIM_MIN_IDLE - SECOND).await;
    assert_eq!(reader.received(), [0; 0]);
    pass(SECOND * 3).await;
    assert_eq!(reader.received(), [1]);
}

#[tokio::test(start_paused = true)]
async fn a_change_of_ownership_claims_immediately() {
    let reader = start();
    pass(SECOND).await;
    let claims = reader.calls(Operation::ClaimDeparted).len();
    reader.ownership.send_modify(|ownership| ownership.members = Arc::default());
    pass(Duration::from_millis(70)).await;
    assert_eq!(reader.calls(Operation::ClaimDeparted).len(), claims + 1);
}

// Deleted entries

const LOST: &str = "data loss: entries were deleted";

#[tokio::test(start_paused = true)]
async fn deleted_entries_of_this_and_of_departed_consumers_are_reported_as_lost_and_removed() {
    for owner in ["a", "departed"] {
        let (log, _guard) = LogCapture::start();
        let mut reader = start_after(|group, _| {
            group.append_pending(1, owner, 1);
            group.append_pending(2, owner, 1);
            group.delete(1);
        });
        pass(CLAIM_MIN_IDLE + SECOND * 3).await;
        assert_eq!(reader.received(), [2], "{owner}");
        assert_eq!(reader.group.own_pending(), [2], "{owner}");
        assert_eq!(reader.group.pending_with(owner), if owner == "a" { vec![2] } else { vec![] });
        assert!(log.contains("entries=1 first=1-1 last=1-1"), "{owner}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_deleted_entry_of_another_member_is_left_to_it() {
    let (log, _guard) = LogCapture::start();
    let mut reader = start_after(|group, _| {
        group.append_pending(1, "b", 1);
        group.append_pending(2, "b", 1);
        group.delete(1);
    });
    pass(CLAIM_MIN_IDLE * 3).await;
    assert_eq!(reader.received(), [2]);
    assert_eq!(reader.group.pending_with("b"), [1]);
    assert!(!log.contains(LOST));
    // The member leaves without having stored it.
    reader.ownership.send_modify(|ownership| ownership.members = Arc::new(["a".into()].into()));
    pass(SECOND).await;
    assert_eq!(reader.group.pending_with("b"), [0; 0]);
    assert!(log.contains(LOST));
}

#[tokio::test(start_paused = true)]
async fn a_deleted_entry_in_flight_is_not_lost() {
    let (log, _guard) = LogCapture::start();
    let mut reader = start();
    reader.group.append(1);
    pass(SECOND).await;
    assert_eq!(reader.received(), [1]);
    reader.group.delete(1);
    pass(CLAIM_MIN_IDLE * 3).await;
    assert_eq!(reader.group.own_pending(), [1], "its acknowledgement removes it");
    // It is acknowledged and settled while the reply of a claim is on its way.
    reader.group.slow(Operation::Claim, SECOND);
    let claims = reader.calls(Operation::Claim).len();
    while reader.calls(Operation::Claim).len() == claims {
        pass(Duration::from_millis(1)).await;
    }
    reader.settle(&[1]).await;
    pass(CLAIM_MIN_IDLE).await;
    assert!(!log.contains(LOST));
}

#[tokio::test(start_paused = true)]
async fn a_deleted_entry_that_is_stored_but_not_acknowledged_is_not_lost() {
    let (log, _guard) = LogCapture::start();
    let mut reader = start();
    reader.group.append(1);
    pass(SECOND).await;
    assert_eq!(reader.received(), [1]);
    // Its acknowledgement fails.
    reader.in_flight.stored([position(1)]);
    reader.in_flight.release([position(1)]);
    reader.group.delete(1);
    pass(CLAIM_MIN_IDLE * 3).await;
    assert_eq!(reader.group.own_pending(), [0; 0]);
    assert!(!log.contains(LOST));
}

#[tokio::test(start_paused = true)]
async fn a_deleted_entry_in_flight_of_a_departed_consumer_does_not_stop_reading() {
    let mut reader = start_after(|group, in_flight| {
        group.append_pending(1, "departed", 1);
        group.delete(1);
        in_flight.admit(position(1), 1);
    });
    pass(LIVENESS_TIMEOUT + SECOND * 3).await;
    reader.group.append(2);
    pass(SECOND).await;
    assert_eq!(reader.received(), [2]);
    assert_eq!(reader.group.pending_with("departed"), [1]);
}

#[tokio::test(start_paused = true)]
async fn a_loss_is_reported_even_if_the_replies_of_claims_are_lost() {
    for (owner, operation) in [("departed", Operation::ClaimDeparted), ("a", Operation::Claim)] {
        let (log, _guard) = LogCapture::start();
        let reader = start_after(|group, _| {
            group.append_pending(1, owner, 1);
            group.delete(1);
        });
        let own = operation == Operation::Claim;
        pass(if own { CLAIM_MIN_IDLE - SECOND } else { LIVENESS_TIMEOUT - SECOND }).await;
        reader.group.lose_reply(operation);
        pass(SECOND * 5).await;
        assert!(log.contains(LOST), "{owner}");
        assert_eq!(reader.group.pending_with(owner), [0; 0], "{owner}");
    }
}

#[tokio::test(start_paused = true)]
async fn removal_of_lost_entries_is_retried_after_a_failure_without_a_second_report() {
    let (log, _guard) = LogCapture::start();
    let reader = start_after(|group, _| {
        group.append_pending(1, "a", 1);
        group.delete(1);
        group.fail(Operation::ClaimDeparted);
        group.fail(Operation::ForgetDeleted);
        group.fail(Operation::ForgetDeleted);
    });
    pass(SECOND).await;
    assert_eq!(reader.group.own_pending(), [0; 0]);
    assert_eq!(log.count(LOST), 1);
}

// Failover of Redis

#[tokio::test(start_paused = true)]
async fn an_id_assigned_again_after_a_failover_is_another_entry() {
    let mut reader = start();
    reader.group.append(1);
    reader.group.append(2);
    pass(SECOND).await;
    assert_eq!(reader.received(), [1, 2]);
    reader.group.fail_over_without(2);
    reader.group.append(2);
    pass(SECOND).await;
    assert_eq!(reader.received(), [2], "the first entry with this id is still in flight");
}

#[tokio::test(start_paused = true)]
async fn entries_that_a_replaced_server_did_not_acknowledge_are_recovered() {
    let mut reader = start();
    reader.group.append(1);
    pass(SECOND).await;
    reader.group.fail_over_without(2);
    assert_eq!(reader.received(), [1]);
    pass(SECOND).await;
    assert_eq!(reader.received(), [0; 0], "nothing tells the reader of the failover");
    reader.release(&[1]);
    reader.in_flight.redeliver([partition()].into());
    pass(SECOND).await;
    assert_eq!(reader.received(), [1]);
    pass(SECOND).await;
    assert_eq!(reader.received(), [0; 0]);
}

// Quarantine

#[tokio::test(start_paused = true)]
async fn a_few_suspects_are_quarantined_last_and_one_at_a_time() {
    let mut reader = start_after(|group, _| {
        group.append_pending(1, "departed", MAX_DELIVERIES);
        group.append_pending(2, "departed", MAX_DELIVERIES - 1);
        group.append_pending(3, "departed", MAX_DELIVERIES);
    });
    pass(LIVENESS_TIMEOUT + SECOND * 2).await;
    assert_eq!(reader.received(), [2]);
    assert_eq!(reader.group.own_quarantine(1), 0);
    reader.release(&[2]);
    pass(SECOND).await;
    let suspect = reader.entries.try_recv().unwrap();
    assert!(suspect.at == position(1) && suspect.likes.len() == 1);
    assert_eq!(reader.group.own_quarantine(1), 1, "recorded before the entry is sent");
    assert!(reader.in_flight.read_permit(LIMITS).now_or_never().is_none(), "no other entry is read");
    pass(SECOND * 10).await;
    assert_eq!(reader.received(), [0; 0]);
    reader.settle(&[1]).await;
    pass(SECOND).await;
    assert_eq!(reader.group.quarantine(1), []);
    assert_eq!(reader.received(), [3]);
    reader.group.append(4);
    pass(SECOND).await;
    assert!(reader.in_flight.read_permit(LIMITS).now_or_never().is_none(), "no other entry is read");
    reader.settle(&[3]).await;
    pass(SECOND).await;
    assert_eq!(reader.received(), [4]);
}

#[tokio::test(start_paused = true)]
async fn many_suspects_are_tried_together_while_new_entries_are_read() {
    let mut reader = start_after(|group, _| {
        (1..=150).for_each(|seq| group.append_pending(seq, "departed", MAX_DELIVERIES));
        group.append(151);
    });
    pass(LIVENESS_TIMEOUT + SECOND * 2).await;
    let mut received = reader.received();
    assert!(received.ends_with(&(1..=100).collect::<Vec<_>>()), "{received:?}");
    assert_eq!((reader.group.own_quarantine(1), reader.group.own_quarantine(100)), (100, 100));
    received.retain(|seq| *seq > 100);
    assert_eq!(received, [151], "it was read before the suspects were claimed");
    reader.group.append(152);
    reader.release(&(50..=100).collect::<Vec<_>>());
    pass(SECOND).await;
    assert_eq!(reader.received(), [152]);
    assert_eq!(reader.group.own_quarantine(1), 100, "not all are settled");
    reader.release(&(1..50).collect::<Vec<_>>());
    pass(SECOND).await;
    assert_eq!(reader.group.quarantine(1), []);
    assert_eq!(reader.received(), (101..=150).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn an_entry_becomes_a_dead_letter_after_two_processes_died_while_they_tried_it_alone() {
    let dead = ["p1", "p2"];
    for (tries, is_dead) in [
        (vec![], false),
        (vec![(dead[0], 1)], false),
        (vec![(dead[0], 1), (dead[1], 1)], true),
        (vec![(dead[0], 1), ("process of b", 1)], false),
        (vec![(dead[0], 2), (dead[1], 2)], false),
        (vec![("process of a", 1), ("process of b", 1)], false),
    ] {
        let mut reader = start_after(|group, _| {
            group.append_pending(1, "departed", MAX_DELIVERIES);
            for (process, entries) in &tries {
                group.set_quarantine(1, process, *entries);
            }
        });
        pass(SECOND * 10).await;
        let entry = reader.entries.try_recv().unwrap();
        assert_eq!(entry.likes.is_empty(), is_dead, "{tries:?}");
        let reasons: Vec<Reason> = entry.dead_letters.iter().map(DeadLetter::reason).collect();
        assert_eq!(reasons, if is_dead { vec![Reason::MaxDeliveries] } else { vec![] });
        assert_eq!(reader.group.own_quarantine(1), usize::from(!is_dead));
        assert!(reader.in_flight.contains(position(1)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_that_is_not_known_yet_or_resigns_is_not_dead() {
    for resigns in [true, false] {
        let mut reader = start_after(|group, _| {
            group.append_pending(1, "departed", MAX_DELIVERIES);
            group.set_quarantine(1, "p1", 1);
            group.set_quarantine(1, "p2", 1);
        });
        loop {
            pass(Duration::from_millis(10)).await;
            if !reader.calls(Operation::Quarantines).is_empty() {
                break;
            }
        }
        if resigns {
            reader.group.remove_quarantine(1, "p2");
        } else {
            reader.ownership.send_modify(|ownership| {
                let processes = ["process of a", "p2"].map(str::to_owned);
                ownership.processes = Arc::new(processes.into());
            });
        }
        pass(SECOND * 5).await;
        let entry = reader.entries.try_recv().unwrap();
        assert!(entry.dead_letters.is_empty(), "resigns: {resigns}");
        let calls = reader.calls(Operation::Quarantines);
        assert_eq!(calls.len(), 2);
        assert!(calls[1] - calls[0] <= HEARTBEAT_INTERVAL + Duration::from_millis(64));
    }
}

#[tokio::test(start_paused = true)]
async fn no_quarantine_begins_while_heartbeats_fail() {
    let mut reader = start_after(|group, _| group.append_pending(1, "departed", MAX_DELIVERIES));
    for _ in 0..10_000 {
        reader.ownership.send_if_modified(|ownership| ownership.contact.take().is_none());
        pass(Duration::from_millis(1)).await;
    }
    assert_eq!(reader.group.own_pending(), [1]);
    assert_eq!(reader.received(), [0; 0]);
    pass(SECOND).await;
    assert_eq!(reader.received(), [1]);
}

#[tokio::test(start_paused = true)]
async fn the_record_of_a_try_is_removed_when_writes_fail() {
    for (suspects, together) in [(1, 1), (20, 20)] {
        let mut reader = start_after(|group, _| {
            (1..=suspects).for_each(|seq| group.append_pending(seq, "departed", MAX_DELIVERIES));
        });
        pass(SECOND * 10).await;
        assert_eq!(reader.received().len(), together);
        assert_eq!(reader.group.own_quarantine(1), together);
        reader.in_flight.pause();
        settle().await;
        assert_eq!(
            reader.group.own_quarantine(1),
            0,
            "a crash while the writer waits is not the entry's fault"
        );
        reader.in_flight.resume();
        pass(SECOND).await;
        assert_eq!(reader.group.own_quarantine(1), 0, "the process has survived an attempt");
    }
}

#[tokio::test(start_paused = true)]
async fn a_quarantine_that_cannot_be_recorded_does_not_begin() {
    let mut reader = start_after(|group, _| {
        group.append_pending(1, "departed", MAX_DELIVERIES);
        group.fail(Operation::BeginQuarantine);
        group.lose_reply(Operation::BeginQuarantine);
    });
    pass(LIVENESS_TIMEOUT + SECOND * 3).await;
    let calls = reader.other_calls();
    let failed = calls.iter().position(|call| call == "BeginQuarantine 1: not executed").unwrap();
    let retries = ["EndQuarantine", "BeginQuarantine 1: reply lost", "EndQuarantine", "BeginQuarantine 1"];
    assert_eq!(calls[failed + 1..failed + 5], retries);
    assert_eq!(reader.received(), [1]);
    assert_eq!(reader.group.quarantine(1).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn removal_of_a_record_is_retried_after_a_failure() {
    let mut reader = start_after(|group, _| {
        group.append_pending(1, "departed", MAX_DELIVERIES);
        group.fail(Operation::EndQuarantine);
        group.lose_reply(Operation::EndQuarantine);
    });
    pass(SECOND * 10).await;
    assert_eq!(reader.received(), [1]);
    // The acknowledgement is lost, so that the entry stays pending.
    reader.release(&[1]);
    settle().await;
    assert_eq!(reader.group.own_quarantine(1), 1);
    pass(SECOND).await;
    assert_eq!(reader.received(), [1], "recovered after the errors");
    assert_eq!(reader.calls(Operation::EndQuarantine).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_stays_in_flight_stops_reading_only_for_a_while() {
    let mut reader = start_after(|group, in_flight| {
        in_flight.admit(position(1), 1);
        group.append_pending(2, "departed", MAX_DELIVERIES);
    });
    pass(LIVENESS_TIMEOUT + SECOND * 2).await;
    reader.group.append(3);
    pass(SECOND).await;
    assert_eq!(reader.received(), [0; 0], "reading waits for the quarantine");
    pass(SECOND * 5).await;
    assert_eq!(reader.received(), [3]);
    assert_eq!(reader.group.own_pending(), [2, 3]);
    reader.release(&[1, 3]);
    pass(CLAIM_MIN_IDLE + SECOND * 3).await;
    assert_eq!(reader.received(), [2], "a later claim returns it");
}

#[tokio::test(start_paused = true)]
async fn a_reader_without_ownership_ends_after_its_suspects_are_settled() {
    let mut reader = start_after(|group, _| {
        (1..=20).for_each(|seq| group.append_pending(seq, "departed", MAX_DELIVERIES));
    });
    pass(SECOND * 10).await;
    reader.wanted.send_replace(false);
    reader.group.append(21);
    pass(SECOND).await;
    assert!(!reader.run.is_finished());
    reader.release(&(1..=20).collect::<Vec<_>>());
    pass(SECOND).await;
    reader.assert_ended().await;
    assert_eq!(reader.received(), (1..=20).collect::<Vec<_>>());
    assert_eq!(reader.group.quarantine(1), []);
}

#[tokio::test(start_paused = true)]
async fn a_suspect_that_was_deleted_is_lost_without_a_quarantine() {
    let reader = start_after(|group, _| {
        group.append_pending(1, "a", MAX_DELIVERIES + 1);
        group.delete(1);
        group.fail(Operation::ClaimDeparted);
    });
    pass(SECOND).await;
    assert_eq!(reader.group.own_pending(), [0; 0]);
    assert_eq!(reader.group.own_quarantine(1), 0);
}
