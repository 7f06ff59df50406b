//! Errors of Postgres: each is transient, rejects rows, or halts the consumer, depending on its SQLSTATE.

use devstack::program::Program;
use fred::prelude::Client;

use crate::{
    dead_letters::dead_letters,
    harness::{Setup, append_raw, eventually, like, likes, pending},
};

pub(crate) fn ready(consumer: &Program) -> (u16, String) {
    devstack::admin::get(consumer.admin(), "/readyz?verbose").unwrap()
}

async fn failures(consumer: &Program, at_least: f64) {
    eventually("attempts fail", async || {
        consumer.metrics().unwrap().sum("likestream_batches_failed_total") >= at_least
    })
    .await;
}

/// Makes every insert of a like fail with this SQLSTATE.
async fn fail_with(postgres: &tokio_postgres::Client, sqlstate: &str) {
    let trigger = format!(
        "CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN RAISE EXCEPTION 'as the test wants it' USING ERRCODE = '{sqlstate}'; END $$;
         CREATE OR REPLACE TRIGGER fail BEFORE INSERT ON likes FOR EACH STATEMENT EXECUTE FUNCTION fail()"
    );
    postgres.batch_execute(&trigger).await.unwrap();
}

/// Serialization failure, deadlock, disk full, out of memory, lock not available, cancelled, shutdown, I/O error and
/// internal error.
#[tokio::test(flavor = "multi_thread")]
async fn transient_errors_are_retried_without_dead_letters() {
    let setup = Setup::new().await;
    let postgres = setup.postgres_client().await;
    let redis = setup.redis_client().await;
    let consumer = setup.consumer(&[]);
    let sqlstates = ["40001", "40P01", "53100", "53200", "55P03", "57014", "57P01", "58030", "XX000"];
    for (round, sqlstate) in (1..).zip(sqlstates) {
        let failed_before = consumer.metrics().unwrap().sum("likestream_batches_failed_total");
        fail_with(&postgres, sqlstate).await;
        setup.append(&[like(round, 42)], 1).await;
        failures(&consumer, failed_before + 2.0).await;
        assert_eq!(ready(&consumer).0, 503, "{sqlstate}");
        postgres.batch_execute("DROP TRIGGER fail ON likes").await.unwrap();
        setup.wait_for_rows(usize::try_from(round).unwrap()).await;
    }
    eventually("ready", async || ready(&consumer).0 == 200).await;
    setup.wait_until_drained().await;
    assert!(dead_letters(&redis).await.is_empty());
}

/// As after a failover to a server that is still a replica: open connections find it read-only.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_database_is_retried_until_it_is_writable() {
    let mut setup = Setup::with_own_postgres(&[]);
    let postgres = setup.postgres_client().await;
    let redis = setup.redis_client().await;
    let consumer = setup.consumer(&[]);
    postgres.batch_execute("ALTER SYSTEM SET default_transaction_read_only = on; ").await.unwrap();
    postgres.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    let observer = setup.postgres_client().await;
    eventually("the database is read-only", async || {
        let set = observer.query_one("SHOW default_transaction_read_only", &[]).await.unwrap();
        set.get::<_, &str>(0) == "on"
    })
    .await;
    setup.append(&likes(50), 1).await;
    failures(&consumer, 2.0).await;
    assert!(consumer.log_text().contains("read-only transaction"));
    postgres.batch_execute("SET default_transaction_read_only = off").await.unwrap();
    postgres.batch_execute("ALTER SYSTEM RESET default_transaction_read_only").await.unwrap();
    postgres.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    setup.wait_for_rows(50).await;
    setup.wait_until_drained().await;
    assert!(dead_letters(&redis).await.is_empty());
    setup.postgres().stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_lock_is_waited_for_with_a_timeout() {
    let setup = Setup::new().await;
    let postgres = setup.postgres_client().await;
    let consumer = setup.consumer(&[("WRITE_TIMEOUT", "400ms")]);
    postgres.batch_execute("BEGIN; LOCK TABLE likes IN ACCESS EXCLUSIVE MODE").await.unwrap();
    setup.append(&likes(50), 1).await;
    failures(&consumer, 2.0).await;
    eventually("a lock timeout is logged", async || consumer.log_text().contains("lock timeout")).await;
    postgres.batch_execute("COMMIT").await.unwrap();
    setup.wait_for_rows(50).await;
    setup.wait_until_drained().await;
}

/// A commit waits for its standby, and the creation of a session does not: the cause is named.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_waits_for_a_missing_standby_is_named() {
    let mut setup = Setup::with_own_postgres(&[]);
    let postgres = setup.postgres_client().await;
    let consumer = setup.consumer(&[("WRITE_TIMEOUT", "1s")]);
    postgres.batch_execute("ALTER SYSTEM SET synchronous_standby_names = 'missing'").await.unwrap();
    postgres.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    let observer = setup.postgres_client().await;
    eventually("commits wait", async || {
        let names = observer.query_one("SHOW synchronous_standby_names", &[]).await.unwrap();
        names.get::<_, &str>(0) == "missing"
    })
    .await;
    setup.append(&likes(3), 1).await;
    let cause = "commits wait for a synchronous standby";
    eventually("the cause is named", async || consumer.log_text().contains(cause)).await;
    postgres.batch_execute("ALTER SYSTEM RESET synchronous_standby_names").await.unwrap();
    postgres.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    setup.wait_for_rows(3).await;
    setup.wait_until_drained().await;
    setup.postgres().stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_free_connections_is_retried() {
    let mut setup = Setup::with_own_postgres(&[("max_connections", "10")]);
    let consumer = setup.consumer(&[]);
    let postgres = setup.postgres_client().await;
    let url = setup.database_url();
    let mut hoard = Vec::new();
    eventually("the consumer has no connection, and no connection is free", async || {
        let end = "SELECT count(pg_terminate_backend(pid, 30000)) FROM pg_stat_activity
                   WHERE application_name LIKE 'likestream%'";
        let ended: i64 = postgres.query_one(end, &[]).await.unwrap().get(0);
        while let Ok((client, connection)) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await {
            tokio::spawn(connection);
            hoard.push(client);
        }
        ended == 0
    })
    .await;
    setup.append(&likes(50), 1).await;
    failures(&consumer, 2.0).await;
    drop(hoard);
    // Use the existing connection, because the consumer may take the last free one.
    eventually("50 rows", async || {
        let count = postgres.query_one("SELECT count(*) FROM likes", &[]).await;
        count.is_ok_and(|row| row.get::<_, i64>(0) == 50)
    })
    .await;
    setup.wait_until_drained().await;
    setup.postgres().stop();
}

/// An operator must fix the cause. Until then, the consumer is not ready, reports the reason and keeps all entries; it
/// continues when the cause is fixed.
#[tokio::test(flavor = "multi_thread")]
async fn halting_errors_stop_writing_and_report_the_reason() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    let postgres = setup.postgres_client().await;
    let consumer = setup.consumer(&[]);
    for (users, fault, repair, said) in [
        (50, "ALTER TABLE likes RENAME TO likers", "ALTER TABLE likers RENAME TO likes", "does not exist"),
        (
            80,
            "ALTER TABLE likes DROP CONSTRAINT likes_pkey",
            "ALTER TABLE likes ADD PRIMARY KEY (post_id, user_id)",
            "has no unique index on (user_id, post_id)",
        ),
    ] {
        postgres.batch_execute(fault).await.unwrap();
        setup.append(&likes(users), 1).await;
        eventually("the reason is reported", async || {
            let (status, checks) = ready(&consumer);
            status == 503
                && checks.contains("[-] writer failed: writes to Postgres are halted: ")
                && checks.contains(said)
        })
        .await;
        assert!(pending(&redis).await > 0);
        postgres.batch_execute(repair).await.unwrap();
        setup.wait_for_rows(usize::try_from(users).unwrap()).await;
        eventually("ready", async || ready(&consumer).0 == 200).await;
    }
    assert!(consumer.log_text().contains("\"level\":\"ERROR\""));
    assert!(dead_letters(&redis).await.is_empty());
}

pub(crate) async fn forbid_post_13(setup: &Setup) -> Client {
    let forbid = "ALTER TABLE likes ADD CONSTRAINT no_13 CHECK (post_id <> 13)";
    setup.postgres_client().await.batch_execute(forbid).await.unwrap();
    setup.redis_client().await
}

#[tokio::test(flavor = "multi_thread")]
async fn only_rejected_rows_become_dead_letters() {
    let setup = Setup::new().await;
    let redis = forbid_post_13(&setup).await;
    let mut all = likes(3_000);
    for user in [1, 500, 501, 2_999] {
        all[user] = like(10_000 + user as u64, 13);
    }
    setup.append(&all, 100).await;
    // A dead letter keeps the original bytes of a like, including fields of a later revision.
    let later = b"\x93\x01\x94\x07\x0d\x05\xa5later\x93\x07\x2b\x05";
    let id = append_raw(&redis, 0, later).await;
    let consumer = setup.consumer(&[("CONSUMER_NAME", "mortician")]);
    setup.wait_for_rows(2_996 + 1).await;
    setup.wait_until_drained().await;

    let letters = dead_letters(&redis).await;
    assert_eq!(letters.len(), 5);
    assert!(letters.iter().all(|letter| letter["reason"] == "rejected"));
    let of_later = letters.iter().find(|letter| letter["origin"] == format!("likes:{{0}}/{id}")).unwrap();
    assert_eq!(of_later["l"], &b"\x92\x01\x94\x07\x0d\x05\xa5later"[..]);
    assert_eq!(of_later["consumer"], "mortician");
    let detail = std::str::from_utf8(&of_later["detail"]).unwrap();
    assert!(detail.starts_with("like 0 of the entry: ") && detail.contains("no_13"), "{detail}");
    let metrics = || consumer.metrics().unwrap();
    eventually("all dead letters are counted", async || {
        metrics().sum_where("likestream_dead_letters_total", "reason=\"rejected\"") >= 5.0
    })
    .await;
    let metrics = metrics();
    assert_eq!(metrics.sum_where("likestream_dead_letters_total", "reason=\"rejected\""), 5.0);
    assert_eq!(metrics.sum("likestream_rows_inserted_total"), 2_997.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_only_rejected_rows_is_settled() {
    let setup = Setup::new().await;
    let redis = forbid_post_13(&setup).await;
    let bad: Vec<_> = (1..=1_500).map(|user| like(user, 13)).collect();
    setup.append(&bad, 1_500).await;
    let _consumer = setup.consumer(&[]);
    setup.append(&likes(10), 1).await;
    setup.wait_for_rows(10).await;
    setup.wait_until_drained().await;
    let letters = dead_letters(&redis).await;
    assert_eq!(letters.len(), 1_001, "1,000 single dead letters, and one with the rest of the entry");
    let dead: usize =
        letters.iter().map(|letter| shared::wire::codec::decode(&letter["l"]).unwrap().likes.len()).sum();
    assert_eq!(dead, 1_500);
}
