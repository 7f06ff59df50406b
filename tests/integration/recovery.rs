//! Crashes, outages and operator errors: every accepted like is stored exactly once.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use devstack::{http_client::HttpClient, program::Program};
use fred::{
    prelude::{Client, ClientLike, KeysInterface, StreamsInterface, Value},
    types::{ClusterHash, CustomCommand},
};

use crate::harness::{
    GROUP, PARTITIONS, SOON, Setup, append_raw, create_groups, eventually, like, likes, pending,
    pending_or_none, post, send_heartbeats_as, stream,
};

async fn deliver_to(client: &Client, consumer: &str) {
    for partition in 0..PARTITIONS {
        client
            .xreadgroup::<Value, _, _, _, _>(GROUP, consumer, None, None, false, stream(partition), ">")
            .await
            .unwrap();
    }
}

/// A process that crashed with pending entries restarts under its old name and recovers them immediately.
#[tokio::test(flavor = "multi_thread")]
async fn own_pending_entries_are_recovered_at_start() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    create_groups(&redis).await;
    setup.append(&likes(1_000), 1).await;
    deliver_to(&redis, "phoenix").await;
    assert_eq!(pending(&redis).await, 1_000);
    let settings = [("CONSUMER_NAME", "phoenix"), ("CLAIM_MIN_IDLE", "1h"), ("BATCH_ROWS", "100")];
    let _consumer = setup.consumer(&settings);
    setup.wait_for_rows(1_000).await;
    setup.wait_until_drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_of_a_dead_consumer_are_claimed() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    create_groups(&redis).await;
    setup.append(&likes(1_000), 1).await;
    deliver_to(&redis, "gone").await;
    // Long enough that a slow consumer does not claim its own entries.
    let consumer = setup.consumer(&[("CLAIM_MIN_IDLE", "10s"), ("WRITE_TIMEOUT", "4s")]);
    setup.wait_for_rows(1_000).await;
    setup.wait_until_drained().await;
    assert_eq!(consumer.metrics().unwrap().sum("likestream_entries_reclaimed_total"), 1_000.0);
}

/// Another program may read, or send heartbeats, under a name that is not valid UTF-8.
#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_not_utf8_do_not_stop_reading() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    create_groups(&redis).await;
    setup.append(&likes(20), 1).await;
    let name = Value::Bytes(b"gone\xff"[..].into());
    let run = async |command, arguments: Vec<Value>| {
        let command = CustomCommand::new_static(command, ClusterHash::Random, false);
        redis.custom::<Value, _>(command, arguments).await.unwrap();
    };
    for partition in 0..PARTITIONS {
        let reader = ["GROUP", GROUP].map(Value::from).into_iter().chain([name.clone()]);
        let all = ["STREAMS".into(), stream(partition).into(), ">".into()];
        run("XREADGROUP", reader.chain(all).collect()).await;
    }
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let heartbeat = format!("test\u{e9} leaving  {now_ms}");
    run("HSET", vec![format!("likes:members:{GROUP}").into(), name, heartbeat.into()]).await;
    let consumer = setup.consumer(&[("CLAIM_MIN_IDLE", "1h")]);
    setup.wait_for_rows(20).await;
    setup.wait_until_drained().await;
    assert!(consumer.log_text().contains("gone\u{fffd}"), "{}", consumer.log_text());
}

/// Claimable entries can be far behind entries that are not idle: the cursor is kept from page to page.
#[tokio::test(flavor = "multi_thread")]
async fn claiming_continues_past_entries_that_are_not_idle() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    create_groups(&redis).await;
    let mut ids = Vec::new();
    for user in 1..=1_600_u64 {
        ids.push(append_raw(&redis, 0, &shared::wire::codec::encode(&[like(user, 42)])).await);
    }
    deliver_to(&redis, "living").await;
    let _heartbeats = send_heartbeats_as(redis.clone(), "living");
    let claim = CustomCommand::new_static("XCLAIM", ClusterHash::Random, false);
    for id in &ids[1_500..] {
        let arguments =
            [stream(0).as_str(), GROUP, "gone", "0", id, "IDLE", "7200000", "JUSTID"].map(str::to_owned);
        redis.custom::<Value, _>(claim.clone(), arguments.to_vec()).await.unwrap();
    }
    let _consumer = setup.consumer(&[("CLAIM_MIN_IDLE", "1h")]);
    setup.wait_for_rows(100).await;
    eventually("only the live consumer has pending entries", async || pending(&redis).await == 1_500).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_of_a_live_consumer_are_not_claimed() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    create_groups(&redis).await;
    append_raw(&redis, 0, &[0x92, 1, 0x93, 7, 42, 5]).await;
    deliver_to(&redis, "living").await;
    let _heartbeats = send_heartbeats_as(redis.clone(), "living");
    let consumer = setup.consumer(&[("CLAIM_MIN_IDLE", "1h")]);
    setup.append(&likes(100), 1).await;
    setup.wait_for_rows(100).await;
    assert_eq!(consumer.metrics().unwrap().sum("likestream_entries_reclaimed_total"), 0.0);
    assert_eq!(pending(&redis).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_consumer_causes_no_loss_and_no_duplicates() {
    let mut setup = Setup::with_own_postgres(&[]);
    let redis = setup.redis_client().await;
    let settings = [("CLAIM_MIN_IDLE", "1s"), ("WRITE_TIMEOUT", "400ms"), ("BATCH_ROWS", "200")];
    setup.append(&likes(5_000), 3).await;
    // Postgres is frozen during a transaction, so that the consumer is killed with a batch in flight.
    setup.postgres().pause();
    let mut victim = setup.start("consumer", &settings);
    setup.postgres().resume();
    eventually("the consumer has pending entries", async || pending_or_none(&redis).await > 0).await;
    setup.postgres().pause();
    victim.kill();
    setup.postgres().resume();
    let _survivor = setup.consumer(&settings);
    setup.wait_for_rows(5_000).await;
    setup.wait_until_drained().await;
    assert_eq!(setup.count().await, 5_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_restart_is_retried() {
    let mut setup = Setup::with_own_postgres(&[]);
    let ingest = setup.ingest(&[]);
    let consumer = setup.consumer(&[]);
    let mut client = HttpClient::new(ingest.listen());
    for round in 0..3_u64 {
        if round == 1 {
            setup.postgres().kill();
        } else {
            setup.postgres().stop();
        }
        for user in 1..=100 {
            assert_eq!(
                client.post_like(round * 100 + user, 42).await.unwrap().status,
                202,
                "likes wait in Redis"
            );
        }
        setup.postgres().start_again().unwrap();
        setup.wait_for_rows(usize::try_from(round + 1).unwrap() * 100).await;
    }
    setup.wait_until_drained().await;
    consumer.wait_ready(SOON).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_postgres_times_out_and_is_retried() {
    let mut setup = Setup::with_own_postgres(&[]);
    let consumer = setup.consumer(&[("WRITE_TIMEOUT", "300ms")]);
    setup.append(&likes(1), 1).await;
    setup.wait_for_rows(1).await;
    setup.postgres().pause();
    setup.append(&likes(500), 1).await;
    eventually("attempts time out", async || {
        consumer.metrics().unwrap().sum("likestream_batches_failed_total") >= 2.0
    })
    .await;
    assert!(consumer.log_text().contains("Postgres did not respond within WRITE_TIMEOUT"));
    setup.postgres().resume();
    setup.wait_for_rows(500).await;
    setup.wait_until_drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_resumes_after_a_redis_restart() {
    let mut setup = Setup::with_redis(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let _consumer = setup.consumer(&[]);
    setup.append(&likes(100), 1).await;
    setup.wait_for_rows(100).await;
    for killed in [true, false] {
        if killed {
            setup.redis.kill();
        } else {
            setup.redis.stop();
        }
        setup.redis.start_again().unwrap();
        let users = if killed { 200 } else { 300 };
        setup.append(&likes(users), 1).await;
        setup.wait_for_rows(usize::try_from(users).unwrap()).await;
    }
    setup.wait_until_drained().await;
}

/// A closed connection loses the reply to a read. Its entries are pending for a consumer that never received them.
#[tokio::test(flavor = "multi_thread")]
async fn killed_redis_connections_cause_no_loss() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    let ingest = setup.ingest(&[]);
    let _consumer =
        setup.consumer(&[("CLAIM_MIN_IDLE", "1h"), ("BATCH_ROWS", "50"), ("BATCH_LINGER", "1ms")]);
    let mut client = HttpClient::new(ingest.listen());
    let kill = CustomCommand::new_static("CLIENT", ClusterHash::Random, false);
    for user in 1..=2_000 {
        let accepted = async || client.post_like(user, 42).await.is_ok_and(|response| response.status == 202);
        eventually("202", accepted).await;
        if user % 50 == 0 {
            redis
                .custom::<(), _>(kill.clone(), vec!["KILL", "TYPE", "normal", "SKIPME", "yes"])
                .await
                .unwrap();
        }
    }
    setup.wait_for_rows(2_000).await;
    setup.wait_until_drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_group_is_recreated_at_the_first_entry() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    let ingest = setup.ingest(&[]);
    let consumer = setup.consumer(&[]);
    setup.append(&likes(10), 1).await;
    setup.wait_for_rows(10).await;
    for round in 1..=3_u64 {
        match round {
            1 => redis.flushall::<()>(false).await.unwrap(),
            2 => redis.del::<(), _>(stream(0)).await.unwrap(),
            _ => redis.xgroup_destroy::<(), _, _>(stream(0), GROUP).await.unwrap(),
        }
        // Entries that are appended before the group is recreated must not be skipped.
        for user in 1..=100 {
            let body = format!(r#"{{"user_id": {}, "post_id": 42}}"#, round * 100 + user);
            assert_eq!(post(&ingest, &body).await.status, 202);
        }
        setup.wait_for_rows(10 + usize::try_from(round).unwrap() * 100).await;
    }
    consumer.wait_ready(SOON).unwrap();
}

/// An operator deletes pending entries. This is data loss and must be reported as such.
#[tokio::test(flavor = "multi_thread")]
async fn deleted_entries_are_reported_as_lost() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    create_groups(&redis).await;
    let mut ids = Vec::new();
    for user in 1..=6_u8 {
        ids.push(append_raw(&redis, 0, &[0x92, 1, 0x93, user, 42, 5]).await);
    }
    for (consumer, count) in [("gone", 3_u64), ("back", 3)] {
        redis
            .xreadgroup::<Value, _, _, _, _>(GROUP, consumer, Some(count), None, false, stream(0), ">")
            .await
            .unwrap();
    }
    redis.xdel::<u64, _, _>(stream(0), vec![ids[0].clone(), ids[3].clone()]).await.unwrap();
    let settings = [("CONSUMER_NAME", "back"), ("CLAIM_MIN_IDLE", "500ms"), ("WRITE_TIMEOUT", "200ms")];
    let consumer = setup.consumer(&settings);
    setup.wait_for_rows(4).await;
    eventually("nothing pending", async || pending(&redis).await == 0).await;
    assert_eq!(consumer.metrics().unwrap().sum("likestream_entries_lost_total"), 2.0);
    assert!(consumer.log_text().contains("data loss: entries were deleted"));
}

/// Locks the table until two consumers have all entries in flight, and deletes some of these. Returns the consumers, and the
/// session that holds the lock.
async fn delete_entries_in_flight(
    setup: &Setup,
    redis: &Client,
    deleted: usize,
) -> ([Program; 2], tokio_postgres::Client) {
    let settings = [("CLAIM_MIN_IDLE", "1s"), ("WRITE_TIMEOUT", "400ms")];
    let consumers = [setup.consumer(&settings), setup.consumer(&settings)];
    let postgres = setup.postgres_client().await;
    postgres.batch_execute("BEGIN; LOCK TABLE likes IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let mut ids = Vec::new();
    for user in 1..=200 {
        let partition = u16::try_from(user % u64::from(PARTITIONS)).unwrap();
        let id = append_raw(redis, partition, &shared::wire::codec::encode(&[like(user, 42)])).await;
        ids.push((partition, id));
    }
    // A paused consumer reads no more: the batch that waits for the lock is the first one that it has read.
    eventually("entries are in flight", async || pending(redis).await > 0).await;
    let mut left = deleted;
    for (partition, id) in ids {
        let held =
            redis.xpending::<Vec<Value>, _, _, _>(stream(partition), GROUP, (0, &id, &id, 1)).await.unwrap();
        if left > 0 && !held.is_empty() {
            redis.xdel::<u64, _, _>(stream(partition), id).await.unwrap();
            left -= 1;
        }
    }
    assert_eq!(left, 0, "too few entries are pending");
    (consumers, postgres)
}

fn lost(consumer: &Program) -> f64 {
    consumer.metrics().unwrap().sum("likestream_entries_lost_total")
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_entries_that_a_consumer_still_stores_are_not_lost() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    let (consumers, postgres) = delete_entries_in_flight(&setup, &redis, 2).await;
    // Longer than CLAIM_MIN_IDLE.
    tokio::time::sleep(Duration::from_secs(2)).await;
    postgres.batch_execute("COMMIT").await.unwrap();
    setup.wait_for_rows(200).await;
    setup.wait_until_drained().await;
    for consumer in &consumers {
        assert_eq!(lost(consumer), 0.0);
        assert!(!consumer.log_text().contains("data loss"), "{}", consumer.log_text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_entries_of_a_killed_consumer_are_lost() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    let (mut consumers, postgres) = delete_entries_in_flight(&setup, &redis, 2).await;
    consumers.iter_mut().for_each(Program::kill);
    postgres.batch_execute("COMMIT").await.unwrap();
    let next = setup.consumer(&[]);
    setup.wait_for_rows(198).await;
    setup.wait_until_drained().await;
    eventually("the loss is counted", async || lost(&next) == 2.0).await;
    assert_eq!(setup.count().await, 198);
}

/// Consumers that receive the same rows in opposite order must not deadlock, because batches are sorted.
#[tokio::test(flavor = "multi_thread")]
async fn consumers_with_the_same_likes_do_not_deadlock() {
    let setup = Setup::new().await;
    let settings = [("BATCH_ROWS", "2000")];
    let consumers = [setup.consumer(&settings), setup.consumer(&settings), setup.consumer(&settings)];
    let there = likes(4_000);
    let back: Vec<_> = there.iter().rev().copied().collect();
    for _ in 0..5 {
        setup.append(&there, 100).await;
        setup.append(&back, 100).await;
    }
    setup.wait_until_drained().await;
    assert_eq!(setup.count().await, 4_000);
    for consumer in &consumers {
        assert_eq!(
            consumer.metrics().unwrap().sum("likestream_batches_failed_total"),
            0.0,
            "{}",
            consumer.log_text()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_accepted_like_survives_a_killed_ingest() {
    let setup = Setup::new().await;
    let mut ingest = setup.ingest(&[]);
    let mut client = HttpClient::new(ingest.listen());
    for user in 1..=50 {
        assert_eq!(client.post_like(user, 42).await.unwrap().status, 202);
    }
    ingest.kill();
    let _consumer = setup.consumer(&[]);
    setup.wait_for_rows(50).await;
}
