#![expect(clippy::unchecked_time_subtraction, reason = "of constants")]

use tokio::task::JoinHandle;

use super::*;
use crate::{
    stream::fake::FakeMembers,
    testing::{self, failing, pass, settle},
};

/// Running membership of member `a`, with its inputs and outputs.
struct Member {
    members: FakeMembers,
    partitions: watch::Sender<PartitionCount>,
    paused: watch::Sender<Paused>,
    in_flight: Arc<InFlight>,
    health: shared::runtime::admin::Health,
    ownership: watch::Receiver<Ownership>,
    leaving: CancellationToken,
    drained: CancellationToken,
    run: JoinHandle<Result<(), NameTaken>>,
}

fn candidate(members: &FakeMembers) -> Candidate<FakeMembers> {
    Candidate {
        heartbeats: members.clone(),
        static_assignment: String::new(),
        partitions: watch::Sender::new(PartitionCount::new(4).unwrap()).subscribe(),
        paused: watch::Sender::default().subscribe(),
        in_flight: Arc::default(),
        metrics: testing::metrics(),
        check: shared::runtime::admin::Health::default().check("membership"),
    }
}

async fn start(members: FakeMembers) -> Member {
    let partitions = watch::Sender::new(PartitionCount::new(4).unwrap());
    let paused = watch::Sender::default();
    let in_flight = Arc::new(InFlight::default());
    let health = shared::runtime::admin::Health::default();
    let candidate = Candidate {
        partitions: partitions.subscribe(),
        paused: paused.subscribe(),
        in_flight: Arc::clone(&in_flight),
        check: health.check("membership"),
        ..candidate(&members)
    };
    let membership = candidate.join(&CancellationToken::new()).await.unwrap().unwrap();
    let ownership = membership.ownership();
    let leaving = CancellationToken::new();
    let drained = CancellationToken::new();
    let run = tokio::spawn(membership.run(leaving.clone(), drained.clone()));
    settle().await;
    Member { members, partitions, paused, in_flight, health, ownership, leaving, drained, run }
}

impl Member {
    fn owned(&self) -> usize {
        self.ownership.borrow().own().len()
    }

    /// Advances time while another member sends heartbeats.
    async fn pass_with_heartbeats_of(&self, name: &str, duration: Duration) {
        let until = Instant::now() + duration;
        while Instant::now() < until {
            self.members.other(name);
            pass(HEARTBEAT_INTERVAL).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_member_has_partitions_from_its_first_heartbeat_to_its_timeout() {
    let a = start(FakeMembers::default()).await;
    assert_eq!(a.owned(), 4);
    a.pass_with_heartbeats_of("b", Duration::from_secs(6)).await;
    assert_eq!(a.owned(), 2);
    pass(LIVENESS_TIMEOUT - HEARTBEAT_INTERVAL * 2).await;
    assert_eq!(a.owned(), 2);
    pass(HEARTBEAT_INTERVAL * 3).await;
    assert_eq!(a.owned(), 4);
}

#[tokio::test(start_paused = true)]
async fn ownership_is_kept_and_the_check_fails_while_heartbeats_fail() {
    let a = start(FakeMembers::default()).await;
    a.pass_with_heartbeats_of("b", Duration::from_secs(6)).await;
    let before = Ownership { contact: None, ..a.ownership.borrow().clone() };
    assert_eq!(failing(&a.health, "membership"), None);
    a.members.set_away(true);
    pass(Duration::from_mins(1)).await;
    assert_eq!(*a.ownership.borrow(), before);
    assert_eq!(
        failing(&a.health, "membership").as_deref(),
        Some("heartbeat failed: connection reset by peer")
    );
    a.members.set_away(false);
    pass(HEARTBEAT_INTERVAL).await;
    assert_eq!(failing(&a.health, "membership"), None);
}

#[tokio::test(start_paused = true)]
async fn steps_of_the_clock_of_redis_do_not_affect_liveness() {
    let a = start(FakeMembers::default()).await;
    for step_ms in [600_000, -1_200_000] {
        a.pass_with_heartbeats_of("b", Duration::from_secs(6)).await;
        a.members.step_clock(step_ms);
        let mut changes = a.ownership.clone();
        changes.mark_unchanged();
        a.pass_with_heartbeats_of("b", Duration::from_secs(6)).await;
        assert_eq!(a.owned(), 2, "{step_ms}");
        assert!(!changes.has_changed().unwrap(), "{step_ms}");
    }
    a.members.step_clock(-600_000);
    pass(LIVENESS_TIMEOUT + HEARTBEAT_INTERVAL * 2).await;
    assert_eq!(a.owned(), 4, "b is dead");
}

#[tokio::test(start_paused = true)]
async fn the_record_of_a_dead_member_is_removed_later() {
    let members = FakeMembers::default();
    members.other("dead");
    members.step_clock(3_600_000);
    let a = start(members).await;
    assert_eq!(a.owned(), 4, "its record is old at first sight");
    a.members.step_clock(-7_200_000);
    pass(LIVENESS_TIMEOUT * 19).await;
    assert_eq!((a.owned(), a.members.records().len()), (4, 2));
    pass(LIVENESS_TIMEOUT * 2).await;
    assert_eq!(a.members.records(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_every_member_has_a_full_liveness_timeout() {
    let a = start(FakeMembers::default()).await;
    a.pass_with_heartbeats_of("b", Duration::from_secs(6)).await;
    a.members.set_away(true);
    pass(Duration::from_mins(1)).await;
    a.members.set_away(false);
    pass(LIVENESS_TIMEOUT - HEARTBEAT_INTERVAL / 2).await;
    assert_eq!(a.owned(), 2, "b may send a heartbeat soon");
    pass(HEARTBEAT_INTERVAL * 3).await;
    assert_eq!(a.owned(), 4, "b sent no heartbeat");
}

#[tokio::test(start_paused = true)]
async fn a_member_that_returns_with_redis_keeps_its_partitions() {
    let mut a = start(FakeMembers::default()).await;
    a.pass_with_heartbeats_of("b", Duration::from_secs(6)).await;
    a.members.set_away(true);
    pass(Duration::from_mins(1)).await;
    a.ownership.mark_unchanged();
    a.members.set_away(false);
    pass(Duration::from_secs(3)).await;
    a.pass_with_heartbeats_of("b", Duration::from_secs(30)).await;
    assert!(!a.ownership.has_changed().unwrap());
}

#[tokio::test(start_paused = true)]
async fn the_name_of_a_dead_process_is_free_after_the_liveness_timeout() {
    let members = FakeMembers::default();
    members.other("a");
    let started = Instant::now();
    assert!(candidate(&members).join(&CancellationToken::new()).await.is_ok());
    let waited = started.elapsed();
    assert!((LIVENESS_TIMEOUT..NAME_TIMEOUT).contains(&waited), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_name_that_stays_in_use_is_refused_after_a_timeout() {
    let members = FakeMembers::default();
    members.other("a");
    let started = Instant::now();
    let other = members.clone();
    tokio::spawn(async move {
        loop {
            other.other("a");
            sleep(HEARTBEAT_INTERVAL).await;
        }
    });
    let taken = candidate(&members).join(&CancellationToken::new()).await.err().unwrap();
    assert!(taken.to_string().starts_with("CONSUMER_NAME: 'a' is in use"), "{taken}");
    let waited = started.elapsed();
    assert!((NAME_TIMEOUT..NAME_TIMEOUT + 2 * HEARTBEAT_INTERVAL).contains(&waited), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_candidate_joins_alone_while_redis_is_unavailable() {
    let members = FakeMembers::default();
    members.set_away(true);
    let a = start(members).await;
    assert_eq!(a.owned(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_candidate_that_shuts_down_during_its_heartbeat_resigns_after_the_reply() {
    for lost_reply in [false, true] {
        let members = FakeMembers::default();
        members.slow(Duration::from_secs(1), lost_reply);
        let shutdown = CancellationToken::new();
        let join = tokio::spawn({
            let (candidate, shutdown) = (candidate(&members), shutdown.clone());
            async move { candidate.join(&shutdown).await.unwrap().is_none() }
        });
        pass(Duration::from_millis(500)).await;
        assert_eq!(members.announced(), Some(MemberState::Active), "the reply is on its way");
        shutdown.cancel();
        assert!(join.await.unwrap());
        assert_eq!(members.announced(), None, "lost reply: {lost_reply}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_candidate_that_shuts_down_while_its_name_is_in_use_ends_immediately() {
    let members = FakeMembers::default();
    members.other("a");
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        sleep(Duration::from_secs(1)).await;
        stop.cancel();
    });
    let started = Instant::now();
    assert!(candidate(&members).join(&shutdown).await.unwrap().is_none());
    assert_eq!(started.elapsed(), Duration::from_secs(1));
    assert!(members.announced().is_some(), "the record belongs to another process");
}

#[tokio::test(start_paused = true)]
async fn a_name_taken_over_while_heartbeats_fail_ends_the_membership() {
    let a = start(FakeMembers::default()).await;
    a.members.set_away(true);
    pass(LIVENESS_TIMEOUT).await;
    a.members.other("a");
    a.members.set_away(false);
    pass(HEARTBEAT_INTERVAL).await;
    assert!(a.run.is_finished());
    assert!(a.run.await.unwrap().is_err());
    assert!(
        !a.members.journal.lines().contains(&"resign".to_owned()),
        "the record belongs to another process"
    );
}

#[tokio::test(start_paused = true)]
async fn a_consumer_is_stuck_while_it_cannot_write_and_active_again_after() {
    let a = start(FakeMembers::default()).await;
    a.pass_with_heartbeats_of("b", Duration::from_secs(2)).await;
    a.in_flight.pause();
    a.pass_with_heartbeats_of("b", STUCK_AFTER - HEARTBEAT_INTERVAL).await;
    assert_eq!((a.members.announced(), a.owned()), (Some(MemberState::Active), 2));
    a.pass_with_heartbeats_of("b", HEARTBEAT_INTERVAL * 2).await;
    assert_eq!((a.members.announced(), a.owned()), (Some(MemberState::Stuck), 0));
    a.in_flight.resume();
    a.pass_with_heartbeats_of("b", HEARTBEAT_INTERVAL).await;
    assert_eq!((a.members.announced(), a.owned()), (Some(MemberState::Active), 2));
}

#[tokio::test(start_paused = true)]
async fn leaving_is_announced_immediately_and_until_the_end() {
    let a = start(FakeMembers::default()).await;
    pass(HEARTBEAT_INTERVAL / 3).await;
    let before = Instant::now();
    a.leaving.cancel();
    settle().await;
    assert_eq!(before.elapsed(), Duration::ZERO);
    assert_eq!((a.members.announced(), a.owned()), (Some(MemberState::Leaving), 0));
    a.in_flight.pause();
    pass(STUCK_AFTER * 2).await;
    assert_eq!(a.members.announced(), Some(MemberState::Leaving));
    a.drained.cancel();
    assert!(a.run.await.unwrap().is_ok());
    assert_eq!(a.members.announced(), None);
}

#[tokio::test(start_paused = true)]
async fn a_consumer_resigns_at_the_end_even_if_heartbeats_fail() {
    let a = start(FakeMembers::default()).await;
    a.members.set_away(true);
    a.leaving.cancel();
    pass(Duration::from_secs(10)).await;
    a.members.set_away(false);
    a.drained.cancel();
    assert!(a.run.await.unwrap().is_ok());
    assert_eq!(a.members.journal.lines().last().unwrap(), "resign");
    assert_eq!(a.members.announced(), None);
}

#[tokio::test(start_paused = true)]
async fn a_failed_resignation_is_not_an_error() {
    let a = start(FakeMembers::default()).await;
    a.members.set_away(true);
    a.drained.cancel();
    assert!(a.run.await.unwrap().is_ok());
    assert_eq!(a.members.journal.lines().last().unwrap(), "resign");
}

#[tokio::test(start_paused = true)]
async fn partition_growth_and_pauses_are_published_immediately() {
    let a = start(FakeMembers::default()).await;
    pass(HEARTBEAT_INTERVAL / 3).await;
    let before = Instant::now();
    a.partitions.send_replace(PartitionCount::new(8).unwrap());
    settle().await;
    assert_eq!(a.owned(), 8);
    a.paused.send_replace(Paused { all: false, some: vec![0, 3] });
    settle().await;
    assert_eq!((a.owned(), a.ownership.borrow().to_read().count()), (8, 6));
    a.paused.send_replace(Paused::default());
    settle().await;
    assert_eq!(a.ownership.borrow().to_read().count(), 8);
    assert_eq!(before.elapsed(), Duration::ZERO);
}
