//! Rows that Postgres does not take while it takes others: slow, blocked and rejected rows.

use std::time::{Duration, Instant};

use devstack::program::Program;
use fred::{
    prelude::{Client, ClientLike, StreamsInterface},
    types::{ClusterHash, CustomCommand},
};
use shared::wire::codec;

use crate::{
    database_failures::ready,
    dead_letters::dead_letters,
    harness::{GROUP, PARTITIONS, Setup, append_raw, eventually, like, likes, pending, stream},
};

const TRIGGER: &str = "CREATE TRIGGER test BEFORE INSERT ON likes FOR EACH ROW EXECUTE FUNCTION test()";

/// Runs PL/pgSQL before each inserted row.
async fn before_each_row(postgres: &tokio_postgres::Client, body: &str) {
    replace_function(postgres, body).await;
    postgres.batch_execute(TRIGGER).await.unwrap();
}

async fn replace_function(postgres: &tokio_postgres::Client, body: &str) {
    let function = format!(
        "CREATE OR REPLACE FUNCTION test() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN {body} RETURN NEW; END $$"
    );
    postgres.batch_execute(&function).await.unwrap();
}

/// Waits until a trigger sleeps in a transaction of the consumer.
async fn asleep(postgres: &tokio_postgres::Client) {
    let sleeping = "SELECT count(*) FROM pg_stat_activity
                    WHERE datname = current_database() AND wait_event = 'PgSleep'";
    eventually("a trigger sleeps", async || {
        postgres.query_one(sleeping, &[]).await.unwrap().get::<_, i64>(0) > 0
    })
    .await;
}

/// Lets consumers write as a role that is no superuser. Returns the URL.
async fn writer_role(setup: &Setup, grants: &str) -> String {
    let role = "CREATE ROLE writer LOGIN; GRANT SELECT ON likes_schema, likes_database TO writer;
                GRANT SELECT, INSERT ON likes TO writer;";
    setup.postgres_client().await.batch_execute(&format!("{role}{grants}")).await.unwrap();
    setup.database_url().replace("postgres@", "writer@")
}

/// Counts rows with SQL that works while a table is changed.
async fn users(postgres: &tokio_postgres::Client, condition: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM likes WHERE {condition}");
    postgres.query_one(&sql, &[]).await.unwrap().get(0)
}

async fn halted(consumer: &Program, why: &str) {
    eventually("halted", async || {
        let (status, checks) = ready(consumer);
        status == 503 && checks.contains("the table rejects every row") && checks.contains(why)
    })
    .await;
}

/// A full batch would take 15 s, and a transaction may take 2 s.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_table_is_written_to_in_smaller_pieces() {
    let setup = Setup::new().await;
    let postgres = setup.postgres_client().await;
    before_each_row(&postgres, "PERFORM pg_sleep(0.003);").await;
    let consumer = setup.consumer(&[("WRITE_TIMEOUT", "2s")]);
    let started = Instant::now();
    let redis = setup.redis_client().await;
    setup.append(&likes(5_000), 100).await;
    eventually("some entries are acknowledged while the others are written", async || {
        let (acknowledged, pending) = (consumer.metrics().unwrap(), pending(&redis).await);
        acknowledged.sum("likestream_entries_acknowledged_total") >= 5.0 && pending >= 5
    })
    .await;
    setup.wait_for_rows(5_000).await;
    setup.wait_until_drained().await;
    println!("drained in {:?}", started.elapsed());
    assert!(dead_letters(&redis).await.is_empty());

    // Full batches return with the speed of the table.
    postgres.batch_execute("DROP TRIGGER test ON likes").await.unwrap();
    let committed = || consumer.metrics().unwrap().sum("likestream_batches_committed_total");
    setup.append(&likes(15_000), 100).await;
    setup.wait_for_rows(15_000).await;
    let before = committed();
    setup.append(&likes(30_000), 100).await;
    setup.wait_for_rows(30_000).await;
    setup.wait_until_drained().await;
    assert!(committed() - before < 20.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_another_session_blocks_does_not_hold_up_other_rows() {
    let setup = Setup::new().await;
    let blocker = setup.postgres_client().await;
    let postgres = setup.postgres_client().await;
    let redis = setup.redis_client().await;
    let consumer = setup.consumer(&[("WRITE_TIMEOUT", "2s")]);
    blocker
        .batch_execute("BEGIN; INSERT INTO likes VALUES (7, 42, 'epoch'), (150, 42, 'epoch')")
        .await
        .unwrap();
    setup.append(&likes(299), 1).await;
    eventually("all other rows are stored", async || users(&postgres, "true").await == 297).await;
    eventually("only the entries of the blocked rows are pending", async || pending(&redis).await == 2).await;
    assert_eq!(ready(&consumer).0, 200);
    // Later batches do not wait either.
    setup.append(&(300..400).map(|user| like(user, 42)).collect::<Vec<_>>(), 1).await;
    let started = Instant::now();
    eventually("later rows are stored", async || users(&postgres, "true").await == 397).await;
    assert!(started.elapsed() < Duration::from_secs(20));

    blocker.batch_execute("ROLLBACK").await.unwrap();
    setup.wait_for_rows(399).await;
    setup.wait_until_drained().await;
    assert!(dead_letters(&redis).await.is_empty());
}

/// Held entries are idle for longer than `CLAIM_MIN_IDLE`, and the connection to Redis is lost meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn held_entries_stay_with_their_consumer_and_count_one_delivery() {
    let setup = Setup::new().await;
    let blocker = setup.postgres_client().await;
    let redis = setup.redis_client().await;
    let claim_soon = [("WRITE_TIMEOUT", "400ms"), ("CLAIM_MIN_IDLE", "1s")];
    let consumer = setup.consumer(&claim_soon);
    blocker.batch_execute("BEGIN; INSERT INTO likes VALUES (7, 42, 'epoch')").await.unwrap();
    setup.append(&likes(20), 1).await;
    setup.wait_for_rows(19).await;
    eventually("one entry is pending", async || pending(&redis).await == 1).await;
    let before = pending_entry(&redis).await;
    let clients = CustomCommand::new_static("CLIENT", ClusterHash::Random, false);
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        redis.custom::<(), _>(clients.clone(), vec!["KILL", "TYPE", "normal"]).await.unwrap();
    }
    let (owner, idle_ms, deliveries) = pending_entry(&redis).await;
    assert_eq!((owner, deliveries), (before.0, 1));
    assert!(idle_ms < 3_000, "{idle_ms}");
    assert_eq!(ready(&consumer).0, 200);
    blocker.batch_execute("ROLLBACK").await.unwrap();
    setup.wait_until_drained().await;
    assert_eq!(setup.count().await, 20);
}

/// Returns the consumer, the idle time in milliseconds and the number of deliveries of the only pending entry.
async fn pending_entry(redis: &Client) -> (String, u64, u64) {
    for partition in 0..PARTITIONS {
        let rows: Vec<(String, String, u64, u64)> =
            redis.xpending(stream(partition), GROUP, ("-", "+", 10)).await.unwrap();
        if let [(_, consumer, idle_ms, deliveries)] = &rows[..] {
            return (consumer.clone(), *idle_ms, *deliveries);
        }
    }
    panic!("no pending entry");
}

/// Errors that prove nothing about a row: unknown SQLSTATEs, errors of objects that a trigger needs, repeated conflicts, and
/// SQLSTATEs of the server that a trigger raises.
#[tokio::test(flavor = "multi_thread")]
async fn errors_without_a_verdict_hold_up_only_their_rows() {
    let setup = Setup::new().await;
    let postgres = setup.postgres_client().await;
    let redis = setup.redis_client().await;
    let _consumer = setup.consumer(&[]);
    for (round, sqlstate) in (0..).zip(["ABCDE", "XX000", "42P01", "40P01", "57014", "54000", "53100"]) {
        let fail = format!(
            "IF NEW.user_id % 100 = 13 THEN RAISE EXCEPTION 'no' USING ERRCODE = '{sqlstate}'; END IF;"
        );
        before_each_row(&postgres, &fail).await;
        let first = round * 100;
        setup.append(&(first + 1..=first + 100).map(|user| like(user, 42)).collect::<Vec<_>>(), 1).await;
        eventually(sqlstate, async || users(&postgres, "true").await == i64::try_from(first).unwrap() + 99)
            .await;
        eventually("one entry is pending", async || pending(&redis).await == 1).await;
        postgres.batch_execute("DROP TRIGGER test ON likes").await.unwrap();
        setup.wait_for_rows(usize::try_from(first).unwrap() + 100).await;
        setup.wait_until_drained().await;
    }
    assert!(dead_letters(&redis).await.is_empty());
}

/// Postgres ends the session that inserts a certain row.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_ends_its_session_is_kept_and_does_not_hold_up_other_rows() {
    let setup = Setup::new().await;
    let postgres = setup.postgres_client().await;
    let redis = setup.redis_client().await;
    let _consumer = setup.consumer(&[]);
    let kill = "IF NEW.user_id = 13 THEN PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(5); END IF;";
    before_each_row(&postgres, kill).await;
    setup.append(&likes(100), 1).await;
    eventually("all other rows are stored", async || users(&postgres, "true").await == 99).await;
    eventually("one entry is pending", async || pending(&redis).await == 1).await;
    postgres.batch_execute("DROP TRIGGER test ON likes").await.unwrap();
    setup.wait_for_rows(100).await;
    setup.wait_until_drained().await;
    assert!(dead_letters(&redis).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_row_level_security_refuses_become_dead_letters() {
    let setup = Setup::with_own_postgres(&[]);
    let policy = "ALTER TABLE likes ENABLE ROW LEVEL SECURITY;
                  CREATE POLICY reading ON likes FOR SELECT USING (true);
                  CREATE POLICY writing ON likes FOR INSERT WITH CHECK (user_id < 1000)";
    let url = writer_role(&setup, policy).await;
    let consumer = setup.consumer(&[("DATABASE_URL", &url)]);
    setup.append(&(900..1_100).map(|user| like(user, 42)).collect::<Vec<_>>(), 1).await;
    setup.wait_for_rows(100).await;
    setup.wait_until_drained().await;
    let letters = dead_letters(&setup.redis_client().await).await;
    assert_eq!(letters.len(), 100);
    assert!(letters.iter().all(|letter| letter["reason"] == "rejected"));
    assert_eq!(ready(&consumer).0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_a_trigger_refuses_for_lack_of_privilege_becomes_a_dead_letter() {
    let setup = Setup::new().await;
    let refuse = "IF NEW.user_id = 13 THEN RAISE insufficient_privilege; END IF;";
    before_each_row(&setup.postgres_client().await, refuse).await;
    let consumer = setup.consumer(&[]);
    setup.append(&likes(100), 1).await;
    setup.wait_for_rows(99).await;
    setup.wait_until_drained().await;
    let letters = dead_letters(&setup.redis_client().await).await;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0]["reason"], "rejected");
    assert_eq!(ready(&consumer).0, 200);
}

/// Changes of the table that make it reject every row, and their reversals.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_rejects_every_row_halts_consumers_without_dead_letters() {
    let setup = Setup::new().await;
    let postgres = setup.postgres_client().await;
    let redis = setup.redis_client().await;
    let consumer = setup.consumer(&[]);
    setup.append(&likes(1_000), 10).await;
    setup.wait_for_rows(1_000).await;
    let mut next = 1_001;
    for (fault, repair, why) in [
        (
            "ALTER TABLE likes ADD country text; ALTER TABLE likes ADD CHECK (country IS NOT NULL) NOT VALID",
            "ALTER TABLE likes DROP country",
            "violates check constraint",
        ),
        (
            "CREATE TABLE posts (id bigint PRIMARY KEY);
          ALTER TABLE likes ADD CONSTRAINT known FOREIGN KEY (post_id) REFERENCES posts NOT VALID",
            "ALTER TABLE likes DROP CONSTRAINT known",
            "violates foreign key constraint",
        ),
        (
            "CREATE FUNCTION test() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'closed'; END $$;
          CREATE TRIGGER test BEFORE INSERT ON likes FOR EACH STATEMENT EXECUTE FUNCTION test()",
            "DROP TRIGGER test ON likes",
            "closed",
        ),
        (
            "DELETE FROM likes; ALTER TABLE likes ADD region text NOT NULL",
            "ALTER TABLE likes DROP region",
            "violates not-null constraint",
        ),
    ] {
        postgres.batch_execute(fault).await.unwrap();
        let before = users(&postgres, "true").await;
        let some: Vec<_> = (next..next + 3_000).map(|user| like(user, 42)).collect();
        next += 3_000;
        setup.append(&some, 100).await;
        halted(&consumer, why).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(dead_letters(&redis).await.len(), 0, "{fault}");
        postgres.batch_execute(repair).await.unwrap();
        setup.wait_for_rows(usize::try_from(before).unwrap() + 3_000).await;
        setup.wait_until_drained().await;
        eventually("ready", async || ready(&consumer).0 == 200).await;
    }
    assert!(dead_letters(&redis).await.is_empty());
}

/// One caller's bad likes do not stop the pipeline: other likes show that the table takes rows.
#[tokio::test(flavor = "multi_thread")]
async fn rejected_rows_wait_until_the_table_takes_another_row() {
    let setup = Setup::new().await;
    let redis = crate::database_failures::forbid_post_13(&setup).await;
    let consumer = setup.consumer(&[]);
    setup.append(&(1..=500).map(|user| like(user, 13)).collect::<Vec<_>>(), 10).await;
    halted(&consumer, "no_13").await;
    assert_eq!((dead_letters(&redis).await.len(), pending(&redis).await), (0, 50));
    setup.append(&likes(1), 1).await;
    setup.wait_until_drained().await;
    assert_eq!(dead_letters(&redis).await.len(), 500);
    eventually("ready", async || ready(&consumer).0 == 200).await;
}

/// A function that a trigger calls is replaced while a transaction inserts and rejects rows. The rows that the replacement
/// rejects are fine.
#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_that_is_replaced_during_a_transaction_causes_no_dead_letters() {
    let setup = Setup::new().await;
    let postgres = setup.postgres_client().await;
    let redis = setup.redis_client().await;
    let rejects = "IF NEW.user_id IN (13, 99) THEN RAISE EXCEPTION 'bad row'; END IF;";
    let sleeps = "IF NEW.user_id = 60 THEN PERFORM pg_sleep(1); END IF;";
    before_each_row(&postgres, &format!("{rejects}{sleeps}")).await;
    let consumer = setup.consumer(&[]);
    setup.append(&likes(100), 100).await;
    asleep(&postgres).await;
    replace_function(&postgres, "RAISE EXCEPTION 'broken';").await;
    eventually("rows are held", async || consumer.metrics().unwrap().sum("likestream_rows_held") > 40.0)
        .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((dead_letters(&redis).await.len(), pending(&redis).await), (0, 1));
    replace_function(&postgres, rejects).await;
    setup.wait_for_rows(98).await;
    setup.wait_until_drained().await;
    assert_eq!(dead_letters(&redis).await.len(), 2);
}

/// The table is verified, some rows are inserted, and then a privilege is revoked that the others need: a trigger reads another
/// table. The rejected row makes a transaction of several statements.
#[tokio::test(flavor = "multi_thread")]
async fn a_privilege_that_is_revoked_during_a_transaction_halts_consumers_without_dead_letters() {
    let setup = Setup::with_own_postgres(&[]);
    let postgres = setup.postgres_client().await;
    let redis = setup.redis_client().await;
    let reads = "PERFORM FROM closed WHERE post_id = NEW.post_id;";
    let rejects = "IF NEW.user_id = 1001 THEN RAISE EXCEPTION 'bad row'; END IF;";
    let sleeps = "IF NEW.user_id = 1040 THEN PERFORM pg_sleep(1); END IF;";
    postgres.batch_execute("CREATE TABLE closed (post_id bigint)").await.unwrap();
    before_each_row(&postgres, &format!("{rejects}{sleeps}{reads}")).await;
    let url = writer_role(&setup, "GRANT SELECT ON closed TO writer").await;
    let consumer = setup.consumer(&[("DATABASE_URL", &url)]);
    setup.append(&likes(1_000), 100).await;
    setup.wait_for_rows(1_000).await;
    setup.append(&(1_001..=1_100).map(|user| like(user, 42)).collect::<Vec<_>>(), 100).await;
    asleep(&postgres).await;
    postgres.batch_execute("REVOKE SELECT ON closed FROM writer").await.unwrap();
    eventually("halted", async || {
        let (status, checks) = ready(&consumer);
        status == 503 && checks.contains("permission denied for table closed")
    })
    .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!((dead_letters(&redis).await.len(), pending(&redis).await), (0, 1));
    postgres.batch_execute("GRANT SELECT ON closed TO writer").await.unwrap();
    setup.wait_for_rows(1_099).await;
    setup.wait_until_drained().await;
    assert_eq!(dead_letters(&redis).await.len(), 1);
}

/// A row ends its session, twice. Then Postgres admits no session: nothing shows that it takes other rows.
#[tokio::test(flavor = "multi_thread")]
async fn reading_stays_paused_until_a_transaction_is_committed() {
    let setup = Setup::with_own_postgres(&[]);
    let postgres = setup.postgres_client().await;
    let redis = setup.redis_client().await;
    let url = writer_role(&setup, "CREATE SEQUENCE tries; GRANT USAGE ON tries TO writer").await;
    let kill =
        "PERFORM nextval('tries'); PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(5);";
    before_each_row(&postgres, kill).await;
    let _consumer = setup.consumer(&[("DATABASE_URL", &url)]);
    setup.append(&likes(1), 1).await;
    while postgres.query_one("SELECT last_value FROM tries", &[]).await.unwrap().get::<_, i64>(0) < 2 {}
    let refuse = "ALTER ROLE writer NOLOGIN;
                  SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'writer'";
    postgres.batch_execute(refuse).await.unwrap();
    for user in 2..=20 {
        append_raw(&redis, 0, &codec::encode(&[like(user, 42)])).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(pending(&redis).await, 1, "nothing else was read");
    postgres.batch_execute("ALTER ROLE writer LOGIN; DROP TRIGGER test ON likes").await.unwrap();
    setup.wait_for_rows(20).await;
    setup.wait_until_drained().await;
    assert!(dead_letters(&redis).await.is_empty());
}
