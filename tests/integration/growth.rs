//! Adding partitions while all programs run.

use crate::{
    harness::{PARTITIONS, Setup, create_groups, eventually, run, stream},
    load::Load,
};
use fred::prelude::{HashesInterface, KeysInterface, StreamsInterface};

const GROWN: u16 = 11;

fn grow(setup: &Setup, to: &str) -> crate::harness::Ended {
    run("likesctl", &["partitions", "grow", to, "--yes"], &[("REDIS_URL", &setup.redis.url())])
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_grow_under_load() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    let ingest = setup.ingest(&[]);
    let consumers = [setup.consumer(&[]), setup.consumer(&[])];
    let load = Load::start(ingest.listen(), 400);
    load.wait_for(200).await;

    let grown = grow(&setup, &GROWN.to_string());
    assert_eq!(grown.code, Some(0), "{}", grown.stderr);
    assert_eq!(grown.stdout, "increased from 4 to 11 partitions; running programs follow within seconds\n");
    eventually("everybody has followed", async || {
        let owned = consumers.each_ref().map(|c| c.metrics().unwrap().sum("likestream_partitions_owned"));
        let written = redis.xinfo_stream::<std::collections::HashMap<String, fred::prelude::Value>, _>(
            stream(GROWN - 1),
            false,
            None,
        );
        owned.iter().sum::<f64>() == f64::from(GROWN)
            && written.await.unwrap()["last-generated-id"].as_str().unwrap() != "0-0"
    })
    .await;
    load.wait_for(200).await;

    // A program can also start with the old number, or with the new one.
    let late = [setup.consumer(&[]), setup.consumer(&[("LIKES_PARTITIONS", "11")])];
    assert!(late[0].log_text().contains("partition count has grown since LIKES_PARTITIONS was set"));
    drop(consumers);
    load.wait_for(200).await;
    let sent = load.finish().await;
    setup.wait_for_rows(sent).await;
    for partition in 0..GROWN {
        eventually("the streams are empty", async || {
            redis.xlen::<u64, _>(stream(partition)).await.unwrap() == 0
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_only_grow_and_unknown_counts_are_refused() {
    let setup = Setup::new().await;
    create_groups(&setup.redis_client().await).await;
    let _ingest = setup.ingest(&[]);
    let same = grow(&setup, &PARTITIONS.to_string());
    assert_eq!((same.code, same.stdout.as_str()), (Some(0), "nothing to do: already 4 partitions\n"));
    let fewer = grow(&setup, "3");
    assert_eq!(fewer.code, Some(2));
    assert_eq!(
        fewer.stderr,
        "error: COUNT: '3' is less than the current number of partitions; expected at least 4\n"
    );
    assert_eq!(grow(&setup, "6").code, Some(0));
    assert_eq!(grow(&setup, "8").code, Some(0));
    for (partitions, code) in [("4", None), ("6", None), ("8", None), ("5", Some(2)), ("16", Some(2))] {
        let settings = [("LIKES_PARTITIONS", partitions)];
        match code {
            None => drop(setup.consumer(&settings)),
            Some(code) => {
                let url = (setup.redis.url(), setup.database_url());
                let settings = [
                    ("REDIS_URL", url.0.as_str()),
                    ("DATABASE_URL", &url.1),
                    ("CONSUMER_ADMIN_LISTEN", "127.0.0.1:0"),
                    settings[0],
                ];
                let ended = run("consumer", &[], &settings);
                assert_eq!(ended.code, Some(code), "{}", ended.stderr);
                assert!(ended.stderr.contains("expected 8 or unset"), "{}", ended.stderr);
            }
        }
    }
}

/// The recorded partition count was lowered, or it was lost and recreated by a program with a smaller count. All partitions
/// in use must still be read.
#[tokio::test(flavor = "multi_thread")]
async fn a_lowered_partition_count_is_restored() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    let ingest = setup.ingest(&[("LIKES_PARTITIONS", "8")]);
    redis.hset::<u64, _, _>("likes:settings", ("partitions", "4")).await.unwrap();
    let consumer = setup.consumer(&[("LIKES_PARTITIONS", "4")]);
    eventually("the new consumer uses all partitions", async || {
        consumer.metrics().unwrap().sum("likestream_partitions_owned") == 8.0
    })
    .await;
    assert!(
        ingest.log_text().contains("the recorded partition count was lowered, this program has restored it")
    );

    redis.hset::<u64, _, _>("likes:settings", ("partitions", "many")).await.unwrap();
    eventually("the invalid partition count is logged", async || {
        ingest.log_text().contains("the recorded partition count is invalid")
    })
    .await;
    let grown = grow(&setup, "16");
    assert_eq!(grown.code, Some(2));
    assert!(
        grown.stderr.contains("likes:settings in Redis: partition count 'many' is not valid"),
        "{}",
        grown.stderr
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_cannot_grow_before_the_first_start() {
    let setup = Setup::new().await;
    let grown = grow(&setup, "16");
    assert_eq!(grown.code, Some(1));
    assert!(grown.stderr.starts_with("error: no cluster settings for LIKES_STREAM 'likes' on Redis at"));
    assert_eq!(setup.redis_client().await.exists::<u64, _>("likes:{0}").await.unwrap(), 0);
}
