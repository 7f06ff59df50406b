//! Failover with Redis Sentinel: the primary is killed, frozen and restarted.

use devstack::redis_sentinels::RedisSentinels;
use fred::prelude::Value;
use shared::redis::Retry;

use crate::{
    harness::{Settings, Setup, connections, eventually},
    load::Load,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_neither_loses_nor_duplicates_replicated_likes() {
    let setup = Setup::new().await;
    let mut sentinels = RedisSentinels::start().unwrap();
    let url = sentinels.url();
    let settings: Settings<'_> = &[
        ("REDIS_URL", &url),
        ("REDIS_ACK", "replicas:1"),
        ("REDIS_TIMEOUT", "1s"),
        ("CLAIM_MIN_IDLE", "2s"),
        ("WRITE_TIMEOUT", "900ms"),
    ];
    let ingest = setup.ingest(settings);
    let settings = [&settings[..1], &settings[2..]].concat();
    let consumers = [setup.consumer(&settings), setup.consumer(&settings)];
    let load = Load::start(ingest.listen(), 300);
    load.wait_for(300).await;

    let first = sentinels.master().unwrap();
    sentinels.servers[first].kill();
    eventually("the replica is the primary", async || sentinels.master().is_ok_and(|now| now != first)).await;
    // Without a replica, no like is accepted until the old primary is back as a replica.
    sentinels.servers[first].start_again().unwrap();
    load.wait_for(300).await;

    let second = sentinels.master().unwrap();
    sentinels.servers[second].pause();
    eventually("the first server is the primary again", async || {
        sentinels.master().is_ok_and(|now| now != second)
    })
    .await;
    sentinels.servers[second].resume();
    load.wait_for(300).await;

    load.finish_stored(&setup, &url, &consumers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_sentinel_service_name_is_reported() {
    let sentinels = RedisSentinels::start().unwrap();
    let url = sentinels.url();
    let answer: Value =
        connections(&url).await.run("x", Retry::Idempotent, "TYPE", vec!["x".into()]).await.unwrap();
    assert_eq!(answer.as_str().as_deref(), Some("none"));
    let wrong = url.replace("sentinelServiceName=likestream", "sentinelServiceName=other");
    let settings = [("REDIS_URL", wrong.as_str()), ("STARTUP_TIMEOUT", "3s")];
    let ended = crate::harness::run("likesctl", &["status"], &settings);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("monitors no primary named 'other'"), "{}", ended.stderr);
}
