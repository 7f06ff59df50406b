//! Migration of `likes` to the optional layout with hash partitions, under load.

use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future;
use tokio_postgres::Client;

use crate::{
    database_failures::forbid_post_13,
    dead_letters::dead_letters,
    harness::{Setup, eventually, like, likes, run},
};

const STEPS: &str = include_str!("../../sql/optional/hash_partitions.sql");

/// Creates a role with the minimum privileges of a consumer, as listed in the README, and returns its URL.
async fn writer(setup: &Setup, postgres: &Client) -> String {
    let (server, database) =
        setup.database_url().rsplit_once('/').map(|(s, d)| (s.to_owned(), d.to_owned())).unwrap();
    let role = format!("writer_of_{database}");
    let rights = format!(
        "CREATE ROLE {role} LOGIN; GRANT SELECT ON likes_schema, likes_database TO {role}; GRANT SELECT, INSERT ON likes TO {role};
         GRANT TEMPORARY ON DATABASE {database} TO {role}"
    );
    postgres.batch_execute(&rights).await.unwrap();
    format!("{}/{database}", server.replace("postgres@", &format!("{role}@")))
}

async fn number(postgres: &Client, sql: &str) -> u64 {
    postgres.query_one(sql, &[]).await.unwrap().get::<_, i64>(0).unsigned_abs()
}

/// Sends each like of further users twice, and some old likes again, until `stop` is set. Returns the number of users.
async fn send_likes(setup: &Setup, postgres: &Client, stop: &AtomicBool) -> u64 {
    let mut users = 0;
    while !stop.load(Ordering::Relaxed) {
        let mut some: Vec<_> = (users + 1..=users + 500).map(|user| like(user, 100 + user % 50)).collect();
        users += 500;
        some.extend(some.clone());
        some.extend((1..=50).map(|user| like(user, 100 + user % 50)));
        setup.append(&some, 20).await;
        eventually("the likes are stored", async || {
            number(postgres, "SELECT count(*) FROM likes").await >= users
        })
        .await;
    }
    users
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table_is_partitioned_under_load_without_loss_or_duplicates() {
    let setup = Setup::new().await;
    let postgres = setup.postgres_client().await;
    let redis = forbid_post_13(&setup).await;
    let url = writer(&setup, &postgres).await;
    let settings = [("DATABASE_URL", url.as_str()), ("BATCH_ROWS", "200")];
    let _consumers = [(); 2].map(|()| setup.consumer(&settings));
    setup.append(&[like(1_000_001, 13), like(1_000_001, 14)], 2).await;
    setup.wait_for_rows(1).await;

    let stop = AtomicBool::new(false);
    let partitioning = async {
        let postgres = setup.postgres_client().await;
        let mut steps = 0;
        for step in STEPS.split("\n-- Step ").skip(1) {
            postgres.batch_execute(&format!("-- {step}")).await.unwrap();
            steps += 1;
            let before = number(&postgres, "SELECT count(*) FROM likes").await;
            eventually("further likes are stored", async || {
                number(&postgres, "SELECT count(*) FROM likes").await > before
            })
            .await;
        }
        assert_eq!(steps, 4);
        stop.store(true, Ordering::Relaxed);
    };
    let (users, ()) = future::join(send_likes(&setup, &postgres, &stop), partitioning).await;
    // A like that the table rejects, a new like, and a like that was stored before the migration.
    setup.append(&[like(1_000_002, 13), like(1_000_002, 14), like(1_000_001, 14)], 3).await;
    setup.wait_until_drained().await;

    let expected = usize::try_from(users).unwrap() + 2;
    assert_eq!(setup.count().await, expected);
    assert_eq!(dead_letters(&redis).await.len(), 2);
    let filled = "SELECT count(DISTINCT tableoid) FROM likes";
    assert_eq!(number(&postgres, filled).await, 8);

    let url = setup.database_url();
    let migrated = run("likesctl", &["migrate"], &[("DATABASE_URL", &url)]);
    assert_eq!(migrated.stdout, "nothing to do: the schema is at version 2\n", "{}", migrated.stderr);
    let _later = setup.consumer(&settings);
    setup.append(&likes(10), 1).await;
    setup.wait_for_rows(expected + 10).await;
}
