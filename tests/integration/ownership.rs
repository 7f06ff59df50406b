//! Partition ownership: joining, leaving, crashing, freezing and standby. Overlaps and gaps cause no loss and no
//! duplicates.

use std::time::{Duration, Instant};

use devstack::program::Program;
use nix::sys::signal::Signal;
use tokio_util::sync::CancellationToken;

use crate::{
    harness::{
        GROUP, PARTITIONS, SOON, Settings, Setup, eventually, likes, pending, post, run, send_heartbeats_as,
    },
    load::{Load, Stalls},
    proxy::Proxy,
};

fn owned(consumer: &Program) -> u16 {
    let owned = consumer.metrics().unwrap().sum("likestream_partitions_owned");
    (0..=1_024).find(|n| f64::from(*n) == owned).unwrap()
}

fn counted(consumers: &[Program], metric: &str) -> f64 {
    consumers.iter().map(|consumer| consumer.metrics().unwrap().sum(metric)).sum()
}

/// Waits until all partitions are owned and evenly distributed, and returns the elapsed time.
async fn settled(consumers: &[Program]) -> Duration {
    let started = Instant::now();
    eventually("ownership settles", async || {
        let owned: Vec<u16> = consumers.iter().map(owned).collect();
        let (least, most) = (owned.iter().min().unwrap(), owned.iter().max().unwrap());
        owned.iter().sum::<u16>() == PARTITIONS && most - least <= 1
    })
    .await;
    started.elapsed()
}

/// Returns the longest time without growth of the table.
async fn watch_rows(client: tokio_postgres::Client, stop: CancellationToken) -> Duration {
    let mut stalls = Stalls::new();
    while !stop.is_cancelled() {
        let row = client.query_one("SELECT count(*) FROM likes", &[]).await.unwrap();
        stalls.saw(row.get(0));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stalls.longest
}

/// Maximum end-to-end latency in milliseconds.
async fn longest_wait_ms(client: &tokio_postgres::Client) -> i64 {
    let sql = "SELECT coalesce(max(extract(epoch FROM pg_xact_commit_timestamp(xmin) - created_at) * 1000), 0)::bigint
               FROM likes";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn consumers_join_and_leave_under_load_without_loss() {
    let setup = Setup::with_own_postgres(&[("track_commit_timestamp", "on")]);
    let ingest = setup.ingest(&[]);
    let mut consumers = vec![setup.consumer(&[])];
    let load = Load::start(ingest.listen(), 500);
    load.wait_for(200).await;
    let stop = CancellationToken::new();
    let watching = tokio::spawn(watch_rows(setup.postgres_client().await, stop.clone()));
    let one = settled(&consumers).await;
    consumers.extend((0..3).map(|_| setup.consumer(&[])));
    let four = settled(&consumers).await;
    load.wait_for(500).await;
    for consumer in &mut consumers[..2] {
        assert!(consumer.terminate(SOON).unwrap().success());
    }
    consumers.drain(..2);
    let two = settled(&consumers).await;
    load.wait_for(500).await;
    stop.cancel();
    let stalled = watching.await.unwrap();
    let sent = load.finish().await;
    setup.wait_for_rows(sent).await;
    setup.wait_until_drained().await;
    let waited_ms = longest_wait_ms(&setup.postgres_client().await).await;
    println!(
        "{sent} likes; settled after {one:?} with 1, {four:?} with 4, {two:?} with 2; stalled for {stalled:?} at most; longest wait {waited_ms} ms"
    );
}

/// The entries of a killed consumer are claimed although `CLAIM_MIN_IDLE` is one hour.
#[tokio::test(flavor = "multi_thread")]
async fn entries_of_a_killed_consumer_are_claimed_before_claim_min_idle() {
    let mut setup = Setup::with_own_postgres(&[]);
    let redis = setup.redis_client().await;
    let settings: Settings<'_> = &[("CLAIM_MIN_IDLE", "1h"), ("BATCH_ROWS", "300")];
    let mut consumers: Vec<Program> = (0..3).map(|_| setup.consumer(settings)).collect();
    settled(&consumers).await;
    setup.postgres().pause();
    setup.append(&likes(3_000), 1).await;
    eventually("all consumers have entries in flight", async || {
        consumers
            .iter()
            .all(|consumer| consumer.metrics().unwrap().sum("messaging_client_consumed_messages_total") > 0.0)
    })
    .await;
    consumers.remove(0).kill();
    let killed = Instant::now();
    assert!(pending(&redis).await > 0);
    setup.postgres().resume();
    setup.wait_for_rows(3_000).await;
    println!("the entries of the killed consumer were stored {:?} after the kill", killed.elapsed());
    setup.wait_until_drained().await;
    assert!(counted(&consumers, "likestream_entries_reclaimed_total") > 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_consumer_rejoins_without_creating_duplicates() {
    let mut setup = Setup::with_own_postgres(&[]);
    let settings: Settings<'_> = &[("CLAIM_MIN_IDLE", "1h"), ("BATCH_ROWS", "200")];
    let consumers: Vec<Program> = (0..2).map(|_| setup.consumer(settings)).collect();
    settled(&consumers).await;
    setup.postgres().pause();
    setup.append(&likes(2_000), 1).await;
    eventually("the consumer has entries in flight", async || {
        consumers[0].metrics().unwrap().sum("messaging_client_consumed_messages_total") > 0.0
    })
    .await;
    consumers[0].signal(Signal::SIGSTOP);
    setup.postgres().resume();
    // The other consumer takes over partitions and entries.
    setup.wait_for_rows(2_000).await;
    eventually("the other consumer owns all partitions", async || owned(&consumers[1]) == PARTITIONS).await;
    consumers[0].signal(Signal::SIGCONT);
    settled(&consumers).await;
    setup.append(&likes(2_100), 7).await;
    setup.wait_for_rows(2_100).await;
    setup.wait_until_drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_name_is_unique_in_the_group() {
    let setup = Setup::new().await;
    let mut first = setup.consumer(&[("CONSUMER_NAME", "one")]);
    let (redis_url, database_url) = (setup.redis.url(), setup.database_url());
    let settings = [
        ("REDIS_URL", redis_url.as_str()),
        ("DATABASE_URL", &database_url),
        ("CONSUMER_NAME", "one"),
        ("CONSUMER_ADMIN_LISTEN", "127.0.0.1:0"),
    ];
    let second = run("consumer", &[], &settings);
    assert_eq!(second.code, Some(2), "{}", second.stderr);
    assert_eq!(
        second.stderr.lines().last().unwrap(),
        "error: CONSUMER_NAME: 'one' is in use by another consumer of the group likes-writers; expected a name that is unique in the group"
    );
    assert_eq!(owned(&first), PARTITIONS);

    // A dead consumer does not block its name, and a consumer that was frozen exits if another process has its name.
    first.kill();
    let mut second = setup.consumer(&[("CONSUMER_NAME", "one")]);
    second.signal(Signal::SIGSTOP);
    let third = setup.consumer(&[("CONSUMER_NAME", "one")]);
    second.signal(Signal::SIGCONT);
    assert_eq!(second.wait_exit(SOON).unwrap().code(), Some(2));
    assert!(second.log_text().contains("is in use by another consumer"));
    setup.append(&likes(500), 1).await;
    setup.wait_for_rows(500).await;
    assert_eq!(owned(&third), PARTITIONS);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_takes_over_from_a_killed_consumer() {
    let setup = Setup::new().await;
    let mut consumers: Vec<Program> = (0..=PARTITIONS).map(|_| setup.consumer(&[])).collect();
    settled(&consumers).await;
    let idle = consumers.iter().position(|consumer| owned(consumer) == 0).unwrap();
    eventually("the standby is logged", async || consumers[idle].log_text().contains("standby")).await;
    let standby = consumers.remove(idle);
    consumers[0].kill();
    eventually("the standby takes over", async || owned(&standby) == 1).await;
    setup.append(&likes(100), 1).await;
    setup.wait_for_rows(100).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn static_assignments_and_automatic_ones_share_all_partitions() {
    let setup = Setup::new().await;
    let low = setup.consumer(&[("CONSUMER_PARTITIONS", "0-1")]);
    setup.append(&likes(400), 1).await;
    setup.wait_for_rows(200).await;
    assert_eq!(low.metrics().unwrap().sum("likestream_partitions_orphaned"), 2.0);
    assert!(low.log_text().contains("orphaned partitions: no member reads them"));

    let odd = setup.consumer(&[("CONSUMER_PARTITIONS", "1/2")]);
    setup.wait_for_rows(300).await;
    let rest = setup.consumer(&[]);
    setup.wait_for_rows(400).await;
    eventually("every partition has an owner", async || {
        [&low, &odd, &rest].iter().all(|c| c.metrics().unwrap().sum("likestream_partitions_orphaned") == 0.0)
    })
    .await;
    assert_eq!([owned(&low), owned(&odd), owned(&rest)], [2, 2, 1]);
}

/// A consumer without access to Postgres must not keep partitions that others could process.
#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_consumer_hands_its_partitions_to_others() {
    let setup = Setup::with_own_postgres(&[]);
    let port = setup.database_url().rsplit_once(':').unwrap().1.split('/').next().unwrap().parse().unwrap();
    let proxy = Proxy::start(port).await;
    let proxied = setup.database_url().replace(&format!(":{port}"), &format!(":{}", proxy.port()));
    let settings: Settings<'_> = &[("WRITE_TIMEOUT", "300ms"), ("CLAIM_MIN_IDLE", "1s")];
    let cut_off = setup.consumer(&[settings, &[("DATABASE_URL", &proxied)]].concat());
    let other = setup.consumer(settings);
    eventually("both consumers own partitions", async || owned(&cut_off) == 2 && owned(&other) == 2).await;
    proxy.hold_requests();
    setup.append(&likes(1_000), 1).await;
    // Its pending entries are claimed after CLAIM_MIN_IDLE.
    setup.wait_for_rows(1_000).await;
    assert_eq!((owned(&cut_off), owned(&other)), (0, PARTITIONS));
    proxy.let_go();
    eventually("both consumers own partitions again", async || owned(&cut_off) == 2 && owned(&other) == 2)
        .await;
    setup.wait_until_drained().await;
}

/// When Redis is back, all heartbeats are older than the liveness timeout.
#[tokio::test(flavor = "multi_thread")]
async fn no_member_is_declared_dead_after_a_redis_outage() {
    let setup = Setup::new().await;
    let consumers = [setup.consumer(&[]), setup.consumer(&[])];
    settled(&consumers).await;
    setup.redis.pause();
    tokio::time::sleep(Duration::from_secs(6)).await;
    setup.redis.resume();
    for consumer in &consumers {
        consumer.wait_ready(SOON).unwrap();
    }
    settled(&consumers).await;
    for consumer in &consumers {
        let assignments = consumer.log_text().matches("partitions assigned").count();
        assert!(assignments <= 2, "{}", consumer.log_text());
    }
}

/// As after a failover to a server whose clock is behind. Only the clock of Redis is used, never that of another host.
#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_from_the_future_still_expires() {
    use fred::prelude::HashesInterface;
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    let key = format!("likes:members:{GROUP}");
    let garbage = [("ghost", "token able  99999999999999"), ("garbage", "?"), ("", "")];
    for (name, record) in garbage {
        redis.hset::<u64, _, _>(&key, (name, record)).await.unwrap();
    }
    let consumer = setup.consumer(&[]);
    assert!(owned(&consumer) < PARTITIONS, "the ghost counts as a member");
    eventually("the ghost has expired", async || owned(&consumer) == PARTITIONS).await;
    assert!(!redis.hexists::<bool, _, _>(&key, "garbage").await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn quiet_partitions_share_transactions() {
    let setup = Setup::new().await;
    let settings: Settings<'_> =
        &[("LIKES_PARTITIONS", "64"), ("BATCH_LINGER", "500ms"), ("CLAIM_MIN_IDLE", "21s")];
    let ingest = setup.ingest(settings);
    let consumers = [setup.consumer(settings), setup.consumer(settings)];
    let started = Instant::now();
    let load = Load::start(ingest.listen(), 20);
    load.wait_for(100).await;
    let sent = load.finish().await;
    setup.wait_for_rows(sent).await;
    let lingers = started.elapsed().as_secs_f64() / 0.5;
    for consumer in &consumers {
        let transactions = consumer.metrics().unwrap().sum("likestream_batches_committed_total");
        println!("{transactions} transactions in {lingers:.1} linger intervals");
        assert!(transactions <= lingers + 1.0, "{transactions} in {lingers}");
    }
}

/// Heartbeats of a foreign reader of the group do not disturb the rebuild.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_member_registry_is_rebuilt() {
    use fred::prelude::KeysInterface;
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    let consumers = [setup.consumer(&[]), setup.consumer(&[])];
    let _heartbeats = send_heartbeats_as(redis.clone(), "foreign");
    settled(&consumers).await;
    let ingest = setup.ingest(&[]);
    redis.del::<u64, _>("likes:members:likes-writers").await.unwrap();
    assert_eq!(post(&ingest, r#"{"user_id": 7, "post_id": 42}"#).await.status, 202);
    setup.wait_for_rows(1).await;
    settled(&consumers).await;
}
