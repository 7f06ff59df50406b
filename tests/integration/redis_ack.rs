//! `REDIS_ACK`: a 202 is sent only after the configured confirmation.

use devstack::{program::Program, redis_server::RedisServer};
use fred::prelude::{ClientLike, StreamsInterface};

use crate::harness::{PARTITIONS, Setup, entries, eventually, post, problem, run, start_redis, stream};

const LIKE: &str = r#"{"user_id": 7, "post_id": 42}"#;

async fn replica_of(setup: &Setup) -> RedisServer {
    let primary = format!("127.0.0.1 {}", setup.redis.port());
    let replica = start_redis(&["--replicaof", &primary]);
    let redis = setup.redis_client().await;
    eventually("the replica is connected", async || {
        let info: String = redis.info(Some(fred::types::InfoKind::Replication)).await.unwrap();
        info.contains("state=online")
    })
    .await;
    replica
}

async fn answered(ingest: &Program) -> String {
    let response = post(ingest, LIKE).await;
    if response.status == 202 { "accepted".to_owned() } else { problem(&response) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_like_is_accepted_only_after_its_replicas_confirm() {
    let setup = Setup::new().await;
    let ingest = setup.ingest(&[("REDIS_ACK", "replicas:1"), ("REDIS_TIMEOUT", "2s")]);
    assert_eq!(answered(&ingest).await, "redis-unconfirmed");
    let replica = replica_of(&setup).await;
    eventually("the like is accepted", async || answered(&ingest).await == "accepted").await;
    let user_7 = shared::wire::partition::PartitionCount::new(PARTITIONS).unwrap().of_user(7).number();
    let there = fred::prelude::Builder::from_config(fred::prelude::Config::from_url(&replica.url()).unwrap());
    let there = there.build().unwrap();
    there.init().await.unwrap();
    let here = setup.redis_client().await.xlen::<u64, _>(stream(user_7)).await.unwrap();
    assert_eq!(
        there.xlen::<u64, _>(stream(user_7)).await.unwrap(),
        here,
        "the replica has every accepted like"
    );

    replica.pause();
    assert_eq!(answered(&ingest).await, "redis-unconfirmed");
    replica.resume();
    eventually("likes are accepted again", async || answered(&ingest).await == "accepted").await;
    let _consumer = setup.consumer(&[]);
    setup.wait_for_rows(1).await;
}

/// After a reconnect, `WAIT` must not succeed because the new connection has written nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_confirms_no_like() {
    let mut setup = Setup::with_redis(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let ingest = setup.ingest(&[("REDIS_ACK", "replicas:1"), ("REDIS_TIMEOUT", "400ms")]);
    let replica = replica_of(&setup).await;
    eventually("the like is accepted", async || answered(&ingest).await == "accepted").await;
    drop(replica);
    for _ in 0..3 {
        setup.redis.kill();
        setup.redis.start_again().unwrap();
        for _ in 0..3 {
            let answered = answered(&ingest).await;
            assert!(["redis-unconfirmed", "redis-unavailable"].contains(&answered.as_str()), "{answered}");
        }
    }
    let _replica = replica_of(&setup).await;
    eventually("likes are accepted again", async || answered(&ingest).await == "accepted").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fsync_is_refused_if_redis_does_not_support_it() {
    let setup = Setup::new().await;
    let settings = [
        ("REDIS_URL", setup.redis.url()),
        ("REDIS_ACK", "fsync".to_owned()),
        ("INGEST_LISTEN", "127.0.0.1:0".to_owned()),
        ("INGEST_ADMIN_LISTEN", "127.0.0.1:0".to_owned()),
    ];
    let redis = setup.redis_client().await;
    let version: String = redis.info(Some(fred::types::InfoKind::Server)).await.unwrap();
    if version.contains("redis_version:7.0") {
        let ended = run("ingest", &[], &settings.each_ref().map(|(name, value)| (*name, value.as_str())));
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        let last = ended.stderr.lines().last().unwrap();
        assert!(last.starts_with("error: REDIS_ACK: 'fsync' is not supported by this Redis"), "{last}");
    }

    let setup = Setup::with_redis(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let ingest = setup.ingest(&[("REDIS_ACK", "fsync")]);
    assert_eq!(answered(&ingest).await, "accepted");
    assert_eq!(entries(&setup.redis_client().await).await, 1);
}
