//! Group commit over a scripted log, with paused time. The tests decide when each append returns, and with which result.

use fred::prelude::{Error, ErrorKind};
use tokio::{
    task::{JoinHandle, yield_now},
    time::{advance, sleep},
};

use super::*;

const ENTRY_TIMEOUT: Duration = Duration::from_secs(1);
const LIMITS: GroupCommitLimits =
    GroupCommitLimits { queue_likes: 4, entry_likes: 3, entry_timeout: ENTRY_TIMEOUT };

type Reply = Result<Appended, AppendError>;

/// An entry in flight.
struct Entry {
    stream: String,
    posts: Vec<i64>,
    reply: oneshot::Sender<Reply>,
}

impl Entry {
    fn is(&self, partition: usize, posts: &[i64]) -> bool {
        self.stream == format!("likes:{{{partition}}}") && self.posts == posts
    }

    fn succeed(self, entry_id: &str) {
        let appended = Appended { entry_id: entry_id.to_owned(), attempts: 1 };
        self.reply.send(Ok(appended)).expect("the entry is in flight");
    }

    fn fail(self, kind: ErrorKind, details: &'static str) {
        let may_be_executed = matches!(kind, ErrorKind::IO | ErrorKind::Timeout);
        let error = AppendError::Redis { source: Error::new(kind, details), may_be_executed };
        self.reply.send(Err(error)).expect("the entry is in flight");
    }
}

/// Sends every entry to the test, and waits for the reply of the test.
struct ScriptedLog {
    stream: String,
    entries: mpsc::UnboundedSender<Entry>,
}

impl AppendLog for ScriptedLog {
    fn stream(&self) -> &str {
        &self.stream
    }

    async fn append(&mut self, payload: Bytes, _trace: Option<&opentelemetry::trace::SpanContext>) -> Reply {
        let posts = codec::decode(&payload).unwrap().likes.iter().map(Like::post_id).collect();
        let (reply, replied) = oneshot::channel();
        self.entries.send(Entry { stream: self.stream.clone(), posts, reply }).unwrap();
        replied.await.expect("the test replies to the entry or keeps it")
    }
}

struct Harness {
    publisher: Arc<Publisher>,
    entries: mpsc::UnboundedReceiver<Entry>,
    partitions: watch::Sender<PartitionCount>,
    running: JoinHandle<()>,
}

impl Harness {
    fn new(partitions: u16, limits: GroupCommitLimits) -> Self {
        let keys: KeyPrefix = "likes".parse().unwrap();
        let meter = opentelemetry::global::meter("test");
        let metrics = Arc::new(Metrics::new(&meter, "http", &keys, std::iter::empty()));
        let partitions = watch::Sender::new(PartitionCount::new(partitions).unwrap());
        let (sender, entries) = mpsc::unbounded_channel();
        let open = move |stream| ScriptedLog { stream, entries: sender.clone() };
        let tracing = Tracing::default();
        let (publisher, group_commit) =
            GroupCommit::new(open, keys, partitions.subscribe(), limits, metrics, tracing);
        let running = tokio::spawn(group_commit.run());
        Self { publisher: Arc::new(publisher), entries, partitions, running }
    }

    /// Publishes a like, and returns when it is queued.
    async fn publish(&self, user: i64, post: i64) -> JoinHandle<Result<Accepted, PublishError>> {
        let publisher = Arc::clone(&self.publisher);
        let publishing = tokio::spawn(async move { publisher.publish(like(user, post), None).await });
        settle().await;
        publishing
    }

    async fn publish_batch(&self, likes: &[(i64, i64)]) -> JoinHandle<Result<(), PublishError>> {
        let publisher = Arc::clone(&self.publisher);
        let likes = likes.iter().map(|(user, post)| like(*user, *post)).collect();
        let publishing = tokio::spawn(async move { publisher.publish_batch(likes, None).await });
        settle().await;
        publishing
    }

    /// Returns the next entry that departs.
    async fn entry(&mut self) -> Entry {
        within_an_hour(self.entries.recv()).await.unwrap()
    }

    fn no_entry(&mut self) -> bool {
        self.entries.try_recv().is_err()
    }

    /// Drops the publisher. Callers that still wait keep a reference to it.
    fn shut_down(self) -> (JoinHandle<()>, mpsc::UnboundedReceiver<Entry>) {
        (self.running, self.entries)
    }
}

/// Limits a wait. Time is paused, so a test that would hang fails at once.
async fn within_an_hour<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_hours(1), future).await.expect("the future completes within an hour")
}

/// Runs all tasks until they wait, without advancing time.
async fn settle() {
    for _ in 0..20 {
        yield_now().await;
    }
}

fn like(user: i64, post: i64) -> Like {
    Like::new(user.into(), post.into(), 0).unwrap()
}

/// Returns a user of the partition.
fn user_of(partition: usize, partitions: u16) -> i64 {
    let count = PartitionCount::new(partitions).unwrap();
    (1..10_000).find(|user| count.of_user(*user).index() == partition).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_lone_like_departs_without_a_hold() {
    let mut harness = Harness::new(1, LIMITS);
    let started = Instant::now();
    let publishing = harness.publish(1, 42).await;
    let entry = harness.entry().await;
    assert!(entry.is(0, &[42]));
    assert_eq!(started.elapsed(), Duration::ZERO);
    entry.succeed("7-0");
    let accepted = publishing.await.unwrap().unwrap();
    assert_eq!((&*accepted.entry_id, accepted.partition.index()), ("7-0", 0));
}

#[tokio::test(start_paused = true)]
async fn likes_that_arrive_while_an_entry_is_in_flight_share_the_next_one() {
    let mut harness = Harness::new(1, LIMITS);
    let first = harness.publish(1, 1).await;
    let in_flight = harness.entry().await;
    let mut waiting = Vec::new();
    for post in 2..=5 {
        waiting.push(harness.publish(1, post).await);
    }
    // Longer than any hold: a partition has one entry in flight.
    sleep(HOLD * 10).await;
    assert!(harness.no_entry());
    in_flight.succeed("1-0");
    first.await.unwrap().unwrap();
    let full = harness.entry().await;
    assert_eq!(full.posts, [2, 3, 4], "the maximum number of likes in an entry");
    full.succeed("2-0");
    let rest = harness.entry().await;
    assert_eq!(rest.posts, [5]);
    rest.succeed("3-0");
    for (publishing, id) in waiting.into_iter().zip(["2-0", "2-0", "2-0", "3-0"]) {
        assert_eq!(&*publishing.await.unwrap().unwrap().entry_id, id);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_fails_only_the_likes_of_its_entry() {
    let mut harness = Harness::new(1, LIMITS);
    let lost = harness.publish(1, 1).await;
    let in_flight = harness.entry().await;
    let waiting = harness.publish(1, 2).await;
    in_flight.fail(ErrorKind::IO, "connection reset by peer");
    assert!(matches!(lost.await.unwrap().unwrap_err(), PublishError::Unavailable(..)));
    let next = harness.entry().await;
    assert_eq!(next.posts, [2], "the lost entry is not sent again");
    next.succeed("2-0");
    waiting.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_missing_reply_delays_other_partitions_by_at_most_one_hold() {
    let mut harness = Harness::new(2, LIMITS);
    let silent_user = user_of(0, 2);
    let other_user = user_of(1, 2);
    let silent = harness.publish(silent_user, 1).await;
    let _never_answered = harness.entry().await;
    for post in 2..=4 {
        let published = Instant::now();
        let other = harness.publish(other_user, post).await;
        assert!(harness.no_entry(), "the departure waits for the missing reply");
        let entry = harness.entry().await;
        assert!(entry.is(1, &[post]));
        // Timers have a resolution of a millisecond.
        assert!(published.elapsed() <= HOLD * 2, "{:?}", published.elapsed());
        entry.succeed("1-0");
        other.await.unwrap().unwrap();
    }
    assert!(matches!(silent.await.unwrap().unwrap_err(), PublishError::Unavailable(..)));
    assert!(!harness.running.is_finished());
}

#[tokio::test(start_paused = true)]
async fn partitions_that_are_due_depart_together_when_replies_arrive() {
    let mut harness = Harness::new(3, LIMITS);
    let users = [0, 1, 2].map(|partition| user_of(partition, 3));
    let _first = harness.publish(users[0], 1).await;
    let in_flight = harness.entry().await;
    let _second = harness.publish(users[1], 2).await;
    let _third = harness.publish(users[2], 3).await;
    assert!(harness.no_entry());
    let before = Instant::now();
    in_flight.succeed("1-0");
    let departed = [harness.entry().await, harness.entry().await];
    assert_eq!(departed.map(|entry| entry.posts), [[2], [3]]);
    assert_eq!(before.elapsed(), Duration::ZERO, "the hold ends with the reply");
}

#[tokio::test(start_paused = true)]
async fn a_like_is_not_appended_if_its_client_disconnects_before_departure() {
    let mut harness = Harness::new(1, LIMITS);
    let first = harness.publish(1, 1).await;
    let in_flight = harness.entry().await;
    let leaves = harness.publish(1, 2).await;
    let stays = harness.publish(1, 3).await;
    leaves.abort();
    settle().await;
    in_flight.succeed("1-0");
    first.await.unwrap().unwrap();
    let next = harness.entry().await;
    assert_eq!(next.posts, [3]);
    next.succeed("2-0");
    stays.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_partition_keeps_working_after_all_its_clients_disconnect() {
    let mut harness = Harness::new(1, LIMITS);
    let first = harness.publish(1, 1).await;
    let in_flight = harness.entry().await;
    let leaves = harness.publish(1, 2).await;
    leaves.abort();
    settle().await;
    in_flight.succeed("1-0");
    first.await.unwrap().unwrap();
    sleep(HOLD * 10).await;
    assert!(harness.no_entry(), "all waiting callers have left");
    let later = harness.publish(1, 3).await;
    let entry = harness.entry().await;
    assert_eq!(entry.posts, [3]);
    entry.succeed("2-0");
    later.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_like_that_timed_out_is_not_appended_later() {
    let mut harness = Harness::new(1, LIMITS);
    let in_flight_caller = harness.publish(1, 1).await;
    let in_flight = harness.entry().await;
    let waiting = harness.publish(1, 2).await;
    let started = Instant::now();
    assert!(matches!(in_flight_caller.await.unwrap().unwrap_err(), PublishError::Unavailable(..)));
    assert!(matches!(waiting.await.unwrap().unwrap_err(), PublishError::Unavailable(..)));
    assert!(started.elapsed() >= ENTRY_TIMEOUT && started.elapsed() <= ENTRY_TIMEOUT * 2);
    in_flight.succeed("1-0");
    sleep(HOLD * 10).await;
    assert!(harness.no_entry());
}

#[tokio::test(start_paused = true)]
async fn a_disconnect_in_flight_does_not_affect_others_in_the_entry() {
    let mut harness = Harness::new(1, LIMITS);
    let first = harness.publish(1, 1).await;
    let in_flight = harness.entry().await;
    let leaves = harness.publish(1, 2).await;
    let stays = harness.publish(1, 3).await;
    in_flight.succeed("1-0");
    first.await.unwrap().unwrap();
    let shared = harness.entry().await;
    assert_eq!(shared.posts, [2, 3]);
    leaves.abort();
    settle().await;
    shared.succeed("2-0");
    assert_eq!(&*stays.await.unwrap().unwrap().entry_id, "2-0");
    let later = harness.publish(1, 4).await;
    harness.entry().await.succeed("3-0");
    later.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_answered_when_all_of_its_entries_are_appended() {
    let mut harness = Harness::new(2, LIMITS);
    let users = [user_of(0, 2), user_of(1, 2)];
    let likes = [(users[0], 1), (users[1], 2), (users[0], 3), (users[0], 4), (users[0], 5)];
    let batch = harness.publish_batch(&likes).await;
    let first = harness.entry().await;
    let second = harness.entry().await;
    assert!(first.is(0, &[1, 3, 4]));
    assert!(second.is(1, &[2]));
    first.succeed("1-0");
    second.succeed("1-0");
    let third = harness.entry().await;
    assert_eq!(third.posts, [5]);
    settle().await;
    assert!(!batch.is_finished());
    third.succeed("2-0");
    batch.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_batch_fails_once_with_the_first_failure_of_its_entries() {
    let mut harness = Harness::new(3, LIMITS);
    let users = [0, 1, 2].map(|partition| user_of(partition, 3));
    let batch = harness.publish_batch(&[(users[0], 1), (users[1], 2), (users[2], 3)]).await;
    let [first, second, third] = [harness.entry().await, harness.entry().await, harness.entry().await];
    first.succeed("1-0");
    second.fail(ErrorKind::Unknown, "OOM command not allowed when used memory > 'maxmemory'.");
    assert_eq!(batch.await.unwrap().unwrap_err(), PublishError::OutOfMemory(Published::Unknown));
    // The last part fails after the caller has its result.
    third.fail(ErrorKind::IO, "connection reset by peer");
    settle().await;
    assert!(!harness.running.is_finished());
    let later = harness.publish(users[2], 4).await;
    harness.entry().await.succeed("2-0");
    later.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_rest_of_a_failed_batch_is_not_appended() {
    let mut harness = Harness::new(1, LIMITS);
    let batch = harness.publish_batch(&[(1, 1), (1, 2), (1, 3), (1, 4)]).await;
    let first = harness.entry().await;
    assert_eq!(first.posts, [1, 2, 3]);
    first.fail(ErrorKind::IO, "connection reset by peer");
    assert!(matches!(batch.await.unwrap().unwrap_err(), PublishError::Unavailable(..)));
    sleep(HOLD * 10).await;
    assert!(harness.no_entry());
}

#[tokio::test(start_paused = true)]
async fn partitions_grow_while_entries_are_in_flight() {
    let mut harness = Harness::new(1, LIMITS);
    let new_user = user_of(1, 2);
    let before = harness.publish(new_user, 1).await;
    let in_flight = harness.entry().await;
    assert!(in_flight.is(0, &[1]));
    harness.partitions.send_replace(PartitionCount::new(2).unwrap());
    settle().await;
    let after = harness.publish(new_user, 2).await;
    let entry = harness.entry().await;
    assert!(entry.is(1, &[2]));
    entry.succeed("1-0");
    assert_eq!(after.await.unwrap().unwrap().partition.index(), 1);
    in_flight.succeed("1-0");
    assert_eq!(before.await.unwrap().unwrap().partition.index(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_only_its_own_partition() {
    let mut harness = Harness::new(2, LIMITS);
    let full_user = user_of(0, 2);
    let other_user = user_of(1, 2);
    let first = harness.publish(full_user, 1).await;
    let in_flight = harness.entry().await;
    let mut waiting = Vec::new();
    for post in 2..=5 {
        waiting.push(harness.publish(full_user, post).await);
    }
    let refused = harness.publish(full_user, 6).await;
    assert_eq!(refused.await.unwrap().unwrap_err(), PublishError::QueueFull);
    let refused = harness.publish_batch(&[(other_user, 7), (full_user, 8)]).await;
    assert_eq!(
        refused.await.unwrap().unwrap_err(),
        PublishError::QueueFull,
        "a batch is queued as a whole or not at all"
    );
    let other = harness.publish(other_user, 9).await;
    let entry = harness.entry().await;
    assert!(entry.is(1, &[9]));
    entry.succeed("1-0");
    other.await.unwrap().unwrap();
    in_flight.succeed("1-0");
    first.await.unwrap().unwrap();
    harness.entry().await.succeed("2-0");
    harness.entry().await.succeed("3-0");
    for publishing in waiting {
        publishing.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_over_the_queue_limit_fits_into_an_empty_queue() {
    let mut harness = Harness::new(1, LIMITS);
    let first = harness.publish(1, 1).await;
    let in_flight = harness.entry().await;
    let likes: Vec<_> = (2..=7).map(|post| (1, post)).collect();
    let batch = harness.publish_batch(&likes).await;
    let refused = harness.publish(1, 8).await;
    assert_eq!(refused.await.unwrap().unwrap_err(), PublishError::QueueFull);
    in_flight.succeed("1-0");
    first.await.unwrap().unwrap();
    harness.entry().await.succeed("2-0");
    harness.entry().await.succeed("3-0");
    batch.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn group_commit_ends_immediately_when_nothing_is_left() {
    let harness = Harness::new(2, LIMITS);
    settle().await;
    let (running, _entries) = harness.shut_down();
    let started = Instant::now();
    within_an_hour(running).await.unwrap();
    assert_eq!(started.elapsed(), Duration::ZERO);
}

/// Queues a like without waiting, so that no caller keeps the publisher.
fn request(publisher: &Publisher, post: i64) -> oneshot::Receiver<Result<Accepted, PublishError>> {
    let (answer, answered) = oneshot::channel();
    publisher.queue.try_send(Request::One(like(1, post), None, answer)).unwrap();
    answered
}

#[tokio::test(start_paused = true)]
async fn likes_queued_or_in_flight_are_answered_before_shutdown_ends() {
    let mut harness = Harness::new(1, LIMITS);
    let in_flight = request(&harness.publisher, 1);
    let first = harness.entry().await;
    let queued = request(&harness.publisher, 2);
    settle().await;
    let unread = request(&harness.publisher, 3);
    let (running, mut entries) = harness.shut_down();
    settle().await;
    assert!(!running.is_finished(), "an entry is in flight");
    first.succeed("1-0");
    let second = within_an_hour(entries.recv()).await.unwrap();
    assert_eq!(second.posts, [2, 3]);
    assert!(!running.is_finished());
    second.fail(ErrorKind::IO, "connection reset by peer");
    within_an_hour(running).await.unwrap();
    assert_eq!(&*in_flight.await.unwrap().unwrap().entry_id, "1-0");
    assert!(matches!(queued.await.unwrap().unwrap_err(), PublishError::Unavailable(..)));
    assert!(matches!(unread.await.unwrap().unwrap_err(), PublishError::Unavailable(..)));
}

#[tokio::test(start_paused = true)]
async fn shutdown_does_not_wait_for_disconnected_clients() {
    let mut harness = Harness::new(1, LIMITS);
    let in_flight = request(&harness.publisher, 1);
    let first = harness.entry().await;
    drop(request(&harness.publisher, 2));
    drop(in_flight);
    let (running, mut entries) = harness.shut_down();
    advance(ENTRY_TIMEOUT).await;
    assert!(!running.is_finished(), "the entry is still in flight");
    first.succeed("1-0");
    within_an_hour(running).await.unwrap();
    assert!(within_an_hour(entries.recv()).await.is_none());
}
