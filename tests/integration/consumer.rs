//! Readiness, logs and resource usage of a consumer.

use std::time::Duration;

use fred::prelude::{LuaInterface, StreamsInterface, Value};

use crate::harness::{GROUP, Setup, append_raw, create_groups, eventually, likes, stream};

#[tokio::test(flavor = "multi_thread")]
async fn readiness_names_the_failing_dependency() {
    let mut setup = Setup::with_own_postgres(&[]);
    let consumer = setup.consumer(&[]);
    let ready = || devstack::admin::get(consumer.admin(), "/readyz?verbose").unwrap();
    assert_eq!(
        ready(),
        (
            200,
            "[+] membership ok\n[+] postgres ok\n[+] reader ok\n[+] redis ok\n[+] writer ok\nready\n"
                .to_owned()
        )
    );

    setup.postgres().stop();
    eventually("the postgres check fails", async || {
        ready().0 == 503 && ready().1.contains("[-] postgres failed")
    })
    .await;
    assert_eq!(devstack::admin::get(consumer.admin(), "/livez").unwrap().0, 200);
    setup.postgres().start_again().unwrap();
    eventually("ready again", async || ready().0 == 200).await;

    setup.redis.stop();
    eventually("the redis check fails", async || ready().0 == 503 && ready().1.contains("[-] redis failed"))
        .await;
    setup.redis.start_again().unwrap();
    eventually("ready again", async || ready().0 == 200).await;
}

/// Connections to a frozen server stay open, but requests get no response. Every check must notice that.
#[tokio::test(flavor = "multi_thread")]
async fn frozen_servers_fail_the_readiness_check() {
    let setup = Setup::with_own_postgres(&[]);
    let consumer = setup.consumer(&[("REDIS_TIMEOUT", "1s")]);
    let ready = || devstack::admin::get(consumer.admin(), "/readyz?verbose").unwrap();
    setup
        .frozen_postgres(async || {
            eventually("the postgres check fails", async || ready().1.contains("[-] postgres failed")).await;
            assert!(ready().1.contains("[+] redis ok"), "{}", ready().1);
        })
        .await;
    eventually("ready again", async || ready().0 == 200).await;

    setup.redis.pause();
    eventually("the redis check fails", async || {
        ready().1.contains("[-] redis failed") && ready().1.contains("[-] reader failed")
    })
    .await;
    setup.redis.resume();
    eventually("ready again", async || ready().0 == 200).await;
    setup.append(&likes(10), 1).await;
    setup.wait_for_rows(10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_consumers_are_removed_from_the_group() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    create_groups(&redis).await;
    // Redis 7.0 creates a consumer only when it receives an entry.
    let id = append_raw(&redis, 0, &[0x92, 1, 0x93, 7, 42, 5]).await;
    redis.xreadgroup::<Value, _, _, _, _>(GROUP, "gone", None, None, false, stream(0), ">").await.unwrap();
    redis.xack::<u64, _, _, _>(stream(0), GROUP, id).await.unwrap();
    // Name and idle time in milliseconds of each consumer.
    let script = "local found = {}
                  for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
                      found[#found + 1] = consumer[2] .. ' ' .. consumer[6]
                  end
                  return table.concat(found, ',')";
    let consumers = async || -> String { redis.eval(script, stream(0), GROUP).await.unwrap() };
    eventually("the consumer has been idle for 3 s", async || {
        let idle_ms: u64 = consumers().await.strip_prefix("gone ").unwrap().parse().unwrap();
        idle_ms >= 3_000
    })
    .await;
    let settings = [("CLAIM_MIN_IDLE", "300ms"), ("WRITE_TIMEOUT", "140ms"), ("CONSUMER_NAME", "new")];
    let _consumer = setup.consumer(&settings);
    eventually("the dead consumer is removed", async || !consumers().await.contains("gone")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_bounded_during_a_postgres_outage() {
    let mut setup = Setup::with_own_postgres(&[]);
    let consumer = setup.consumer(&[("BATCH_ROWS", "1000")]);
    setup.postgres().stop();
    setup.append(&likes(200_000), 500).await;
    eventually("the batch is being retried", async || {
        consumer.metrics().unwrap().sum("likestream_batches_failed_total") >= 3.0
    })
    .await;
    // Three batches, plus the surplus of one read: the reader first assumes 64 likes per entry.
    let read = consumer.metrics().unwrap().sum("messaging_client_consumed_messages_total");
    assert!(read <= 60.0, "{read} entries of 500 likes were read ahead");
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
    eventually("several attempts have failed", async || {
        consumer.metrics().unwrap().sum("likestream_batches_failed_total") >= 5.0
    })
    .await;
    let before = consumer.log_text().lines().count();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let lines = consumer.log_text().lines().count() - before;
    assert!(lines <= 20, "{lines} lines in two seconds");
}
