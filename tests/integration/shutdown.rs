//! Graceful shutdown after SIGTERM: drain, clean up, exit with 0.

use std::time::Duration;

use devstack::{
    http_client::{HttpClient, HttpError, Response},
    program::Program,
};
use fred::prelude::{StreamsInterface, Value};
use nix::sys::signal::Signal;
use tokio::{io::AsyncWriteExt, task::JoinHandle};

use crate::harness::{GROUP, PARTITIONS, SOON, Setup, eventually, likes, pending, pending_or_none, stream};

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_drains_its_entries_and_leaves_the_group() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    setup.append(&likes(50_000), 10).await;
    // With this linger, a batch is still being gathered at shutdown.
    let mut consumer = setup.start(
        "consumer",
        &[
            ("BATCH_LINGER", "30s"),
            ("CLAIM_MIN_IDLE", "1m"),
            ("BATCH_ROWS", "20000"),
            ("DRAIN_TIMEOUT", "1m"),
        ],
    );
    eventually("the consumer has pending entries", async || pending_or_none(&redis).await > 0).await;
    let status = consumer.terminate(SOON).unwrap();
    assert!(status.success(), "{status}: {}", consumer.log_text());
    assert_eq!(pending(&redis).await, 0);
    let stored = setup.count().await;
    let acknowledged = 50_000 - 10 * undelivered(&redis).await;
    assert_eq!(stored, acknowledged, "all delivered entries are stored");
    for partition in 0..PARTITIONS {
        let consumers: Vec<Value> = redis.xinfo_consumers(stream(partition), GROUP).await.unwrap();
        assert!(consumers.is_empty(), "{consumers:?}");
    }
}

/// Number of undelivered entries.
async fn undelivered(redis: &fred::prelude::Client) -> usize {
    let mut undelivered = 0;
    for partition in 0..PARTITIONS {
        let groups: Vec<std::collections::HashMap<String, Value>> =
            redis.xinfo_groups(stream(partition)).await.unwrap();
        undelivered += groups[0]["lag"].as_u64().unwrap();
    }
    usize::try_from(undelivered).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_consumer_exits_immediately() {
    let setup = Setup::new().await;
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut consumer = setup.consumer(&[]);
        consumer.signal(signal);
        assert!(consumer.wait_exit(SOON).unwrap().success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_not_stored_within_the_drain_timeout_stay_pending() {
    let mut setup = Setup::with_own_postgres(&[]);
    let redis = setup.redis_client().await;
    let mut consumer = setup.consumer(&[("DRAIN_TIMEOUT", "1s")]);
    setup.postgres().stop();
    setup.append(&likes(100), 1).await;
    eventually("the batch is being retried", async || {
        consumer.metrics().unwrap().sum("likestream_batches_failed_total") >= 1.0
    })
    .await;
    let status = consumer.terminate(SOON).unwrap();
    assert_eq!(status.code(), Some(1));
    let log = consumer.log_text();
    let last = log.lines().last().unwrap();
    assert!(
        last.starts_with(
            "error: graceful shutdown incomplete: not all entries were stored within DRAIN_TIMEOUT (1s)"
        ),
        "{last}"
    );
    assert!(pending(&redis).await > 0);

    setup.postgres().start_again().unwrap();
    let _next = setup.consumer(&[("CLAIM_MIN_IDLE", "500ms"), ("WRITE_TIMEOUT", "200ms")]);
    setup.wait_for_rows(100).await;
    setup.wait_until_drained().await;
}

/// Postgres does not take one row, and takes all others.
#[tokio::test(flavor = "multi_thread")]
async fn held_entries_stay_pending_at_a_clean_shutdown() {
    let setup = Setup::new().await;
    let blocker = setup.postgres_client().await;
    let redis = setup.redis_client().await;
    let mut consumer = setup.consumer(&[("DRAIN_TIMEOUT", "1m")]);
    blocker.batch_execute("BEGIN; INSERT INTO likes VALUES (7, 42, 'epoch')").await.unwrap();
    setup.append(&likes(20), 1).await;
    setup.wait_for_rows(19).await;
    eventually("one entry is pending", async || pending(&redis).await == 1).await;
    let started = std::time::Instant::now();
    let status = consumer.terminate(SOON).unwrap();
    assert!(status.success(), "{status}: {}", consumer.log_text());
    assert!(started.elapsed() < Duration::from_secs(20));
    let log = consumer.log_text();
    let line = log.lines().find(|line| line.contains("held entries stay pending for other consumers"));
    assert!(line.is_some_and(|line| line.contains("\"entries\":1,")), "{log}");
    assert_eq!(pending(&redis).await, 1);

    let _next = setup.consumer(&[]);
    blocker.batch_execute("ROLLBACK").await.unwrap();
    setup.wait_for_rows(20).await;
    setup.wait_until_drained().await;
}

async fn request_in_flight(ingest: &Program) {
    let active = || ingest.metrics().unwrap().sum("http_server_active_requests");
    eventually("the request is in flight", async || active() == 1.0).await;
}

/// Stops Redis and returns ingest in a graceful shutdown, with its request in flight.
async fn draining_ingest(setup: &Setup) -> (Program, JoinHandle<Result<Response, HttpError>>) {
    let ingest = setup.ingest(&[("REDIS_TIMEOUT", "20s")]);
    let address = ingest.listen();
    setup.redis.pause();
    let in_flight = tokio::spawn(async move { HttpClient::new(address).post_like(7, 42).await });
    request_in_flight(&ingest).await;
    ingest.signal(Signal::SIGTERM);
    eventually("no new connections", async || tokio::net::TcpStream::connect(address).await.is_err()).await;
    (ingest, in_flight)
}

#[tokio::test(flavor = "multi_thread")]
async fn ingest_finishes_requests_in_flight_and_accepts_no_more() {
    let setup = Setup::new().await;
    let (mut ingest, in_flight) = draining_ingest(&setup).await;
    let (status, checks) = devstack::admin::get(ingest.admin(), "/readyz?verbose").unwrap();
    assert!(status == 503 && checks.contains("[-] shutdown requested\n"), "{status}: {checks}");
    assert!(!in_flight.is_finished());
    setup.redis.resume();
    assert_eq!(in_flight.await.unwrap().unwrap().status, 202);
    assert!(ingest.wait_exit(SOON).unwrap().success());
    let _consumer = setup.consumer(&[]);
    setup.wait_for_rows(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ingest_exits_after_the_drain_timeout() {
    let setup = Setup::new().await;
    let mut ingest = setup.ingest(&[("REDIS_TIMEOUT", "20s"), ("DRAIN_TIMEOUT", "500ms")]);
    let address = ingest.listen();
    setup.redis.pause();
    let in_flight = tokio::spawn(async move { HttpClient::new(address).post_like(7, 42).await });
    request_in_flight(&ingest).await;
    let status = ingest.terminate(SOON).unwrap();
    assert_eq!(status.code(), Some(1));
    // The client may get an error response before the exit.
    assert!(!in_flight.await.unwrap().is_ok_and(|response| response.status == 202));
    assert!(
        ingest
            .log_text()
            .contains("graceful shutdown exceeded DRAIN_TIMEOUT (500ms); requests in flight got no response")
    );
}

/// Waits until the log has this number of requests to reload.
async fn reloads_requested(program: &Program, count: usize) {
    let requested = || program.log_text().matches("reload requested").count();
    eventually("the request is logged", async || requested() == count).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_ends_neither_ingest_nor_a_consumer() {
    let setup = Setup::new().await;
    setup.redis.pause();
    let (mut ingest, mut consumer) = (setup.start("ingest", &[]), setup.start("consumer", &[]));
    // Both wait for Redis.
    for program in [&ingest, &consumer] {
        program.signal(Signal::SIGHUP);
        reloads_requested(program, 1).await;
    }
    setup.redis.resume();
    ingest.wait_ready(SOON).unwrap();
    consumer.wait_ready(SOON).unwrap();
    for program in [&ingest, &consumer] {
        program.signal(Signal::SIGHUP);
        reloads_requested(program, 2).await;
    }
    assert_eq!(HttpClient::new(ingest.listen()).post_like(7, 42).await.unwrap().status, 202);
    setup.wait_for_rows(1).await;
    assert!(ingest.terminate(SOON).unwrap().success());
    assert!(consumer.terminate(SOON).unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_does_not_interrupt_a_graceful_shutdown() {
    let setup = Setup::new().await;
    let (mut ingest, in_flight) = draining_ingest(&setup).await;
    ingest.signal(Signal::SIGHUP);
    reloads_requested(&ingest, 1).await;
    assert!(!in_flight.is_finished());
    setup.redis.resume();
    assert_eq!(in_flight.await.unwrap().unwrap().status, 202);
    assert!(ingest.wait_exit(SOON).unwrap().success());
}

/// An incomplete request is not in flight and does not delay shutdown.
#[tokio::test(flavor = "multi_thread")]
async fn idle_and_incomplete_connections_do_not_delay_shutdown() {
    let setup = Setup::new().await;
    let mut ingest = setup.ingest(&[("DRAIN_TIMEOUT", "1h")]);
    let mut kept_alive = HttpClient::new(ingest.listen());
    assert_eq!(kept_alive.post_like(7, 42).await.unwrap().status, 202);
    let mut half_sent = tokio::net::TcpStream::connect(ingest.listen()).await.unwrap();
    half_sent.write_all(b"POST /likes HTTP/1.1\r\nHost: x\r\n").await.unwrap();
    let _silent = tokio::net::TcpStream::connect(ingest.listen()).await.unwrap();
    assert!(ingest.terminate(SOON).unwrap().success());
}

/// Without a writable log, ingest still accepts likes and handles signals.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_log_disk_does_not_stop_ingest() {
    let setup = Setup::new().await;
    let address = format!("127.0.0.1:{}", devstack::free_port().unwrap());
    let settings = [
        ("REDIS_URL", setup.redis.url()),
        ("INGEST_LISTEN", address.clone()),
        ("INGEST_ADMIN_LISTEN", "127.0.0.1:0".to_owned()),
        ("REDIS_TIMEOUT", "300ms".to_owned()),
    ];
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut ingest = devstack::program::command("ingest", &settings).unwrap().stderr(full).spawn().unwrap();
    let mut client = HttpClient::new(address.parse().unwrap());
    eventually("202", async || client.post_like(7, 42).await.is_ok_and(|r| r.status == 202)).await;
    // This must be logged, but the write fails.
    setup.redis.pause();
    assert_eq!(client.post_like(7, 43).await.unwrap().status, 503);
    setup.redis.resume();
    eventually("202 again", async || client.post_like(7, 44).await.is_ok_and(|r| r.status == 202)).await;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(ingest.id().cast_signed()), Signal::SIGTERM).unwrap();
    let mut status = None;
    eventually("ingest has exited", async || {
        status = ingest.try_wait().unwrap();
        status.is_some()
    })
    .await;
    assert!(status.unwrap().success());
}

/// The drain timeout applies even if `REDIS_TIMEOUT` is longer.
#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_exits_after_the_drain_timeout_if_redis_is_frozen() {
    let setup = Setup::new().await;
    let mut consumer = setup.consumer(&[("REDIS_TIMEOUT", "10m"), ("DRAIN_TIMEOUT", "500ms")]);
    setup.redis.pause();
    // If no read happens to be in flight, the shutdown is clean.
    let is_clean = consumer.terminate(SOON).unwrap().success();
    assert!(is_clean || consumer.log_text().contains("DRAIN_TIMEOUT"));
}
