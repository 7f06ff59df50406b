//! Direct copy of rows that are predicted to be new. A wrong prediction costs only a second attempt.

use devstack::program::Program;

use crate::{
    dead_letters::dead_letters,
    harness::{Setup, like, likes},
};

/// Settings with which all available entries are in one batch.
const ONE_BATCH: [(&str, &str); 2] = [("BATCH_ROWS", "10000"), ("BATCH_LINGER", "2s")];

fn total(consumer: &Program, metric: &str) -> u64 {
    let sum = consumer.metrics().unwrap().sum(metric);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
    return sum as u64;
}

/// Asserts that no batch has failed and no dead letter exists.
async fn all_is_well(setup: &Setup, consumer: &Program) {
    assert_eq!(total(consumer, "likestream_batches_failed_total"), 0, "{}", consumer.log_text());
    assert!(dead_letters(&setup.redis_client().await).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn existing_likes_are_stored_once_and_keep_their_timestamp() {
    let setup = Setup::new().await;
    let postgres = setup.postgres_client().await;
    let others = "INSERT INTO likes SELECT user_id, 42, 'epoch' FROM generate_series(1, 1000, 2) AS user_id";
    postgres.batch_execute(others).await.unwrap();
    setup.append(&likes(1_000), 10).await;
    let consumer = setup.consumer(&ONE_BATCH);
    setup.wait_until_drained().await;
    assert_eq!(setup.count().await, 1_000);
    assert_eq!(setup.rows().await.iter().filter(|(_, _, at)| *at == 0).count(), 500);
    assert_eq!(total(&consumer, "likestream_direct_copy_fallbacks_total"), 1);
    assert_eq!(total(&consumer, "likestream_rows_inserted_total"), 500);
    all_is_well(&setup, &consumer).await;
}

/// Batches overlap: half of the second batch and all of the third one are known rows.
#[tokio::test(flavor = "multi_thread")]
async fn known_and_new_likes_share_a_transaction() {
    let setup = Setup::new().await;
    let postgres = setup.postgres_client().await;
    let record = "CREATE TABLE statements (query text);
                  CREATE FUNCTION record() RETURNS trigger LANGUAGE plpgsql AS
                  'BEGIN INSERT INTO statements VALUES (current_query()); RETURN NULL; END';
                  CREATE TRIGGER record BEFORE INSERT ON likes FOR EACH STATEMENT EXECUTE FUNCTION record()";
    postgres.batch_execute(record).await.unwrap();
    let consumer = setup.consumer(&ONE_BATCH);
    for (users, transactions) in [(1_000, 1), (2_000, 2), (2_000, 3)] {
        setup.append(&likes(users), 250).await;
        setup.wait_until_drained().await;
        assert_eq!(setup.count().await as u64, users);
        assert_eq!(total(&consumer, "likestream_batches_committed_total"), transactions);
    }
    assert_eq!(total(&consumer, "likestream_direct_copy_fallbacks_total"), 0);
    let direct = "SELECT count(*) FROM statements WHERE query LIKE 'COPY %'";
    assert_eq!(postgres.query_one(direct, &[]).await.unwrap().get::<_, i64>(0), 2);
    assert_eq!(total(&consumer, "likestream_rows_inserted_total"), 2_000);
    assert_eq!(total(&consumer, "likestream_likes_deduplicated_total"), 3_000);
    all_is_well(&setup, &consumer).await;
}

/// Another application has deleted a like. It can be stored again, because the memory of the insert predictor is only a
/// guess.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_like_can_be_stored_again() {
    let setup = Setup::new().await;
    let postgres = setup.postgres_client().await;
    let consumer = setup.consumer(&ONE_BATCH);
    setup.append(&likes(100), 10).await;
    setup.wait_for_rows(100).await;
    // Once together with new likes, and once without.
    for users in [200, 200] {
        postgres.batch_execute("DELETE FROM likes WHERE user_id <= 50").await.unwrap();
        setup.append(&likes(users), 10).await;
        setup.wait_for_rows(200).await;
        setup.wait_until_drained().await;
    }
    all_is_well(&setup, &consumer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_skipped_by_a_trigger_are_not_counted() {
    let setup = Setup::new().await;
    let leave_out =
        "CREATE FUNCTION leave_out() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
                     CREATE TRIGGER leave_out BEFORE INSERT ON likes FOR EACH ROW WHEN (NEW.post_id = 13)
                     EXECUTE FUNCTION leave_out()";
    setup.postgres_client().await.batch_execute(leave_out).await.unwrap();
    let consumer = setup.consumer(&[]);
    let mut all = likes(100);
    all[7] = like(8, 13);
    setup.append(&all, 10).await;
    setup.wait_until_drained().await;
    assert_eq!(setup.count().await, 99);
    assert_eq!(total(&consumer, "likestream_rows_inserted_total"), 99);
    all_is_well(&setup, &consumer).await;
}

/// Postgres refuses COPY into a table with row-level security, but allows INSERT.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_refuses_direct_copy_is_written_by_staged_copy() {
    let setup = Setup::with_own_postgres(&[]);
    let rights = "CREATE ROLE writer LOGIN; GRANT SELECT ON likes_schema, likes_database TO writer;
                  GRANT SELECT, INSERT ON likes TO writer; ALTER TABLE likes ENABLE ROW LEVEL SECURITY;
                  CREATE POLICY all_rows ON likes USING (true) WITH CHECK (true)";
    setup.postgres_client().await.batch_execute(rights).await.unwrap();
    let url = setup.database_url().replace("postgres@", "writer@");
    let consumer = setup.consumer(&[("DATABASE_URL", &url)]);
    for users in [100, 200, 300] {
        setup.append(&likes(users), 10).await;
        setup.wait_for_rows(usize::try_from(users).unwrap()).await;
    }
    assert!(total(&consumer, "likestream_direct_copy_fallbacks_total") > 0);
    all_is_well(&setup, &consumer).await;
}
