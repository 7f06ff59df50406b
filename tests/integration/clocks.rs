//! Redis's clock was set back: the times in its data are in the future. Redis accepts no such times from commands, so that the
//! tests change them in a serialized stream.

use std::time::{SystemTime, UNIX_EPOCH};

use fred::prelude::{Client, ClientLike, HashesInterface, StreamsInterface, Value};
use fred::types::{ClusterHash, CustomCommand};

use shared::wire::codec;

use crate::harness::{
    GROUP, PARTITIONS, Setup, append_raw, create_groups, eventually, like, likes, pending, post, problem,
    run, send_heartbeats_as, stream,
};

/// Ten minutes.
const STEP_MS: u64 = 600_000;

fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// CRC-64 as in Redis. Source: `crc64.c`, the Jones polynomial, reflected.
fn crc64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ u64::from(*byte), |crc, _| {
            if crc & 1 == 1 { (crc >> 1) ^ 0x95ac_9329_ac4b_c9b5 } else { crc >> 1 }
        })
    })
}

async fn command(client: &Client, name: &'static str, arguments: Vec<Value>) -> Value {
    client.custom(CustomCommand::new_static(name, ClusterHash::Random, false), arguments).await.unwrap()
}

/// Moves the delivery times of a stream, and the times of its consumers' last commands, into the future. They are little-endian
/// milliseconds in the serialized stream; its entry ids are not.
async fn set_back_clock_of(client: &Client, key: &str) {
    let dump = command(client, "DUMP", vec![key.into()]).await.into_bytes().unwrap();
    let mut dump = dump.to_vec();
    dump.truncate(dump.len() - 8);
    let recent = now_ms() - 60_000..=now_ms();
    let mut changed = 0;
    for at in 0..dump.len() - 8 {
        let ms = u64::from_le_bytes(dump[at..at + 8].try_into().unwrap());
        if recent.contains(&ms) {
            dump[at..at + 8].copy_from_slice(&(ms + STEP_MS).to_le_bytes());
            changed += 1;
        }
    }
    assert!(changed > 1, "a consumer and its entries");
    dump.extend(crc64(&dump).to_le_bytes());
    let restore = vec![key.into(), 0.into(), bytes::Bytes::from(dump).into(), "REPLACE".into()];
    command(client, "RESTORE", restore).await;
}

async fn deliver_to(client: &Client, consumer: &str) {
    for partition in 0..PARTITIONS {
        client
            .xreadgroup::<Value, _, _, _, _>(GROUP, consumer, None, None, false, stream(partition), ">")
            .await
            .unwrap();
        set_back_clock_of(client, &stream(partition)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_of_a_dead_consumer_are_claimed_after_the_clock_was_set_back() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    create_groups(&redis).await;
    setup.append(&likes(100), 1).await;
    deliver_to(&redis, "gone").await;
    let record = format!("token active  {}", now_ms() + STEP_MS);
    redis.hset::<u64, _, _>(format!("likes:members:{GROUP}"), ("gone", record)).await.unwrap();

    let _consumer = setup.consumer(&[("CLAIM_MIN_IDLE", "1h")]);
    setup.wait_for_rows(100).await;
    eventually("all entries are acknowledged", async || pending(&redis).await == 0).await;
    let listed = run("likesctl", &["consumers", "list", "-o", "json"], &[("REDIS_URL", &setup.redis.url())]);
    assert!(listed.stdout.contains("dead"), "{}", listed.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_of_a_live_consumer_are_claimed_after_the_clock_was_set_back() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    create_groups(&redis).await;
    setup.append(&likes(100), 1).await;
    deliver_to(&redis, "slow").await;
    let _heartbeats = send_heartbeats_as(setup.redis_client().await, "slow");
    let _consumer = setup.consumer(&[("CLAIM_MIN_IDLE", "3s"), ("WRITE_TIMEOUT", "1s")]);
    setup.wait_for_rows(100).await;
    eventually("all entries are acknowledged", async || pending(&redis).await == 0).await;
}

/// Another program has appended an entry with an id of its own choice.
#[tokio::test(flavor = "multi_thread")]
async fn ids_from_the_future_are_named_and_other_partitions_continue() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    create_groups(&redis).await;
    for (partition, id) in [(0, "18446744073709551615-18446744073709551615"), (1, "9000000000000-1")] {
        let payload = codec::encode(&[like(u64::from(partition) + 1, 42)]);
        let fields = vec![("l", bytes::Bytes::from(payload))];
        redis.xadd::<String, _, _, _, _>(stream(partition), false, None::<()>, id, fields).await.unwrap();
    }
    let _consumer = setup.consumer(&[]);
    for partition in 1..PARTITIONS {
        append_raw(&redis, partition, &codec::encode(&[like(u64::from(partition) + 10, 42)])).await;
    }
    setup.wait_for_rows(1 + usize::from(PARTITIONS)).await;
    eventually("all entries are acknowledged", async || pending(&redis).await == 0).await;
    let settings = [("REDIS_URL", setup.redis.url()), ("DATABASE_URL", setup.database_url())];
    let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
    let doctor = run("likesctl", &["doctor"], &settings);
    assert!(doctor.stdout.contains("partitions 0 have reached the largest possible id"), "{}", doctor.stdout);
    assert!(doctor.stdout.contains("the last ids of partitions 1 are up to"), "{}", doctor.stdout);

    let ingest = setup.ingest(&[]);
    let mut user = 0;
    let refused = loop {
        user += 1;
        assert!(user <= 1_000, "no user belongs to partition 0");
        let response = post(&ingest, &format!(r#"{{"user_id": {user}, "post_id": 42}}"#)).await;
        if response.status != 202 {
            break response;
        }
    };
    assert_eq!(problem(&refused), "redis-refused");
    let text = String::from_utf8_lossy(&refused.body);
    assert!(text.contains("Redis rejected the write (ids_exhausted). No like was accepted."), "{text}");
    assert!(ingest.log_text().contains("exhausted the last possible ID"));
}
