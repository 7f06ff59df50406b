//! What a consumer tells of itself.

use std::time::Duration;

use crate::harness::{Setup, eventually, likes};

#[tokio::test(flavor = "multi_thread")]
async fn readiness_names_what_is_missing() {
    let mut setup = Setup::with_own_postgres(&[]);
    let consumer = setup.consumer(&[]);
    let ready = || local::admin::get(consumer.admin(), "/readyz?verbose").unwrap();
    assert_eq!(
        ready(),
        (200, "[+] postgres ok\n[+] reader ok\n[+] redis ok\n[+] writer ok\nready\n".to_owned())
    );

    setup.postgres().stop();
    eventually("Postgres is missed", async || ready().0 == 503 && ready().1.contains("[-] postgres failed"))
        .await;
    assert_eq!(local::admin::get(consumer.admin(), "/livez").unwrap().0, 200);
    setup.postgres().start_again().unwrap();
    eventually("ready again", async || ready().0 == 200).await;

    setup.redis.stop();
    eventually("Redis is missed", async || ready().0 == 503 && ready().1.contains("[-] redis failed")).await;
    setup.redis.start_again().unwrap();
    eventually("ready again", async || ready().0 == 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_bounded_while_postgres_is_away() {
    let mut setup = Setup::with_own_postgres(&[]);
    let consumer = setup.consumer(&[("BATCH_ROWS", "1000")]);
    setup.postgres().stop();
    setup.append(&likes(200_000), 500).await;
    eventually("the batch is held", async || {
        consumer.metrics().unwrap().sum("likestream_batches_failed_total") >= 3.0
    })
    .await;
    // Two batches, and what one read may bring over that.
    let read = consumer.metrics().unwrap().sum("likestream_entries_read_total");
    assert!(read <= 40.0, "{read} entries of 500 likes were read ahead");
    setup.postgres().start_again().unwrap();
    setup.wait_for_rows(200_000).await;
    let peak = consumer.peak_resident_bytes().unwrap();
    assert!(peak < 80 << 20, "{peak} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_does_not_flood_the_log() {
    let mut setup = Setup::with_own_postgres(&[]);
    let consumer = setup.consumer(&[]);
    setup.postgres().stop();
    setup.append(&likes(1_000), 1).await;
    eventually("some attempts fail", async || {
        consumer.metrics().unwrap().sum("likestream_batches_failed_total") >= 5.0
    })
    .await;
    let before = consumer.log_text().lines().count();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let lines = consumer.log_text().lines().count() - before;
    assert!(lines <= 20, "{lines} lines in two seconds");
}
