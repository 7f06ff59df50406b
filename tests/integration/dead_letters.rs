//! Dead letters: only the likes that cannot be stored become dead letters, each with its reason.

use std::collections::BTreeMap;

use bytes::Bytes;
use fred::prelude::{Client, KeysInterface, StreamsInterface};
use shared::wire::codec;

use crate::harness::{
    GROUP, PARTITIONS, SOON, Setup, append_raw, dead_stream, eventually, like, likes, pending, stream,
};

pub(crate) type Letter = BTreeMap<String, Bytes>;

pub(crate) async fn dead_letters(client: &Client) -> Vec<Letter> {
    let mut letters = Vec::new();
    for partition in 0..PARTITIONS {
        let entries: Vec<(String, Letter)> =
            client.xrange(dead_stream(partition), "-", "+", None).await.unwrap();
        letters.extend(entries.into_iter().map(|(_, letter)| letter));
    }
    letters
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undecodable_entry_does_not_affect_other_entries() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    setup.append(&likes(5_000), 1).await;
    let id = append_raw(&redis, 2, b"\xc1 malformed \xff").await;
    let rest: Vec<_> = (5_001..10_000).map(|user| like(user, 42)).collect();
    setup.append(&rest, 1).await;
    let consumer = setup.consumer(&[("CONSUMER_NAME", "mortician")]);
    setup.wait_for_rows(9_999).await;
    setup.wait_until_drained().await;

    let letters = dead_letters(&redis).await;
    assert_eq!(letters.len(), 1);
    let letter = &letters[0];
    assert_eq!(letter["l"], &b"\xc1 malformed \xff"[..]);
    assert_eq!(letter["reason"], "undecodable");
    assert_eq!(letter["origin"], format!("likes:{{2}}/{id}"));
    assert_eq!(letter["deliveries"], "1");
    assert_eq!(letter["consumer"], "mortician");
    assert!(!letter["detail"].is_empty());
    let dead_at_ms: u128 = std::str::from_utf8(&letter["dead_at"]).unwrap().parse().unwrap();
    let now_ms = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis();
    assert!(dead_at_ms.abs_diff(now_ms) < 60_000, "{dead_at_ms} at {now_ms}");
    eventually("the dead letter is counted", async || {
        consumer.metrics().unwrap().sum_where("likestream_dead_letters_total", "reason=\"undecodable\"")
            == 1.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_payload_version_becomes_a_dead_letter() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    let payload = [0x92, 0x02, 0x93, 7, 42, 5];
    append_raw(&redis, 0, &payload).await;
    let _consumer = setup.consumer(&[]);
    eventually("a dead letter", async || !dead_letters(&redis).await.is_empty()).await;
    let letter = &dead_letters(&redis).await[0];
    assert_eq!((&letter["reason"][..], &letter["l"][..]), (&b"unknown_version"[..], &payload[..]));
    assert_eq!(setup.count().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_invalid_like_of_an_entry_becomes_a_dead_letter() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    // [1, [7, 42, 5], [0, 42, 5], "no like", [8, 42, 5]]
    let payload = b"\x95\x01\x93\x07\x2a\x05\x93\x00\x2a\x05\xa7no like\x93\x08\x2a\x05";
    append_raw(&redis, 0, payload).await;
    let _consumer = setup.consumer(&[]);
    setup.wait_for_rows(2).await;
    setup.wait_until_drained().await;
    assert_eq!(setup.rows().await, [(7, 42, 5), (8, 42, 5)]);
    let letters = dead_letters(&redis).await;
    let found: Vec<(&[u8], &[u8])> = letters.iter().map(|l| (&l["reason"][..], &l["l"][..])).collect();
    let reason = &b"invalid_like"[..];
    assert_eq!(found, [(reason, &b"\x92\x01\x93\x00\x2a\x05"[..]), (reason, &b"\x92\x01\xa7no like"[..])]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_without_a_payload_keeps_all_fields() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    let fields = vec![("user", "7"), ("reason", "mine")];
    redis.xadd::<String, _, _, _, _>(stream(0), false, None::<()>, "*", fields).await.unwrap();
    let _consumer = setup.consumer(&[]);
    eventually("a dead letter", async || !dead_letters(&redis).await.is_empty()).await;
    let letter = &dead_letters(&redis).await[0];
    assert_eq!(letter["reason"], "undecodable");
    let original = b"\x94\xc4\x04user\xc4\x017\xc4\x06reason\xc4\x04mine";
    assert_eq!(letter["original"], &original[..]);
}

/// The dead letter and the acknowledgement are one atomic step: an entry that another consumer has settled creates no
/// second dead letter.
#[tokio::test(flavor = "multi_thread")]
async fn an_entry_held_by_two_consumers_creates_one_dead_letter() {
    let mut setup = Setup::with_own_postgres(&[]);
    let redis = setup.redis_client().await;
    let settings = [("CONSUMER_PARTITIONS", "0-3"), ("CLAIM_MIN_IDLE", "400ms"), ("WRITE_TIMEOUT", "150ms")];
    let consumers = [setup.consumer(&settings), setup.consumer(&settings)];
    setup.postgres().pause();
    // A good and a bad like, so that the entry has to wait for Postgres.
    let mut payload = codec::encode(&[like(7, 42), like(8, 42)]);
    let last = payload.len() - 9 - 2;
    payload[last] = 0xc0;
    append_raw(&redis, 0, &payload).await;
    // One consumer has read the entry, and the other has claimed it.
    eventually("both consumers have the entry", async || {
        let counted = |name| consumers.each_ref().map(|c| c.metrics().unwrap().sum(name) >= 1.0);
        let (read, claimed) = (
            counted("messaging_client_consumed_messages_total"),
            counted("likestream_entries_reclaimed_total"),
        );
        (read[0] && claimed[1]) || (read[1] && claimed[0])
    })
    .await;
    setup.postgres().resume();
    setup.wait_for_rows(1).await;
    eventually("settled", async || pending(&redis).await == 0).await;
    // After a graceful shutdown, the second consumer has also processed the entry.
    for mut consumer in consumers {
        assert!(consumer.terminate(SOON).unwrap().success());
    }
    assert_eq!(dead_letters(&redis).await.len(), 1);
    let groups: Vec<BTreeMap<String, fred::prelude::Value>> = redis.xinfo_groups(stream(0)).await.unwrap();
    assert_eq!(groups[0]["name"].as_str().as_deref(), Some(GROUP));
}

/// The dead letter is written before the acknowledgement, so a failed write leaves the entry pending.
#[tokio::test(flavor = "multi_thread")]
async fn an_entry_whose_dead_letter_cannot_be_written_stays_pending() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    redis.set::<(), _, _>(dead_stream(0), "mine", None, None, false).await.unwrap();
    let consumer = setup.consumer(&[("CLAIM_MIN_IDLE", "1s"), ("WRITE_TIMEOUT", "400ms")]);
    append_raw(&redis, 0, b"\xc1").await;
    eventually("the failed acknowledgement is logged", async || {
        consumer.log_text().contains("stored but not acknowledged")
    })
    .await;
    assert_eq!(pending(&redis).await, 1);
    redis.del::<(), _>(dead_stream(0)).await.unwrap();
    setup.wait_until_drained().await;
    assert_eq!(dead_letters(&redis).await.len(), 1);
}
