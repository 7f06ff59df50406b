//! Migrations, and the schema check at start.

use std::thread;

use crate::harness::{Ended, PARTITIONS, Setup, eventually, likes, run};

fn migrate(url: &str) -> Ended {
    run("likesctl", &["migrate"], &[("DATABASE_URL", url)])
}

fn consumer(setup: &Setup) -> Ended {
    let settings = [
        ("REDIS_URL", setup.redis.url()),
        ("DATABASE_URL", setup.database_url()),
        ("LIKES_PARTITIONS", PARTITIONS.to_string()),
        ("CONSUMER_ADMIN_LISTEN", "127.0.0.1:0".to_owned()),
    ];
    let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
    run("consumer", &[], &settings)
}

fn last_line(ended: &Ended) -> &str {
    ended.stderr.lines().last().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_and_concurrent_migrations_are_safe() {
    let setup = Setup::without_schema(&[]).await;
    let url = setup.database_url();
    let together: Vec<Ended> = thread::scope(|scope| {
        let runs: Vec<_> = (0..4).map(|_| scope.spawn(|| migrate(&url))).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    assert!(
        together.iter().all(|ended| ended.code == Some(0)),
        "{:?}",
        together.iter().map(last_line).collect::<Vec<_>>()
    );
    let applied = together.iter().filter(|ended| ended.stdout.contains("applied V1__likes")).count();
    assert_eq!(applied, 1);
    let again = migrate(&url);
    assert_eq!((again.code, again.stdout.as_str()), (Some(0), "nothing to do: the schema is at version 2\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edited_migration_is_refused() {
    let setup = Setup::new().await;
    let client = setup.postgres_client().await;
    client.batch_execute("UPDATE refinery_schema_history SET checksum = '1'").await.unwrap();
    let ended = migrate(&setup.database_url());
    assert_eq!(ended.code, Some(1));
    assert_eq!(
        ended.stderr,
        "error: cannot apply the migrations: V1__likes was changed after it was applied; use the release that applied it\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_without_privileges_reports_the_cause() {
    let setup = Setup::without_schema(&[]).await;
    setup.postgres_client().await.batch_execute("CREATE ROLE stranger LOGIN").await.unwrap();
    let ended = migrate(&setup.database_url().replace("postgres://postgres@", "postgres://stranger@"));
    assert_eq!(ended.code, Some(1));
    assert_eq!(
        ended.stderr,
        "error: cannot apply the migrations: ERROR: permission denied for schema public\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_refuses_a_schema_that_is_too_new() {
    let setup = Setup::new().await;
    let client = setup.postgres_client().await;
    client.batch_execute("UPDATE likes_schema SET version = 9, oldest_program = 9").await.unwrap();
    let new = consumer(&setup);
    assert_eq!(new.code, Some(2));
    assert!(
        last_line(&new).starts_with("error: the schema is at version 9 and does not support"),
        "{}",
        new.stderr
    );

    // Expanded, but still serving this program.
    client.batch_execute("UPDATE likes_schema SET version = 9, oldest_program = 1").await.unwrap();
    let _consumer = setup.consumer(&[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_primary_key_starts_with_the_post_and_no_column_is_nullable() {
    let setup = Setup::new().await;
    let sql = "SELECT string_agg(a.attname, ',' ORDER BY k.n) FROM pg_index i
               CROSS JOIN unnest(i.indkey) WITH ORDINALITY k(att, n)
               JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.att
               WHERE i.indrelid = 'likes'::regclass AND i.indisprimary";
    let row = setup.postgres_client().await.query_one(sql, &[]).await.unwrap();
    assert_eq!(row.get::<_, String>(0), "post_id,user_id");
    let nullable =
        "SELECT count(*) FROM information_schema.columns WHERE table_name = 'likes' AND is_nullable = 'YES'";
    let row = setup.postgres_client().await.query_one(nullable, &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 0);
}

/// Consumers of any role name go on after an upgrade.
#[tokio::test(flavor = "multi_thread")]
async fn the_owner_of_the_likes_may_use_the_tables_of_a_later_migration() {
    for granted in ["", "GRANT SELECT ON likes TO PUBLIC"] {
        let setup = Setup::with_own_postgres(&[]);
        let client = setup.postgres_client().await;
        let first_version_of_another_owner = format!(
            "DROP TABLE likes_database, likes_watermarks, likes_incidents;
             UPDATE likes_schema SET version = 1;
             DELETE FROM refinery_schema_history WHERE version = 2;
             CREATE ROLE \"The Owner\";
             CREATE ROLE anyone;
             ALTER TABLE likes OWNER TO \"The Owner\";
             {granted}"
        );
        client.batch_execute(&first_version_of_another_owner).await.unwrap();
        let migrated = migrate(&setup.database_url());
        assert_eq!(migrated.code, Some(0), "{}", migrated.stderr);
        let may = async |role: &str, privilege: &str| {
            let sql = "SELECT bool_and(has_table_privilege($1, name, $2))
                       FROM unnest(ARRAY['likes_watermarks', 'likes_incidents']) AS name";
            client.query_one(sql, &[&role, &privilege]).await.unwrap().get::<_, bool>(0)
        };
        for privilege in ["SELECT", "INSERT", "UPDATE"] {
            assert!(may("The Owner", privilege).await, "{privilege}");
        }
        assert_eq!(may("anyone", "SELECT").await, !granted.is_empty());
        assert!(!may("anyone", "INSERT").await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_that_use_the_likes_may_use_the_tables_of_a_later_migration() {
    let setup = Setup::with_own_postgres(&[]);
    let owner = setup.postgres_client().await;
    let back_to_the_first_version = "
        DROP TABLE likes_database, likes_watermarks, likes_incidents;
        UPDATE likes_schema SET version = 1;
        DELETE FROM refinery_schema_history WHERE version = 2;
        CREATE ROLE writer LOGIN;
        CREATE ROLE \"a Reader\" LOGIN;
        GRANT SELECT, INSERT ON likes TO writer;
        GRANT SELECT ON likes TO \"a Reader\";
        GRANT SELECT ON likes_schema TO writer";
    owner.batch_execute(back_to_the_first_version).await.unwrap();
    let migrated = migrate(&setup.database_url());
    assert_eq!(migrated.code, Some(0), "{}", migrated.stderr);
    let url = setup.database_url().replace("postgres@", "writer@");
    let consumer = setup.consumer(&[("DATABASE_URL", &url)]);
    setup.append(&likes(40), 1).await;
    setup.wait_for_rows(40).await;
    let watched = "SELECT FROM likes_watermarks";
    eventually("watermarks", async || !owner.query(watched, &[]).await.unwrap().is_empty()).await;
    assert!(!consumer.log_text().contains("permission denied"), "{}", consumer.log_text());
    let may = "SELECT has_table_privilege('a Reader', 'likes_incidents', 'SELECT'),
                   has_table_privilege('a Reader', 'likes_incidents', 'UPDATE')";
    let row = owner.query_one(may, &[]).await.unwrap();
    assert_eq!((row.get(0), row.get(1)), (true, false));
}
