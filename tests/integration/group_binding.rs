//! A consumer group writes to one database.

use std::time::Duration;

use devstack::{
    postgres_server::{PostgresOptions, PostgresServer},
    process::Lifetime,
    program::Program,
};

use crate::{
    harness::{Ended, SOON, Setup, eventually, likes, postgres_client, run},
    likesctl::{ctl, json},
};

/// Creates a database beside that of the setup, with the schema, and returns its URL.
async fn another_database(setup: &Setup, name: &str) -> String {
    let url = setup.database_url();
    let (server, own) = url.rsplit_once('/').unwrap();
    let name = format!("{own}_{name}");
    setup.postgres_client().await.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
    let url = format!("{server}/{name}");
    let migrated = run("likesctl", &["migrate"], &[("DATABASE_URL", &url)]);
    assert_eq!(migrated.code, Some(0), "{}", migrated.stderr);
    url
}

fn ctl_on(setup: &Setup, database: &str, arguments: &[&str]) -> Ended {
    let redis = setup.redis.url();
    run("likesctl", arguments, &[("REDIS_URL", &redis), ("DATABASE_URL", database), ("USER", "tester")])
}

/// Starts a consumer that refuses to run, and returns its last line.
fn refused_consumer(setup: &Setup, database: &str) -> String {
    let mut consumer = setup.start("consumer", &[("DATABASE_URL", database)]);
    let exit = consumer.wait_exit(SOON).unwrap();
    assert_eq!(exit.code(), Some(2), "{}", consumer.log_text());
    consumer.log_text().lines().last().unwrap().to_owned()
}

async fn count(database: &str) -> i64 {
    let client = postgres_client(database).await;
    client.query_one("SELECT count(*) FROM likes", &[]).await.unwrap().get(0)
}

async fn database_id(client: &tokio_postgres::Client) -> String {
    client.query_one("SELECT id::text FROM likes_database", &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_of_another_database_refuses_to_start() {
    let setup = Setup::new().await;
    let staging = another_database(&setup, "staging").await;
    let _consumer = setup.consumer(&[]);
    let line = refused_consumer(&setup, &staging);
    let (own, other) = (database_id(&setup.postgres_client().await).await, {
        database_id(&postgres_client(&staging).await).await
    });
    let (_, name) = staging.rsplit_once('/').unwrap();
    for named in [&own[..8], &other[..8], &format!("'{name}'"), "'likes-writers'", "likesctl group bind"] {
        assert!(line.contains(named), "{named} is not in: {line}");
    }
    setup.append(&likes(200), 1).await;
    setup.wait_for_rows(200).await;
    setup.wait_until_drained().await;
    assert_eq!(count(&staging).await, 0);

    // Commands that write, settle entries or compare refuse as well.
    for arguments in [
        &["verify"][..],
        &["pending", "ack", "--all", "--yes"],
        &["reprocess", "--from", "1h", "--yes"],
        &["incidents", "acknowledge", "--all", "--yes"],
    ] {
        let ended = ctl_on(&setup, &staging, arguments);
        assert_eq!(ended.code, Some(6), "{arguments:?}: {}{}", ended.stdout, ended.stderr);
        assert!(ended.stderr.contains(&own[..8]) && ended.stderr.contains(&other[..8]), "{}", ended.stderr);
    }
    let doctor = ctl_on(&setup, &staging, &["doctor"]);
    assert_eq!(doctor.code, Some(1), "{}", doctor.stdout);
    assert!(doctor.stdout.contains(&format!("but this is database '{name}'")), "{}", doctor.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_consumers_that_start_at_once_one_binds_the_group() {
    let setup = Setup::new().await;
    let staging = another_database(&setup, "staging").await;
    let own = setup.database_url();
    let mut consumers = [&own, &staging].map(|url| setup.start("consumer", &[("DATABASE_URL", url)]));
    let ended = |consumer: &Program| consumer.last_output_if_ended().is_some();
    eventually("one of them exits", async || consumers.iter().any(ended)).await;
    setup.append(&likes(100), 1).await;
    let counts = async || (count(&own).await, count(&staging).await);
    eventually("stored", async || [(100, 0), (0, 100)].contains(&counts().await)).await;
    let [refused] = &mut consumers.iter_mut().filter(|consumer| ended(consumer)).collect::<Vec<_>>()[..]
    else {
        panic!("both have exited");
    };
    assert_eq!(refused.wait_exit(SOON).unwrap().code(), Some(2), "{}", refused.log_text());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_group_may_write_to_another_database() {
    let setup = Setup::new().await;
    let reports = another_database(&setup, "reports").await;
    let _consumer = setup.consumer(&[]);
    let _other = setup.consumer(&[("DATABASE_URL", &reports), ("LIKES_GROUP", "reports")]);
    setup.append(&likes(50), 1).await;
    setup.wait_for_rows(50).await;
    eventually("both have all likes", async || count(&reports).await == 50).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_binds_the_group_to_another_database() {
    let setup = Setup::new().await;
    let target = another_database(&setup, "target").await;
    let mut consumer = setup.consumer(&[]);
    let alive = ctl_on(&setup, &target, &["group", "bind", "--yes"]);
    assert_eq!(alive.code, Some(6), "{}{}", alive.stdout, alive.stderr);
    assert!(alive.stderr.contains("1 consumer of the group is alive"), "{}", alive.stderr);
    consumer.stop().unwrap();

    let preview = ctl_on(&setup, &target, &["group", "bind", "--dry-run"]);
    assert!(preview.stderr.contains("instead of"), "{}", preview.stderr);
    assert_eq!(json(&setup, &["group", "show", "-o", "json"])["database_url"], "same");
    let bound = ctl_on(&setup, &target, &["group", "bind", "--yes", "--reason-text", "a move"]);
    assert_eq!(bound.code, Some(0), "{}{}", bound.stdout, bound.stderr);
    let again = ctl_on(&setup, &target, &["group", "bind", "--yes"]);
    assert!(again.stdout.starts_with("nothing to do"), "{}{}", again.stdout, again.stderr);
    let shown = json(&setup, &["group", "show", "-o", "json"]);
    assert_eq!(shown["database_url"], "other");
    assert!(shown["database"]["bound_by"].as_str().unwrap().starts_with("tester@"), "{shown}");
    assert!(ctl(&setup, &["audit"]).stdout.contains("group bind"));

    refused_consumer(&setup, &setup.database_url());
    let _moved = setup.consumer(&[("DATABASE_URL", &target)]);
    setup.append(&likes(20), 1).await;
    eventually("stored in the other database", async || count(&target).await == 20).await;
    assert_eq!(setup.count().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_consumer_exits_when_its_group_is_bound_to_another_database() {
    let setup = Setup::new().await;
    let target = another_database(&setup, "target").await;
    let mut consumer = setup.consumer(&[]);
    let forced = ctl_on(&setup, &target, &["group", "bind", "--force", "--yes"]);
    assert_eq!(forced.code, Some(0), "{}{}", forced.stdout, forced.stderr);
    let exit = consumer.wait_exit(SOON).unwrap();
    assert_eq!(exit.code(), Some(2), "{}", consumer.log_text());
    assert!(consumer.log_text().contains("DATABASE_URL: consumer group"), "{}", consumer.log_text());
}

/// Swaps the names of two databases, as a changed address or a changed pooler would.
async fn swap(first: &str, second: &str) {
    let (server, _) = first.rsplit_once('/').unwrap();
    let admin = postgres_client(&format!("{server}/postgres")).await;
    let [first, second] = [first, second].map(|url| url.rsplit_once('/').unwrap().1);
    for name in [first, second] {
        admin.batch_execute(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false")).await.unwrap();
    }
    let end = "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE datname = ANY ($1)";
    admin.query_one(end, &[&vec![first, second]]).await.unwrap();
    let rename = |from: &str, to: &str| format!("ALTER DATABASE {from} RENAME TO {to}");
    for sql in [rename(first, "swapped"), rename(second, first), rename("swapped", second)] {
        admin.batch_execute(&sql).await.unwrap();
    }
    for name in [first, second] {
        admin.batch_execute(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true")).await.unwrap();
    }
}

async fn never_writes_to_another_database_under_the_same_address(pooling: &str) {
    let setup = Setup::with_own_postgres(&[]);
    let own = another_database(&setup, "own").await;
    let other = another_database(&setup, "other").await;
    let consumer = setup.consumer(&[("DATABASE_URL", &own), ("POSTGRES_POOLING", pooling)]);
    swap(&own, &other).await;
    setup.append(&likes(30), 1).await;
    eventually("halted", async || consumer.log_text().contains("is not the one with id")).await;
    eventually("not ready", async || consumer.wait_ready(Duration::from_millis(1)).is_err()).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((count(&own).await, count(&other).await), (0, 0));
    swap(&own, &other).await;
    eventually("stored", async || count(&own).await == 30).await;
    assert_eq!(count(&other).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_consumer_never_writes_to_another_database_under_the_same_address() {
    never_writes_to_another_database_under_the_same_address("session").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_behind_a_pooler_never_writes_to_another_database_under_the_same_address() {
    never_writes_to_another_database_under_the_same_address("transaction").await;
}

/// Starts a server with a copy of the database of the setup.
async fn restored_copy(setup: &Setup) -> (PostgresServer, String) {
    let copy = PostgresServer::start(PostgresOptions::default(), Lifetime::Attached).unwrap();
    let url = copy.url("postgres");
    assert_eq!(run("likesctl", &["migrate"], &[("DATABASE_URL", &url)]).code, Some(0));
    let id = database_id(&setup.postgres_client().await).await;
    let restore = format!("UPDATE likes_database SET id = '{id}'");
    postgres_client(&url).await.batch_execute(&restore).await.unwrap();
    (copy, url)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_consumer_exits_when_its_group_is_bound_to_a_restored_copy() {
    let setup = Setup::new().await;
    let mut consumer = setup.consumer(&[]);
    let (_copy, url) = restored_copy(&setup).await;
    let alive = ctl_on(&setup, &url, &["group", "bind", "--yes"]);
    assert_eq!(alive.code, Some(6), "{}{}", alive.stdout, alive.stderr);
    assert!(alive.stderr.contains("1 consumer of the group is alive"), "{}", alive.stderr);
    let forced = ctl_on(&setup, &url, &["group", "bind", "--force", "--yes"]);
    assert_eq!(forced.code, Some(0), "{}{}", forced.stdout, forced.stderr);
    let exit = consumer.wait_exit(SOON).unwrap();
    assert_eq!(exit.code(), Some(2), "{}", consumer.log_text());
    assert!(consumer.log_text().contains("but this is its copy"), "{}", consumer.log_text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_copy_is_a_warning_until_it_is_bound() {
    let setup = Setup::new().await;
    let mut consumer = setup.consumer(&[]);
    consumer.stop().unwrap();
    let (_copy, url) = restored_copy(&setup).await;

    let mut consumer = setup.consumer(&[("DATABASE_URL", &url)]);
    assert!(consumer.log_text().contains("database is a restored copy"), "{}", consumer.log_text());
    let shown = ctl_on(&setup, &url, &["group", "show"]);
    assert!(shown.stdout.contains("DATABASE_URL       copy"), "{}", shown.stdout);
    let doctor = ctl_on(&setup, &url, &["doctor"]);
    assert!(doctor.stdout.contains("warn  database"), "{}", doctor.stdout);
    consumer.stop().unwrap();

    let bound = ctl_on(&setup, &url, &["group", "bind", "--yes"]);
    assert_eq!(bound.code, Some(0), "{}{}", bound.stdout, bound.stderr);
    let consumer = setup.consumer(&[("DATABASE_URL", &url)]);
    assert!(!consumer.log_text().contains("restored copy"), "{}", consumer.log_text());
    assert!(ctl_on(&setup, &url, &["doctor"]).stdout.contains("ok    database"));
}

/// As managed servers do. Functions in a schema before pg_catalog hide those of Postgres.
const REFUSED_FUNCTIONS: &str = "
CREATE SCHEMA managed;
CREATE FUNCTION managed.pg_control_system(OUT system_identifier bigint) LANGUAGE plpgsql AS
    $$ BEGIN RAISE 'not supported' USING ERRCODE = 'feature_not_supported'; END $$;
CREATE FUNCTION managed.pg_current_wal_lsn() RETURNS pg_lsn LANGUAGE plpgsql AS
    $$ BEGIN RAISE 'not supported' USING ERRCODE = 'internal_error'; END $$;
ALTER DATABASE postgres SET search_path = managed, pg_catalog, public;";

#[tokio::test(flavor = "multi_thread")]
async fn a_server_may_refuse_to_identify_itself() {
    let setup = Setup::with_own_postgres(&[]);
    let client = setup.postgres_client().await;
    client.batch_execute(REFUSED_FUNCTIONS).await.unwrap();
    let consumer = setup.consumer(&[]);
    setup.append(&likes(50), 1).await;
    setup.wait_for_rows(50).await;
    let watched = "SELECT FROM likes_watermarks";
    eventually("watermarks", async || !client.query(watched, &[]).await.unwrap().is_empty()).await;
    assert!(!consumer.log_text().contains("cannot watch the database"), "{}", consumer.log_text());
    let shown = json(&setup, &["group", "show", "-o", "json"]);
    assert_eq!(
        (shown["database_url"].as_str(), shown["database"]["system_identifier"].as_str()),
        (Some("same"), None)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_on_the_same_server_is_another_database() {
    let setup = Setup::new().await;
    let mut consumer = setup.consumer(&[]);
    consumer.stop().unwrap();
    let copy = another_database(&setup, "copy").await;
    let id = database_id(&setup.postgres_client().await).await;
    let restore = format!("UPDATE likes_database SET id = '{id}'");
    postgres_client(&copy).await.batch_execute(&restore).await.unwrap();
    refused_consumer(&setup, &copy);
}
