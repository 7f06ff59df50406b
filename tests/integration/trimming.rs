//! Trimming of acknowledged entries.

use std::time::Duration;

use fred::{
    prelude::{Client, ClientLike, StreamsInterface, Value},
    types::InfoKind,
};

use crate::harness::{GROUP, Setup, append_raw, entries, eventually, likes, pending, stream};

async fn read_as(client: &Client, group: &str, consumer: &str, count: u64) -> Value {
    client.xreadgroup(group, consumer, Some(count), None, false, stream(0), ">").await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_entries_are_trimmed() {
    let setup = Setup::new().await;
    setup.append(&likes(5_000), 5).await;
    let _consumer = setup.consumer(&[]);
    setup.wait_for_rows(5_000).await;
    let redis = setup.redis_client().await;
    eventually("empty streams", async || entries(&redis).await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pending_entries_are_not_trimmed() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    redis.xgroup_create::<(), _, _, _>(stream(0), GROUP, "0", true).await.unwrap();
    for user in 1..=10_u8 {
        append_raw(&redis, 0, &[0x92, 1, 0x93, user, 42, 5]).await;
    }
    // A slow consumer has five of them pending.
    read_as(&redis, GROUP, "slow", 5).await;
    let consumer = setup.consumer(&[]);
    setup.wait_for_rows(5).await;
    setup.append(&likes(200), 1).await;
    eventually("entries are trimmed several times", async || {
        consumer.metrics().unwrap().sum("likestream_entries_trimmed_total") >= 100.0
    })
    .await;
    let left: Vec<Value> = redis.xpending(stream(0), GROUP, ()).await.unwrap();
    assert_eq!(left[0].as_u64(), Some(5));
    let kept: u64 = redis.xlen(stream(0)).await.unwrap();
    assert!(kept >= 5, "{kept}");
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_unacknowledged_by_another_group_are_not_trimmed() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    redis.xgroup_create::<(), _, _, _>(stream(0), "analytics", "0", true).await.unwrap();
    for user in 1..=10_u8 {
        append_raw(&redis, 0, &[0x92, 1, 0x93, user, 42, 5]).await;
    }
    let _consumer = setup.consumer(&[]);
    setup.wait_for_rows(10).await;
    eventually("the consumer has acknowledged all entries", async || pending(&redis).await == 0).await;
    // The other group has read three entries and acknowledged two.
    read_as(&redis, "analytics", "them", 3).await;
    let all: Vec<(String, Value)> = redis.xrange(stream(0), "-", "+", None).await.unwrap();
    assert_eq!(all.len(), 10);
    let read: Vec<String> = all.iter().take(2).map(|(id, _)| id.clone()).collect();
    redis.xack::<u64, _, _, _>(stream(0), "analytics", read).await.unwrap();
    eventually("two entries are trimmed", async || redis.xlen::<u64, _>(stream(0)).await.unwrap() == 8).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_entries_are_kept_for_the_retention_time() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    let mut keeping = setup.consumer(&[("STREAM_RETENTION", "1h")]);
    setup.append(&likes(100), 1).await;
    setup.wait_for_rows(100).await;
    assert!(keeping.terminate(Duration::from_secs(30)).unwrap().success());
    assert_eq!(entries(&redis).await, 100, "the last trim at shutdown keeps retained entries");
    let _forgetting = setup.consumer(&[("STREAM_RETENTION", "10ms")]);
    eventually("empty streams", async || entries(&redis).await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trimming_releases_redis_memory() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    let used_memory = async || -> u64 {
        let info: String = redis.info(Some(InfoKind::Memory)).await.unwrap();
        let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap();
        used.trim().parse().unwrap()
    };
    let before = used_memory().await;
    setup.append(&likes(1_000_000), 200).await;
    let full = used_memory().await;
    assert!(full > before + (15 << 20), "{full} after {before}");
    let _consumer = setup.consumer(&[]);
    setup.wait_for_rows(1_000_000).await;
    eventually("memory is free again", async || used_memory().await < before + (10 << 20)).await;
}
