//! Failover of Redis to a replica that lacks the newest entries, while a consumer holds entries.

use std::time::{Duration, Instant};

use devstack::redis_server::RedisServer;
use fred::{
    prelude::{Builder, Client, ClientLike, Config, StreamsInterface, Value},
    types::{ClusterHash, CustomCommand},
};
use shared::wire::codec;

use crate::{
    crash_points::{a_writer_waits, hold_table},
    harness::{PARTITIONS, SOON, Setup, create_groups, eventually, like, pending, start_redis, stream},
    proxy::Proxy,
};

async fn client_of(server: &RedisServer) -> Client {
    let client = Builder::from_config(Config::from_url(&server.url()).unwrap()).build().unwrap();
    client.init().await.unwrap();
    client
}

/// Returns a replica that has received everything from the primary.
async fn replica_of(setup: &Setup) -> (RedisServer, Client) {
    let replica = start_redis(&["--replicaof", &format!("127.0.0.1 {}", setup.redis.port())]);
    let client = client_of(&replica).await;
    eventually("the replica has the streams", async || {
        command(&client, "TYPE", &[&stream(PARTITIONS - 1)]).await == "stream".into()
    })
    .await;
    (replica, client)
}

/// Appends a like with the id `5000-seq` to partition 0.
async fn append_at(client: &Client, seq: u64, user: u64) {
    let fields = vec![("l", bytes::Bytes::from(codec::encode(&[like(user, 42)])))];
    let id = format!("5000-{seq}");
    client.xadd::<String, _, _, _, _>(stream(0), false, None::<()>, id, fields).await.unwrap();
}

async fn command(client: &Client, name: &'static str, arguments: &[&str]) -> Value {
    let command = CustomCommand::new_static(name, ClusterHash::Random, false);
    client.custom(command, arguments.iter().map(ToString::to_string).collect::<Vec<_>>()).await.unwrap()
}

/// The promoted replica assigns ids again that the consumer has in flight, to other likes.
#[tokio::test(flavor = "multi_thread")]
async fn likes_whose_ids_were_given_before_a_failover_are_stored() {
    let setup = Setup::new().await;
    let primary = setup.redis_client().await;
    create_groups(&primary).await;
    let (replica, promoted) = replica_of(&setup).await;
    command(&promoted, "REPLICAOF", &["NO", "ONE"]).await;
    let proxy = Proxy::start(setup.redis.port()).await;
    let url = proxy.redis_url();
    // Three batches of ten rows reach the in-flight limit: no read is under way in the failover.
    let consumer = setup.consumer(&[
        ("REDIS_URL", &url),
        ("BATCH_ROWS", "10"),
        ("CLAIM_MIN_IDLE", "2m"),
        ("WRITE_TIMEOUT", "50s"),
    ]);
    let postgres = setup.postgres_client().await;
    hold_table(&postgres).await;
    for seq in 1..=30 {
        append_at(&primary, seq, seq).await;
    }
    a_writer_waits(&postgres).await;
    eventually("all entries are in flight", async || pending(&primary).await == 30).await;

    for seq in 11..=40 {
        append_at(&promoted, seq, 1_000 + seq).await;
    }
    proxy.lead_to(replica.port());
    consumer.wait_ready(SOON).unwrap();
    postgres.batch_execute("COMMIT").await.unwrap();
    setup.wait_for_rows(60).await;
    eventually("all entries are acknowledged", async || pending(&promoted).await == 0).await;
}

/// After a restart with its data, the server has the entries in flight still pending.
#[tokio::test(flavor = "multi_thread")]
async fn entries_in_flight_during_a_restart_of_redis_are_acknowledged_soon_after() {
    let mut setup = Setup::new().await;
    let redis = setup.redis_client().await;
    create_groups(&redis).await;
    let consumer =
        setup.consumer(&[("BATCH_ROWS", "10"), ("CLAIM_MIN_IDLE", "2m"), ("WRITE_TIMEOUT", "50s")]);
    let postgres = setup.postgres_client().await;
    hold_table(&postgres).await;
    for seq in 1..=30 {
        append_at(&redis, seq, seq).await;
    }
    a_writer_waits(&postgres).await;
    eventually("all entries are in flight", async || pending(&redis).await == 30).await;
    setup.redis.stop();
    setup.redis.start_again().unwrap();
    consumer.wait_ready(SOON).unwrap();
    postgres.batch_execute("COMMIT").await.unwrap();
    let released = Instant::now();
    setup.wait_for_rows(30).await;
    setup.wait_until_drained().await;
    assert!(released.elapsed() < Duration::from_mins(1), "not after CLAIM_MIN_IDLE");
    assert_eq!(setup.count().await, 30);
}
