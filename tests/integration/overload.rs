//! Overload and Redis outages: clients get a 503 with Retry-After, and no accepted like is dropped.

use std::{collections::HashMap, time::Duration};

use devstack::{http_client::HttpClient, program::Program};
use fred::{
    prelude::{Client, ClientLike, StreamsInterface, Value},
    types::{ClusterHash, CustomCommand},
};
use futures_util::future::join_all;
use tokio::time::timeout;

use crate::harness::{
    GROUP, PARTITIONS, Setup, append_raw, create_groups, dead_stream, entries, eventually, likes, post,
    problem, stream,
};

const LIKE: &str = r#"{"user_id": 7, "post_id": 42}"#;

async fn config_set(client: &Client, name: &str, value: &str) {
    let command = CustomCommand::new_static("CONFIG", ClusterHash::Random, false);
    client.custom::<(), _>(command, vec!["SET", name, value]).await.unwrap();
}

async fn refused_as(ingest: &Program, code: &str) -> bool {
    let response = post(ingest, LIKE).await;
    if response.status != 503 {
        return false;
    }
    assert!(response.headers["retry-after"].to_str().unwrap().parse::<u32>().unwrap() >= 1);
    problem(&response) == code
}

#[tokio::test(flavor = "multi_thread")]
async fn a_like_is_accepted_only_after_redis_has_it() {
    let setup = Setup::new().await;
    let ingest = setup.ingest(&[("REDIS_TIMEOUT", "20s")]);
    setup.redis.pause();
    let mut answer = Box::pin(post(&ingest, LIKE));
    assert!(
        timeout(Duration::from_millis(500), &mut answer).await.is_err(),
        "answered while Redis was frozen"
    );
    setup.redis.resume();
    assert_eq!(answer.await.status, 202);
    assert_eq!(entries(&setup.redis_client().await).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn likes_that_wait_for_redis_share_entries() {
    let setup = Setup::new().await;
    let ingest = setup.ingest(&[("REDIS_TIMEOUT", "20s"), ("INGEST_ENTRY_LIKES", "30")]);
    let ingest_accepted = || ingest.metrics().unwrap().sum("likestream_likes_accepted_total");
    setup.redis.pause();
    // All likes are of one user, and therefore in one partition.
    let callers = (1..=100).map(|post| {
        let mut client = HttpClient::new(ingest.listen());
        tokio::spawn(async move { client.post_like(7, post).await })
    });
    let answers = join_all(callers.collect::<Vec<_>>());
    let active = || ingest.metrics().unwrap().sum("http_server_active_requests");
    eventually("all requests are in flight", async || active() == 100.0).await;
    assert_eq!(ingest_accepted(), 0.0);
    setup.redis.resume();
    for response in answers.await {
        assert_eq!(response.unwrap().unwrap().status, 202);
    }
    // The first likes departed before the others arrived. The rest had to wait, and an entry has at most 30 likes.
    let entries = entries(&setup.redis_client().await).await;
    assert!((4..=10).contains(&entries), "{entries} entries");
    let _consumer = setup.consumer(&[]);
    setup.wait_for_rows(100).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_outage_returns_503_until_redis_is_back() {
    let mut setup = Setup::new().await;
    let ingest = setup.ingest(&[("REDIS_TIMEOUT", "1s")]);
    assert_eq!(post(&ingest, LIKE).await.status, 202);
    setup.redis.stop();
    eventually("503", async || refused_as(&ingest, "redis-unavailable").await).await;
    // Behind a Service, a process that is not ready would refuse connections instead.
    let readiness = || devstack::admin::get(ingest.admin(), "/readyz?verbose").unwrap();
    eventually("the check fails", async || readiness().1.starts_with("[-] redis failed: ")).await;
    let (status, checks) = readiness();
    assert!(status == 200 && checks.ends_with("\nready\n"), "{status}: {checks}");
    let passes = || ingest.metrics().unwrap().sum_where("likestream_check_passing", "check=\"redis\"");
    assert_eq!(passes(), 0.0);
    assert!(refused_as(&ingest, "redis-unavailable").await);
    assert_eq!(devstack::admin::get(ingest.admin(), "/livez").unwrap().0, 200);

    setup.redis.start_again().unwrap();
    eventually("202 again", async || post(&ingest, LIKE).await.status == 202).await;
    eventually("the check passes", async || readiness() == (200, "[+] redis ok\nready\n".to_owned())).await;
    assert_eq!(passes(), 1.0);
    assert!(entries(&setup.redis_client().await).await >= 2, "the append-only file contains the first like");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_redis_returns_503() {
    let setup = Setup::new().await;
    let ingest = setup.ingest(&[("REDIS_TIMEOUT", "300ms")]);
    setup.redis.pause();
    assert!(refused_as(&ingest, "redis-unavailable").await);
    setup.redis.resume();
    eventually("202 again", async || post(&ingest, LIKE).await.status == 202).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_out_of_memory_returns_503_and_the_consumer_keeps_draining() {
    let setup = Setup::new().await;
    let ingest = setup.ingest(&[]);
    assert_eq!(post(&ingest, LIKE).await.status, 202);
    setup.append(&likes(1_000), 10).await;
    let redis = setup.redis_client().await;
    // Groups must exist before memory runs out, because creating one would fail, too.
    create_groups(&redis).await;
    // This entry must become a dead letter. Otherwise no later entry could be trimmed, and memory would never be freed.
    append_raw(&redis, 0, b"\xc1").await;
    config_set(&redis, "maxmemory", "1").await;
    assert!(refused_as(&ingest, "redis-out-of-memory").await);
    let _consumer = setup.consumer(&[]);
    setup.wait_for_rows(1_000).await;
    setup.wait_until_drained().await;
    assert_eq!(redis.xlen::<u64, _>(dead_stream(0)).await.unwrap(), 1);
    eventually("all entries are trimmed", async || entries(&redis).await == 0).await;
    config_set(&redis, "maxmemory", "0").await;
    eventually("202 again", async || post(&ingest, LIKE).await.status == 202).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_over_the_limit_returns_503_until_it_is_drained() {
    let setup = Setup::new().await;
    let ingest = setup.ingest(&[("INGEST_BACKLOG_LIMIT", "50")]);
    setup.append(&likes(60), 1).await;
    eventually("503", async || refused_as(&ingest, "backlog-full").await).await;
    let before = entries(&setup.redis_client().await).await;
    assert!(refused_as(&ingest, "backlog-full").await);
    assert_eq!(entries(&setup.redis_client().await).await, before, "a refused like is not appended");

    let _consumer = setup.consumer(&[]);
    eventually("202 again", async || post(&ingest, LIKE).await.status == 202).await;
    setup.wait_until_drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retained_entries_do_not_count_as_backlog() {
    let setup = Setup::new().await;
    let _consumer = setup.consumer(&[("STREAM_RETENTION", "1h")]);
    setup.append(&likes(60), 1).await;
    setup.wait_until_drained().await;
    let ingest = setup.ingest(&[("INGEST_BACKLOG_LIMIT", "50")]);
    assert_eq!(entries(&setup.redis_client().await).await, 60);
    assert_eq!(post(&ingest, LIKE).await.status, 202);
}

/// After a restart from its append-only file, Redis 7.0 permanently reports too large a lag.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_lag_from_redis_does_not_count_as_backlog() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    let _consumer = setup.consumer(&[]);
    setup.append(&likes(400), 1).await;
    setup.wait_until_drained().await;
    for partition in 0..PARTITIONS {
        let info: HashMap<String, Value> = redis.xinfo_stream(stream(partition), false, None).await.unwrap();
        let last = info["last-generated-id"].as_string().unwrap();
        let command = CustomCommand::new_static("XGROUP", ClusterHash::Random, false);
        let arguments = vec![
            "SETID".to_owned(),
            stream(partition),
            GROUP.to_owned(),
            last,
            "ENTRIESREAD".to_owned(),
            "1".to_owned(),
        ];
        redis.custom::<(), _>(command, arguments).await.unwrap();
        let groups: Vec<HashMap<String, Value>> = redis.xinfo_groups(stream(partition)).await.unwrap();
        assert!(groups[0]["lag"].as_u64().unwrap() >= 90, "Redis reports a wrong lag");
    }
    let ingest = setup.ingest(&[("INGEST_BACKLOG_LIMIT", "50")]);
    assert_eq!(post(&ingest, LIKE).await.status, 202);
    eventually("sampled", async || ingest.metrics().unwrap().sum("likestream_backlog_entries") < 5.0).await;
    assert_eq!(post(&ingest, LIKE).await.status, 202);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_partition_queue_returns_503_immediately() {
    let setup = Setup::new().await;
    let ingest =
        setup.ingest(&[("REDIS_TIMEOUT", "20s"), ("INGEST_QUEUE_LIKES", "1"), ("INGEST_ENTRY_LIKES", "1")]);
    setup.redis.pause();
    let mut callers: Vec<_> = (0..10).map(|_| HttpClient::new(ingest.listen())).collect();
    let mut answers: Vec<_> = callers.iter_mut().map(|client| Box::pin(client.post_like(7, 42))).collect();
    let mut refused = 0;
    for answer in &mut answers {
        if let Ok(response) = timeout(Duration::from_secs(1), answer).await {
            assert_eq!(problem(&response.unwrap()), "overloaded");
            refused += 1;
        }
    }
    setup.redis.resume();
    // One like is in flight and one is queued; one more may be in between.
    assert!((7..=9).contains(&refused), "{refused} refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_key_of_the_wrong_type_is_a_clear_error() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    {
        use fred::prelude::KeysInterface;
        for partition in 0..PARTITIONS {
            redis.set::<(), _, _>(stream(partition), "mine", None, None, false).await.unwrap();
        }
    }
    let ingest = setup.start("ingest", &[]);
    eventually("the entry is refused", async || refused_as(&ingest, "redis-refused").await).await;
    eventually("the cause is logged", async || ingest.log_text().contains("WRONGTYPE")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_eviction_policy_that_drops_streams_logs_a_warning() {
    let setup = Setup::with_redis(&["--maxmemory-policy", "allkeys-lru"]).await;
    let ingest = setup.ingest(&[]);
    assert!(ingest.log_text().contains("Redis evicts likes when its memory is full"));
    let redis = setup.redis_client().await;
    append_raw(&redis, 0, b"x").await;
    redis.flushall::<()>(false).await.unwrap();
    assert_eq!(redis.xlen::<u64, _>(stream(0)).await.unwrap(), 0);
}

/// During an outage of Postgres, the streams grow to the backlog limit, and then clients get 503. After it, the backlog
/// drains and likes are accepted again. Memory use of the programs does not grow.
#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_outage_reaches_clients_only_at_the_backlog_limit() {
    let mut setup = Setup::with_own_postgres(&[]);
    let ingest = setup.ingest(&[("INGEST_BACKLOG_LIMIT", "2000"), ("INGEST_ENTRY_LIKES", "1")]);
    let consumer = setup.consumer(&[]);
    setup.postgres().stop();
    let mut callers: Vec<_> = (0..8).map(|_| HttpClient::new(ingest.listen())).collect();
    let mut accepted = 0_u64;
    let mut user = 0;
    let refused = loop {
        let answers =
            join_all(callers.iter_mut().zip(user + 1..).map(|(client, user)| client.post_like(user, 42)))
                .await;
        user += 8;
        let mut refused = None;
        for answer in answers {
            let answer = answer.unwrap();
            if answer.status == 202 {
                accepted += 1;
            } else {
                refused = Some(answer);
            }
        }
        if let Some(refused) = refused {
            break refused;
        }
    };
    assert_eq!((refused.status.as_u16(), problem(&refused).as_str()), (503, "backlog-full"));
    assert!(accepted >= 2_000, "{accepted}");
    assert!(ingest.peak_resident_bytes().unwrap() < 80 << 20);
    assert!(consumer.peak_resident_bytes().unwrap() < 80 << 20);

    setup.postgres().start_again().unwrap();
    setup.wait_for_rows(usize::try_from(accepted).unwrap()).await;
    eventually("202 again", async || post(&ingest, LIKE).await.status == 202).await;
    setup.wait_until_drained().await;
}
