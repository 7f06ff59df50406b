//! Consumers behind a real PgBouncer with transaction pooling and few sessions.

use devstack::{
    pgbouncer_server::{PgbouncerOptions, PgbouncerServer, PoolMode},
    program::Program,
};

use crate::{
    database_failures::forbid_post_13,
    dead_letters::dead_letters,
    harness::{Ended, PARTITIONS, SOON, Setup, eventually, like, likes, pending, postgres_client, run},
};

/// PgBouncer in front of the database of a test.
struct Pooler {
    server: PgbouncerServer,
    options: PgbouncerOptions,
    url: String,
}

impl Pooler {
    fn start(setup: &Setup, pool_mode: PoolMode, server_connections: usize) -> Self {
        let direct = setup.database_url();
        let (server, database) = direct.rsplit_once('/').unwrap();
        let postgres_port = server.rsplit_once(':').unwrap().1.parse().unwrap();
        let options = PgbouncerOptions { postgres_port, pool_mode, server_connections };
        let server = PgbouncerServer::start(options).unwrap();
        let url = server.url(database);
        Self { server, options, url }
    }

    fn consumer(&self, setup: &Setup, pooling: &str) -> Program {
        let settings =
            [("DATABASE_URL", self.url.as_str()), ("POSTGRES_POOLING", pooling), ("BATCH_ROWS", "100")];
        setup.consumer(&settings)
    }
}

fn failed(consumer: &Program) -> f64 {
    consumer.metrics().unwrap().sum("likestream_batches_failed_total")
}

/// Waits until a statement of a consumer waits for a lock of the table. `pg_stat_activity` cannot be used: this client
/// holds the lock in a transaction, in which the view is a snapshot.
async fn caught_in_a_transaction(postgres: &tokio_postgres::Client) {
    let waiting = "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database
                   WHERE datname = current_database() AND relation = 'likes'::regclass AND NOT granted";
    eventually("a transaction waits for the table", async || {
        postgres.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) > 0
    })
    .await;
}

/// Checks both sessions of a PgBouncer with two sessions: each of two open transactions has one of them.
async fn nothing_is_left_in_two_sessions(pooler: &Pooler) {
    let (one, other) = (postgres_client(&pooler.url).await, postgres_client(&pooler.url).await);
    for client in [&one, &other] {
        client.batch_execute("BEGIN").await.unwrap();
    }
    let mut sessions = Vec::new();
    for client in [&one, &other] {
        let left = "SELECT pg_backend_pid(),
                    (SELECT count(*) FROM pg_prepared_statements),
                    (SELECT count(*) FROM pg_class WHERE relname = 'likes_batch'),
                    current_setting('statement_timeout')";
        let row = client.query_typed_one(left, &[]).await.unwrap();
        assert_eq!((row.get::<_, i64>(1), row.get::<_, i64>(2), row.get::<_, &str>(3)), (0, 0, "0"));
        sessions.push(row.get::<_, i32>(0));
    }
    assert_ne!(sessions[0], sessions[1]);
}

/// Writers and probes of three consumers share two sessions, and their prepared statements have the same names.
#[tokio::test(flavor = "multi_thread")]
async fn consumers_share_sessions_and_leave_no_state_in_them() {
    let setup = Setup::new().await;
    let pooler = Pooler::start(&setup, PoolMode::Transaction, 2);
    let consumers = [(); 3].map(|()| pooler.consumer(&setup, "transaction"));
    let mut twice = likes(10_000);
    twice.extend(likes(10_000));
    setup.append(&twice, 10).await;
    setup.wait_until_drained().await;
    assert_eq!(setup.count().await, 10_000);
    for consumer in &consumers {
        assert!(failed(consumer).abs() < 1.0, "{}", consumer.log_text());
    }
    drop(consumers);

    nothing_is_left_in_two_sessions(&pooler).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_rejected_rows_become_dead_letters_behind_a_pooler() {
    let setup = Setup::new().await;
    let redis = forbid_post_13(&setup).await;
    let pooler = Pooler::start(&setup, PoolMode::Transaction, 2);
    let mut all = likes(3_000);
    for user in [1, 500, 501, 2_999] {
        all[user] = like(10_000 + user as u64, 13);
    }
    setup.append(&all, 20).await;
    let consumers = [(); 3].map(|()| pooler.consumer(&setup, "transaction"));
    setup.wait_for_rows(2_996).await;
    setup.wait_until_drained().await;
    let letters = dead_letters(&redis).await;
    assert_eq!(letters.len(), 4);
    assert!(letters.iter().all(|letter| letter["reason"] == "rejected"));
    drop(consumers);
    nothing_is_left_in_two_sessions(&pooler).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_crash_during_a_transaction_is_retried() {
    let setup = Setup::new().await;
    let postgres = setup.postgres_client().await;
    let mut pooler = Pooler::start(&setup, PoolMode::Transaction, 2);
    let consumers = [(); 3].map(|()| pooler.consumer(&setup, "transaction"));
    postgres.batch_execute("BEGIN; LOCK TABLE likes IN SHARE MODE").await.unwrap();
    setup.append(&likes(1_000), 1).await;
    caught_in_a_transaction(&postgres).await;
    pooler.server.kill();
    postgres.batch_execute("COMMIT").await.unwrap();
    eventually("attempts fail", async || consumers.iter().any(|consumer| failed(consumer) > 0.0)).await;
    pooler.server.start_again(pooler.options).unwrap();
    setup.wait_for_rows(1_000).await;
    setup.wait_until_drained().await;
    assert!(dead_letters(&setup.redis_client().await).await.is_empty());
}

/// With transaction pooling, the staging table is created in the transaction that writes: its failure is no fault of rows.
#[tokio::test(flavor = "multi_thread")]
async fn an_error_before_rows_are_sent_halts_without_dead_letters() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    let postgres = setup.postgres_client().await;
    let pooler = Pooler::start(&setup, PoolMode::Transaction, 2);
    let consumer = pooler.consumer(&setup, "transaction");
    setup.append(&likes(20), 1).await;
    setup.wait_for_rows(20).await;
    setup.wait_until_drained().await;
    let refuse = "CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS
                  $$ BEGIN RAISE 'no changes today'; END $$;
                  CREATE EVENT TRIGGER refuse ON ddl_command_start EXECUTE FUNCTION refuse()";
    postgres.batch_execute(refuse).await.unwrap();
    setup.append(&likes(20), 1).await;
    eventually("halted", async || {
        let (status, checks) = devstack::admin::get(consumer.admin(), "/readyz?verbose").unwrap();
        status == 503
            && checks.contains("writes to Postgres are halted: ")
            && checks.contains("no changes today")
    })
    .await;
    assert!(dead_letters(&redis).await.is_empty() && pending(&redis).await > 0);
    postgres.batch_execute("ALTER EVENT TRIGGER refuse DISABLE").await.unwrap();
    setup.wait_until_drained().await;
    assert!(dead_letters(&redis).await.is_empty());
    assert_eq!(setup.count().await, 20);
}

/// Each process numbers its prepared statements from 0, in sessions that other processes have used.
#[tokio::test(flavor = "multi_thread")]
async fn ended_and_killed_consumers_leave_no_prepared_statements() {
    let setup = Setup::new().await;
    let postgres = setup.postgres_client().await;
    let pooler = Pooler::start(&setup, PoolMode::Transaction, 1);
    let mut stored = 0;
    for dies in [false, true, false] {
        let settings = [
            ("DATABASE_URL", pooler.url.as_str()),
            ("POSTGRES_POOLING", "transaction"),
            ("CONSUMER_NAME", "phoenix"),
        ];
        let mut consumer = setup.consumer(&settings);
        setup.append(&likes(stored + 50), 1).await;
        stored += 50;
        setup.wait_for_rows(usize::try_from(stored).unwrap()).await;
        setup.wait_until_drained().await;
        assert!(failed(&consumer).abs() < 1.0, "{}", consumer.log_text());
        if dies {
            postgres.batch_execute("BEGIN; LOCK TABLE likes IN SHARE MODE").await.unwrap();
            setup.append(&likes(stored + 1), 100).await;
            caught_in_a_transaction(&postgres).await;
            consumer.kill();
            postgres.batch_execute("COMMIT").await.unwrap();
        } else {
            consumer.terminate(SOON).unwrap();
        }
    }
}

/// A pooler accepts every connection, and lets it wait if no session is free. That wait must have a time limit.
#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_without_a_free_session_is_retried_with_a_timeout() {
    let setup = Setup::new().await;
    let pooler = Pooler::start(&setup, PoolMode::Transaction, 1);
    let pooling = [("DATABASE_URL", pooler.url.as_str()), ("POSTGRES_POOLING", "transaction")];
    let consumer = setup.consumer(&[&pooling[..], &[("WRITE_TIMEOUT", "1s")]].concat());
    let hog = postgres_client(&pooler.url).await;
    hog.batch_execute("BEGIN").await.unwrap();
    setup.append(&likes(50), 1).await;
    eventually("attempts fail, new connections too", async || failed(&consumer) >= 3.0).await;
    assert!(consumer.log_text().contains("no reply within 5s"), "{}", consumer.log_text());

    let late = setup.start("consumer", &pooling);
    eventually("a consumer that starts reports it", async || {
        let (_, checks) = devstack::admin::get(late.admin(), "/readyz?verbose").unwrap();
        checks.contains("[-] postgres failed: no reply within 5s")
    })
    .await;

    hog.batch_execute("COMMIT").await.unwrap();
    setup.wait_for_rows(50).await;
    setup.wait_until_drained().await;
    late.wait_ready(SOON).unwrap();
}

fn through(pooler: &Pooler, setup: &Setup, program: &str, arguments: &[&str]) -> Ended {
    let redis = setup.redis.url();
    let settings = [
        ("REDIS_URL", redis.as_str()),
        ("DATABASE_URL", &pooler.url),
        ("LIKES_PARTITIONS", "4"),
        ("CONSUMER_ADMIN_LISTEN", "127.0.0.1:0"),
    ];
    run(program, arguments, &settings)
}

#[tokio::test(flavor = "multi_thread")]
async fn session_pooling_behind_a_transaction_pooler_is_refused_at_start() {
    let setup = Setup::new().await;
    let pooler = Pooler::start(&setup, PoolMode::Transaction, 2);
    let consumer = through(&pooler, &setup, "consumer", &[]);
    assert_eq!(consumer.code, Some(2), "{}", consumer.stderr);
    assert_eq!(
        consumer.stderr.lines().last().unwrap(),
        "error: POSTGRES_POOLING: 'session' does not work behind a connection pooler that shares sessions \
         (DATABASE_URL); expected transaction"
    );
    let migration = through(&pooler, &setup, "likesctl", &["migrate"]);
    assert_eq!(migration.code, Some(2), "{}", migration.stderr);
    assert_eq!(migration.stderr.lines().count(), 1, "{}", migration.stderr);
    assert!(migration.stderr.starts_with("error: DATABASE_URL: points to a pooler"), "{}", migration.stderr);
}

/// With session pooling, PgBouncer behaves like Postgres. When its mode changes to transaction pooling while consumers run,
/// they halt and report the fix, and no like is acknowledged without being stored.
#[tokio::test(flavor = "multi_thread")]
async fn a_switch_to_transaction_pooling_halts_consumers_without_loss() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    let mut pooler = Pooler::start(&setup, PoolMode::Session, 10);
    let consumers = [(); 2].map(|()| pooler.consumer(&setup, "session"));
    setup.append(&likes(50), 1).await;
    setup.wait_for_rows(50).await;
    setup.wait_until_drained().await;

    pooler.server.kill();
    // Of the four connections of the consumers, only one can create its staging table now.
    let options =
        PgbouncerOptions { pool_mode: PoolMode::Transaction, server_connections: 1, ..pooler.options };
    pooler.server.start_again(options).unwrap();
    let mut users = 50;
    eventually("a consumer reports the fix", async || {
        // Both consumers must stage so that they conflict: a like per partition, half of them stored before.
        let next = users + u64::from(PARTITIONS);
        let repeated = users - u64::from(PARTITIONS) + 1;
        setup.append(&(repeated..=next).map(|user| like(user, 42)).collect::<Vec<_>>(), 1).await;
        users = next;
        consumers.iter().any(|consumer| {
            let (_, checks) = devstack::admin::get(consumer.admin(), "/readyz?verbose").unwrap();
            let halted = "writes to Postgres are halted: a connection pooler shares the sessions of Postgres";
            checks
                .split_once(halted)
                .is_some_and(|(_, cause)| cause.contains("; set POSTGRES_POOLING=transaction"))
        })
    })
    .await;
    assert!(pending(&redis).await > 0);

    drop(consumers);
    // A restart discards the sessions, which still have the state of the consumers.
    pooler.server.kill();
    pooler.server.start_again(options).unwrap();
    let settings = [
        ("DATABASE_URL", pooler.url.as_str()),
        ("POSTGRES_POOLING", "transaction"),
        ("WRITE_TIMEOUT", "400ms"),
        ("CLAIM_MIN_IDLE", "1s"),
    ];
    let _consumer = setup.consumer(&settings);
    setup.wait_for_rows(usize::try_from(users).unwrap()).await;
    setup.wait_until_drained().await;
    assert!(dead_letters(&redis).await.is_empty());
}
