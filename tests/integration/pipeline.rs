//! The main path: from POST to row.

use std::collections::{BTreeMap, BTreeSet};

use devstack::http_client::HttpClient;
use shared::wire::{codec, partition::PartitionCount};

use crate::harness::{PARTITIONS, Setup, append_raw, eventually, like, likes, post, stream};

#[tokio::test(flavor = "multi_thread")]
async fn every_accepted_like_is_stored_once() {
    let setup = Setup::new().await;
    let ingest = setup.ingest(&[]);
    let _consumers = [setup.consumer(&[]), setup.consumer(&[])];

    let mut callers = Vec::new();
    for caller in 0..16_u64 {
        let mut client = HttpClient::new(ingest.listen());
        callers.push(tokio::spawn(async move {
            for n in 0..100 {
                // Two clients send the same likes at the same time.
                let response = client.post_like(caller / 2 * 100 + n + 1, 1 + n % 3).await.unwrap();
                assert_eq!(response.status, 202, "{response:?}");
            }
        }));
    }
    for caller in callers {
        caller.await.unwrap();
    }

    setup.wait_until_drained().await;
    let stored: BTreeSet<(i64, i64)> = setup.rows().await.iter().map(|row| (row.0, row.1)).collect();
    let sent: BTreeSet<(i64, i64)> =
        (0..8).flat_map(|c| (0..100).map(move |n| (c * 100 + n + 1, 1 + n % 3))).collect();
    assert_eq!(stored, sent);
    assert_eq!(setup.count().await, sent.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_timestamp_of_a_like_is_kept() {
    let setup = Setup::new().await;
    let ingest = setup.ingest(&[]);
    let _consumer = setup.consumer(&[]);
    let body = r#"{"user_id": 7, "post_id": 42, "created_at": "2026-01-31T12:00:00.000001Z"}"#;
    assert_eq!(post(&ingest, body).await.status, 202);
    setup.wait_for_rows(1).await;
    assert_eq!(post(&ingest, r#"{"user_id": 7, "post_id": 42}"#).await.status, 202);
    setup.wait_until_drained().await;
    assert_eq!(setup.rows().await, [(7, 42, 1_769_860_800_000_001)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_like_without_a_timestamp_gets_the_receive_time() {
    let setup = Setup::new().await;
    let ingest = setup.ingest(&[]);
    let _consumer = setup.consumer(&[]);
    let now_us = || i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_micros()).unwrap();
    let before = now_us();
    assert_eq!(post(&ingest, r#"{"user_id": 7, "post_id": 42}"#).await.status, 202);
    let after = now_us();
    setup.wait_for_rows(1).await;
    assert!((before..=after).contains(&setup.rows().await[0].2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_is_stored_in_full_batches_across_partitions() {
    let setup = Setup::new().await;
    setup.append(&likes(20_000), 50).await;
    let consumer = setup.consumer(&[("BATCH_ROWS", "5000"), ("BATCH_LINGER", "1s")]);
    setup.wait_for_rows(20_000).await;
    setup.wait_until_drained().await;
    let metrics = consumer.metrics().unwrap();
    let transactions = metrics.sum("likestream_batches_committed_total");
    assert!((4.0..=5.0).contains(&transactions), "{transactions} transactions");
    let full = metrics.sum_where("likestream_batches_committed_total", "flush=\"full\"");
    assert!(full >= 3.0, "{full} full ones");
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicates_within_and_between_batches_are_deduplicated() {
    let setup = Setup::new().await;
    let mut twice = likes(1_000);
    twice.extend(likes(1_000));
    setup.append(&twice, 7).await;
    let consumer = setup.consumer(&[("BATCH_ROWS", "300")]);
    setup.wait_until_drained().await;
    assert_eq!(setup.count().await, 1_000);
    let metrics = consumer.metrics().unwrap();
    assert_eq!(metrics.sum("likestream_rows_inserted_total"), 1_000.0);
    assert_eq!(metrics.sum("likestream_likes_deduplicated_total"), 1_000.0);
}

/// Other producers and debugging rely on this placement. Correctness does not depend on it.
#[tokio::test(flavor = "multi_thread")]
async fn a_like_goes_to_its_users_partition_and_the_entry_id_is_returned() {
    let setup = Setup::new().await;
    let ingest = setup.ingest(&[]);
    let redis = setup.redis_client().await;
    let count = PartitionCount::new(PARTITIONS).unwrap();
    for user in 1..=20 {
        let response = post(&ingest, &format!(r#"{{"user_id": {user}, "post_id": 42}}"#)).await;
        let answer: serde_json::Value = serde_json::from_slice(&response.body).unwrap();
        let partition = count.of_user(user).number();
        assert_eq!(answer["partition"], partition);

        let id = answer["id"].as_str().unwrap();
        let entries: Vec<(String, BTreeMap<String, bytes::Bytes>)> = {
            use fred::prelude::StreamsInterface;
            redis.xrange(stream(partition), id, id, None).await.unwrap()
        };
        let decoded = codec::decode(&entries[0].1["l"]).unwrap();
        assert_eq!(decoded.likes.iter().map(shared::wire::like::Like::user_id).collect::<Vec<_>>(), [user]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_like_in_any_partition_is_stored_once() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    let payload = codec::encode(&[like(7, 42)]);
    for partition in 0..PARTITIONS {
        append_raw(&redis, partition, &payload).await;
    }
    let _consumers = [setup.consumer(&[]), setup.consumer(&[])];
    setup.wait_until_drained().await;
    assert_eq!(setup.count().await, 1);
}

/// Payloads of another implementation, with unusual integer widths and fields of a later minor revision.
#[tokio::test(flavor = "multi_thread")]
async fn entries_of_other_producers_are_decoded() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    // [1, [7, 42, 5]] with 64-bit integers throughout and a 32-bit array header
    let mut wide = vec![0xdd, 0, 0, 0, 2, 0x01, 0x93];
    for integer in [7_u64, 42, 5] {
        wide.push(0xcf);
        wide.extend_from_slice(&integer.to_be_bytes());
    }
    append_raw(&redis, 0, &wide).await;
    // [1, [8, 42, 6, "later"]]
    append_raw(&redis, 1, b"\x92\x01\x94\x08\x2a\x06\xa5later").await;
    let _consumer = setup.consumer(&[]);
    setup.wait_for_rows(2).await;
    assert_eq!(setup.rows().await, [(7, 42, 5), (8, 42, 6)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn consumers_share_the_work() {
    let setup = Setup::new().await;
    let settings = [("BATCH_ROWS", "100")];
    let consumers = [setup.consumer(&settings), setup.consumer(&settings)];
    setup.append(&likes(10_000), 5).await;
    setup.wait_for_rows(10_000).await;
    setup.wait_until_drained().await;
    eventually("both consumers have stored rows, in total each row once", async || {
        let inserted =
            consumers.each_ref().map(|c| c.metrics().unwrap().sum("likestream_rows_inserted_total"));
        inserted[0] > 0.0 && inserted[1] > 0.0 && inserted[0] + inserted[1] == 10_000.0
    })
    .await;
}
