//! Connections to Postgres: several hosts, rotated passwords, and the number of backends.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use devstack::{
    backlog,
    postgres_server::{PostgresOptions, PostgresServer},
    process::Lifetime,
    program::Program,
};

use crate::harness::{PARTITIONS, SOON, Setup, connections, eventually, like, likes, start_redis, stream};

/// Backends that one consumer may occupy, those of closed connections included.
const BACKENDS: i64 = 5;

const COUNT_BACKENDS: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'likestream consumer'";

async fn start_with_two_hosts(setup: &Setup, first: u16, second: u16, parameters: &str) -> Program {
    let url = format!("postgres://postgres@127.0.0.1:{first},127.0.0.1:{second}/postgres?{parameters}");
    let consumer = setup.consumer(&[("DATABASE_URL", &url)]);
    setup.append(&likes(50), 1).await;
    setup.wait_for_rows(50).await;
    consumer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_host_costs_its_connect_timeout_only() {
    let frozen = PostgresServer::start(PostgresOptions::default(), Lifetime::Attached).unwrap();
    let mut setup = Setup::with_own_postgres(&[]);
    let (first, second) = (frozen.port(), setup.postgres().port());
    frozen.pause();
    let started = Instant::now();
    let _consumer =
        start_with_two_hosts(&setup, first, second, "target_session_attrs=read-write&connect_timeout=2")
            .await;
    // Each of the four connections of a start waits for the frozen host once.
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_not_a_primary_is_skipped() {
    let options = PostgresOptions {
        settings: vec![("default_transaction_read_only".to_owned(), "on".to_owned())],
        ..PostgresOptions::default()
    };
    let read_only = PostgresServer::start(options, Lifetime::Attached).unwrap();
    let mut setup = Setup::with_own_postgres(&[]);
    let (first, second) = (read_only.port(), setup.postgres().port());
    start_with_two_hosts(&setup, first, second, "target_session_attrs=read-write").await;
}

/// Starts a Postgres that asks for passwords, with a superuser `likes` and an URL of that user.
async fn with_password(password: &str) -> (Setup, impl Fn(&str) -> String) {
    let rules = "local all postgres trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
    let options = PostgresOptions {
        settings: vec![("fsync".to_owned(), "off".to_owned())],
        files: vec![("pg_hba.conf".to_owned(), rules.to_owned())],
        ..PostgresOptions::default()
    };
    let server = PostgresServer::start(options, Lifetime::Attached).unwrap();
    let port = server.port();
    let setup = Setup::of_servers(start_redis(&[]), server);
    setup.migrate();
    let role = format!("CREATE ROLE likes SUPERUSER LOGIN PASSWORD '{password}'");
    setup.postgres_client().await.batch_execute(&role).await.unwrap();
    (setup, move |password: &str| format!("postgres://likes:{password}@127.0.0.1:{port}/postgres\n"))
}

fn replace(file: &Path, text: &str) {
    let next = file.with_extension("next");
    fs::write(&next, text).unwrap();
    fs::rename(next, file).unwrap();
}

fn checks(program: &Program) -> String {
    devstack::admin::get(program.admin(), "/readyz?verbose").unwrap().1
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_password_is_read_again_without_a_restart() {
    let (setup, url) = with_password("first").await;
    let file = setup.folder().join("url");
    let path = file.to_str().unwrap();
    replace(&file, &url("first"));
    let consumer = setup.start_without("DATABASE_URL", "consumer", &[("DATABASE_URL_FILE", path)]);
    consumer.wait_ready(SOON).unwrap();
    let client = setup.postgres_client().await;
    let end_sessions = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'likes'";
    client.batch_execute("ALTER ROLE likes PASSWORD 'second'").await.unwrap();
    client.batch_execute(end_sessions).await.unwrap();
    setup.append(&likes(50), 1).await;
    let refusal = "password authentication failed for user \"likes\"";
    eventually("the refusal is reported", async || {
        let in_log = refusal.replace('"', "\\\"");
        checks(&consumer).contains(refusal) && consumer.log_text().contains(&in_log)
    })
    .await;

    fs::write(&file, "").unwrap();
    let empty = format!("DATABASE_URL_FILE: {path} is empty");
    eventually("the empty file is reported", async || checks(&consumer).contains(&empty)).await;
    fs::remove_file(&file).unwrap();
    let missing = format!("DATABASE_URL_FILE: cannot read {path}");
    eventually("the missing file is reported", async || checks(&consumer).contains(&missing)).await;

    replace(&file, &url("second"));
    setup.wait_for_rows(50).await;
    setup.wait_until_drained().await;
    assert!(!consumer.log_text().contains("first@") && !consumer.log_text().contains("second@"));
}

/// Watches the number of backends of consumers for a while, and returns the highest.
async fn most_backends(setup: &Setup, time: Duration, mut meanwhile: impl AsyncFnMut()) -> i64 {
    let client = setup.postgres_client().await;
    let (started, mut most) = (Instant::now(), 0);
    while started.elapsed() < time {
        meanwhile().await;
        let row = client.query_one(COUNT_BACKENDS, &[]).await.unwrap();
        most = most.max(row.get(0));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    most
}

async fn set_standby(setup: &Setup, name: &str) {
    let client = setup.postgres_client().await;
    let set = format!("ALTER SYSTEM SET synchronous_standby_names = '{name}'");
    client.batch_execute(&set).await.unwrap();
    client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
}

/// A backend that waits for a standby does not notice that its client has gone.
#[tokio::test(flavor = "multi_thread")]
async fn commits_that_wait_for_a_standby_occupy_few_backends() {
    let setup = Setup::with_own_postgres(&[]);
    let settings = [("WRITE_TIMEOUT", "1s"), ("CLAIM_MIN_IDLE", "5s")];
    let early = setup.consumer(&settings);
    set_standby(&setup, "s1").await;
    let late = setup.start("consumer", &settings);
    let mut user = 0;
    let most = most_backends(&setup, Duration::from_secs(30), async || {
        user += 1;
        setup.append(&[like(user, 42)], 1).await;
    })
    .await;
    assert!(most <= 2 * BACKENDS, "{most}");
    let redis = connections(&setup.redis.url()).await;
    let backlog = backlog::entries(&redis, (0..PARTITIONS).map(stream)).await.unwrap();
    assert_eq!(backlog, user, "nothing is acknowledged before a standby has it");
    set_standby(&setup, "").await;
    for consumer in [&early, &late] {
        consumer.wait_ready(SOON).unwrap();
    }
    setup.wait_for_rows(usize::try_from(user).unwrap()).await;
    setup.wait_until_drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_probes_that_get_no_response_occupy_one_backend() {
    let setup = Setup::new().await;
    let consumer = setup.consumer(&[]);
    let client = setup.postgres_client().await;
    client.batch_execute("BEGIN; LOCK TABLE likes_schema").await.unwrap();
    eventually("the probe fails", async || checks(&consumer).contains("no response within 3s")).await;
    let count = format!("{COUNT_BACKENDS} AND datname = current_database()");
    let mut most = 0;
    for _ in 0..100 {
        most = most.max(client.query_one(&count, &[]).await.unwrap().get::<_, i64>(0));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(most <= BACKENDS, "{most}");
    client.batch_execute("COMMIT").await.unwrap();
    eventually("the probe succeeds", async || !checks(&consumer).contains("[-]postgres")).await;
}
