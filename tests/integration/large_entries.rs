//! Entries of up to several megabytes, on slow links and in bounded memory.

use devstack::link::Link;
use fred::prelude::Client;

use crate::{
    dead_letters::dead_letters,
    harness::{PARTITIONS, Setup, append_raw, create_groups, eventually, pending_or_none},
};

/// Rate of a slow link, in bytes per second.
const SLOW: u32 = 4_000_000;

/// Returns the payload of one like by a user, with a trailing element of this many bytes, which readers ignore.
fn payload(user: u16, bytes: u32) -> Vec<u8> {
    let mut payload = vec![0x92, 1, 0x94, 0xcd];
    payload.extend(user.to_be_bytes());
    payload.extend([42, 5, 0xc6]);
    payload.extend(bytes.to_be_bytes());
    payload.resize(payload.len() + bytes as usize, 7);
    payload
}

/// Returns a payload in which every byte is an invalid like.
fn nils(likes: u32) -> Vec<u8> {
    let mut payload = vec![0xdd];
    payload.extend((likes + 1).to_be_bytes());
    payload.push(1);
    payload.resize(payload.len() + likes as usize, 0xc0);
    payload
}

async fn append_large(redis: &Client, partition: u16, users: std::ops::RangeInclusive<u16>, bytes: u32) {
    for user in users {
        append_raw(redis, partition, &payload(user, bytes)).await;
    }
}

/// A single reply with all of them would take four times as long as `REDIS_TIMEOUT`.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_link_does_not_stop_large_entries() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    create_groups(&redis).await;
    append_large(&redis, 0, 1..=250, 128 << 10).await;
    let link = Link::start(setup.redis.port()).await.unwrap();
    link.limit(Some(SLOW));
    let consumer = setup.consumer(&[("REDIS_URL", &link.redis_url())]);
    setup.wait_for_rows(250).await;
    eventually("all entries are acknowledged", async || pending_or_none(&redis).await == 0).await;
    let lost = consumer.log_text().matches("connection to Redis lost").count();
    assert!(lost <= 2, "{lost} replies did not arrive in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_takes_longer_than_the_time_limit_is_stored() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    create_groups(&redis).await;
    append_large(&redis, 0, 1..=2, 12 << 20).await;
    append_large(&redis, 1, 3..=20, 10).await;
    let link = Link::start(setup.redis.port()).await.unwrap();
    link.limit(Some(SLOW));
    let url = link.redis_url();
    let consumer = setup.consumer(&[("REDIS_URL", &url), ("REDIS_TIMEOUT", "800ms")]);
    setup.wait_for_rows(20).await;
    eventually("all entries are acknowledged", async || pending_or_none(&redis).await == 0).await;
    assert!(consumer.log_text().matches("no reply to a read of one entry").count() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bytes_of_entries_in_flight_are_bounded() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    create_groups(&redis).await;
    // Pages grow on small entries, and then meet large ones.
    append_large(&redis, 0, 1..=1_000, 10).await;
    for partition in 0..PARTITIONS {
        let first = 1_001 + partition * 10;
        append_large(&redis, partition, first..=first + 9, 6 << 20).await;
    }
    let consumer = setup.consumer(&[("CLAIM_MIN_IDLE", "2m")]);
    setup.wait_for_rows(1_000 + 10 * usize::from(PARTITIONS)).await;
    let peak = consumer.peak_resident_bytes().unwrap();
    assert!(peak < 200 << 20, "{peak} bytes for entries of 240 MiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_of_invalid_likes_takes_little_more_memory_than_its_size() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    create_groups(&redis).await;
    append_raw(&redis, 0, &nils(4 << 20)).await;
    let consumer = setup.consumer(&[]);
    eventually("the dead letters are written", async || dead_letters(&redis).await.len() == 1_001).await;
    let peak = consumer.peak_resident_bytes().unwrap();
    assert!(peak < 120 << 20, "{peak}");
}
