//! Verification of the table: nothing is written to a table whose columns or key are not as expected, whatever changes while
//! consumers run.

use devstack::program::Program;

use crate::{
    database_failures::ready,
    dead_letters::dead_letters,
    harness::{Setup, eventually, like, likes, pending, run},
};

/// Waits until a consumer is halted and says why.
async fn halted(consumer: &Program, why: &str) {
    eventually(&format!("halted: {why}"), async || {
        let (status, checks) = ready(consumer);
        status == 503 && checks.contains("writes to Postgres are halted: ") && checks.contains(why)
    })
    .await;
}

/// A change of the table, its reversal, and the reason that halts consumers meanwhile.
const FAULTS: [(&str, &str, &str); 8] = [
    (
        "ALTER TABLE likes ALTER created_at TYPE timestamp",
        "ALTER TABLE likes ALTER created_at TYPE timestamptz",
        "column created_at of public.likes has type timestamp without time zone; expected timestamp with time zone",
    ),
    (
        "ALTER TABLE likes ALTER user_id TYPE double precision",
        "ALTER TABLE likes ALTER user_id TYPE bigint",
        "column user_id of public.likes has type double precision; expected bigint",
    ),
    (
        "ALTER TABLE likes RENAME user_id TO liker",
        "ALTER TABLE likes RENAME liker TO user_id",
        "public.likes has no column user_id",
    ),
    (
        "ALTER TABLE likes DROP CONSTRAINT likes_pkey",
        "ALTER TABLE likes ADD PRIMARY KEY (post_id, user_id)",
        "public.likes has no unique index on (user_id, post_id)",
    ),
    (
        "ALTER TABLE likes DROP CONSTRAINT likes_pkey, ADD CONSTRAINT later UNIQUE (user_id, post_id) DEFERRABLE",
        "ALTER TABLE likes DROP CONSTRAINT later, ADD PRIMARY KEY (post_id, user_id)",
        "the unique index later of public.likes is deferrable",
    ),
    (
        "ALTER TABLE likes DROP CONSTRAINT likes_pkey;
         CREATE UNIQUE INDEX part ON likes (user_id, post_id) WHERE post_id <> 13",
        "DROP INDEX part; ALTER TABLE likes ADD PRIMARY KEY (post_id, user_id)",
        "the unique index part of public.likes is partial",
    ),
    (
        "ALTER TABLE likes RENAME TO real; CREATE VIEW likes AS SELECT * FROM real",
        "DROP VIEW likes; ALTER TABLE real RENAME TO likes",
        "public.likes is a view",
    ),
    (
        "ALTER TABLE likes ADD doubled bigint GENERATED ALWAYS AS (user_id * 2) STORED;
         ALTER TABLE likes RENAME post_id TO liked; ALTER TABLE likes RENAME doubled TO post_id",
        "ALTER TABLE likes DROP post_id; ALTER TABLE likes RENAME liked TO post_id",
        "column post_id of public.likes is generated",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_changes_halts_consumers_until_it_is_fixed() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    let postgres = setup.postgres_client().await;
    let consumer = setup.consumer(&[]);
    let mut users = 20;
    setup.append(&likes(users), 1).await;
    setup.wait_for_rows(20).await;
    for (fault, repair, why) in FAULTS {
        postgres.batch_execute(fault).await.unwrap();
        users += 20;
        setup.append(&likes(users), 1).await;
        halted(&consumer, why).await;
        assert!(pending(&redis).await > 0);
        postgres.batch_execute(repair).await.unwrap();
        setup.wait_for_rows(usize::try_from(users).unwrap()).await;
        eventually("ready", async || ready(&consumer).0 == 200).await;
    }
    setup.wait_until_drained().await;
    let distinct: std::collections::HashSet<i64> =
        setup.rows().await.iter().map(|(user, ..)| *user).collect();
    assert_eq!(distinct.len() as u64, users);
    assert!(dead_letters(&redis).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_does_not_start_on_a_table_that_it_must_not_write_to() {
    let setup = Setup::new().await;
    let postgres = setup.postgres_client().await;
    let (redis, url) = (setup.redis.url(), setup.database_url());
    let settings =
        [("REDIS_URL", redis.as_str()), ("DATABASE_URL", &url), ("CONSUMER_ADMIN_LISTEN", "127.0.0.1:0")];
    for (fault, repair, why) in FAULTS {
        postgres.batch_execute(fault).await.unwrap();
        let ended = run("consumer", &[], &settings);
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        let last = ended.stderr.lines().last().unwrap();
        assert!(
            last.starts_with("error: the table must not be written to: ") && last.contains(why),
            "{last}"
        );
        let doctor = run("likesctl", &["doctor"], &settings);
        assert!(doctor.code == Some(1) && doctor.stdout.contains(why), "{}", doctor.stdout);
        postgres.batch_execute(repair).await.unwrap();
    }
}

/// A failed CREATE INDEX CONCURRENTLY leaves an invalid index.
#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_index_is_no_key() {
    let setup = Setup::new().await;
    let postgres = setup.postgres_client().await;
    let consumer = setup.consumer(&[]);
    let twice = "ALTER TABLE likes DROP CONSTRAINT likes_pkey;
                 INSERT INTO likes SELECT 1, 42, 'epoch' FROM generate_series(1, 2)";
    postgres.batch_execute(twice).await.unwrap();
    let built = postgres
        .batch_execute("CREATE UNIQUE INDEX CONCURRENTLY likes_key ON likes (user_id, post_id)")
        .await;
    assert!(built.is_err(), "the table has a duplicate");
    setup.append(&likes(10), 1).await;
    halted(&consumer, "the unique index likes_key of public.likes is invalid").await;
    assert_eq!(setup.count().await, 2);
    postgres.batch_execute("DELETE FROM likes; REINDEX INDEX likes_key").await.unwrap();
    setup.wait_for_rows(10).await;
}

/// A binary COPY of bigint into these columns would store other numbers, or fail.
#[tokio::test(flavor = "multi_thread")]
async fn ids_are_converted_to_other_number_types_without_loss() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    let postgres = setup.postgres_client().await;
    let _consumer = setup.consumer(&[]);
    let mut users = 20;
    setup.append(&likes(users), 1).await;
    setup.wait_for_rows(20).await;
    postgres.batch_execute("CREATE DOMAIN id AS bigint CHECK (VALUE > 0)").await.unwrap();
    for types in ["numeric(20)", "numeric", "integer", "id", "bigint"] {
        let alter = format!("ALTER TABLE likes ALTER user_id TYPE {types}, ALTER post_id TYPE {types}");
        postgres.batch_execute(&alter).await.unwrap();
        users += 20;
        setup.append(&likes(users), 1).await;
        setup.wait_for_rows(usize::try_from(users).unwrap()).await;
        let wrong = "SELECT count(*) FROM likes WHERE user_id < 1 OR post_id <> 42";
        assert_eq!(postgres.query_one(wrong, &[]).await.unwrap().get::<_, i64>(0), 0, "{types}");
    }
    setup.wait_until_drained().await;
    assert!(dead_letters(&redis).await.is_empty());

    // A value that does not fit is a fault of its row.
    postgres.batch_execute("ALTER TABLE likes ALTER user_id TYPE integer").await.unwrap();
    setup.append(&[like(users + 1, 42), like(1 << 40, 42)], 1).await;
    setup.wait_until_drained().await;
    assert_eq!(dead_letters(&redis).await.len(), 1);
    setup.wait_for_rows(usize::try_from(users).unwrap() + 1).await;
}

/// A client that changes the search path, or creates a table in front, does not divert likes from a running consumer.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_table_in_the_search_path_diverts_no_likes() {
    let setup = Setup::new().await;
    let postgres = setup.postgres_client().await;
    let consumer = setup.consumer(&[]);
    setup.append(&likes(20), 1).await;
    setup.wait_for_rows(20).await;
    let shadow = "CREATE SCHEMA postgres; CREATE TABLE postgres.likes (LIKE public.likes INCLUDING ALL)";
    postgres.batch_execute(shadow).await.unwrap();
    setup.append(&likes(60), 1).await;
    setup.wait_until_drained().await;
    let stored = "SELECT (SELECT count(*) FROM public.likes), (SELECT count(*) FROM postgres.likes)";
    let row = postgres.query_one(stored, &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (60, 0));
    assert_eq!(ready(&consumer).0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unlogged_table_is_written_to_with_a_warning() {
    let setup = Setup::new().await;
    let postgres = setup.postgres_client().await;
    let consumer = setup.consumer(&[]);
    postgres.batch_execute("ALTER TABLE likes SET UNLOGGED").await.unwrap();
    setup.append(&likes(20), 1).await;
    setup.wait_for_rows(20).await;
    let warning = "public.likes is UNLOGGED: a crash of Postgres empties it";
    eventually("the warning is reported", async || {
        let (status, checks) = ready(&consumer);
        status == 200 && checks.contains(warning)
    })
    .await;
    assert!(consumer.log_text().contains(warning));
    let (redis, url) = (setup.redis.url(), setup.database_url());
    let doctor = run("likesctl", &["doctor"], &[("REDIS_URL", redis.as_str()), ("DATABASE_URL", &url)]);
    assert!(doctor.stdout.contains(warning), "{}", doctor.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn likes_that_a_trigger_discards_are_counted_and_named() {
    let setup = Setup::new().await;
    let filter = "CREATE FUNCTION discard() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
                  CREATE TRIGGER no_13 BEFORE INSERT ON likes FOR EACH ROW WHEN (NEW.post_id = 13)
                  EXECUTE FUNCTION discard()";
    setup.postgres_client().await.batch_execute(filter).await.unwrap();
    let consumer = setup.consumer(&[]);
    let mut all = likes(100);
    all[7] = like(8, 13);
    all.extend(likes(50).into_iter().filter(|like| like.user_id() != 8));
    setup.append(&all, 10).await;
    setup.wait_until_drained().await;
    assert_eq!(setup.count().await, 99);
    let metrics = consumer.metrics().unwrap();
    assert_eq!(metrics.sum("likestream_rows_inserted_total"), 99.0);
    assert_eq!(metrics.sum("likestream_likes_discarded_total"), 1.0);
    assert_eq!(metrics.sum("likestream_likes_deduplicated_total"), 49.0);
    assert!(ready(&consumer).1.contains("public.likes has triggers that can discard likes: no_13"));
    assert!(consumer.log_text().contains("likes discarded by a trigger of the table"));
}

/// Statements of a consumer must see the table as it is after their lock.
#[tokio::test(flavor = "multi_thread")]
async fn the_default_isolation_level_of_the_server_does_not_matter() {
    let setup = Setup::new().await;
    let postgres = setup.postgres_client().await;
    let database: String = postgres.query_one("SELECT current_database()", &[]).await.unwrap().get(0);
    let serializable = format!("ALTER DATABASE {database} SET default_transaction_isolation = serializable");
    postgres.batch_execute(&serializable).await.unwrap();
    let _consumers = [(); 2].map(|()| setup.consumer(&[]));
    for users in [200, 400] {
        setup.append(&likes(users), 10).await;
        setup.append(&likes(users), 7).await;
        setup.wait_until_drained().await;
        assert_eq!(setup.count().await as u64, users);
    }
}
