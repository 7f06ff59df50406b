//! Services that start before their servers, or before an operator has prepared them.

use std::time::Duration;

use devstack::program::Program;
use fred::prelude::Value;
use nix::sys::signal::Signal;
use shared::redis::Retry;

use crate::harness::{SOON, Setup, connections, eventually, post, problem};

/// Status of `/readyz`, and its checks.
fn ready(program: &Program) -> (u16, String) {
    devstack::admin::get(program.admin(), "/readyz?verbose").unwrap()
}

async fn reports(program: &Program, check: &str) {
    eventually(check, async || ready(program).1.contains(check)).await;
    assert_eq!(ready(program).0, 503);
    assert_eq!(devstack::admin::get(program.admin(), "/livez").unwrap().0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn services_start_without_their_servers_and_connect_when_they_appear() {
    let mut setup = Setup::with_own_postgres(&[]);
    setup.postgres().stop();
    setup.redis.stop();
    let (ingest, consumer) = (setup.start("ingest", &[]), setup.start("consumer", &[]));
    for program in [&ingest, &consumer] {
        reports(program, "[-] redis failed: Connection refused").await;
    }
    let refused = post(&ingest, r#"{"user_id": 1, "post_id": 42}"#).await;
    assert_eq!((refused.status.as_u16(), problem(&refused).as_str()), (503, "redis-unavailable"));
    assert!(refused.headers.contains_key("retry-after"));
    // Longer than any time limit of a connection.
    tokio::time::sleep(Duration::from_secs(12)).await;

    setup.redis.start_again().unwrap();
    ingest.wait_ready(SOON).unwrap();
    assert_eq!(post(&ingest, r#"{"user_id": 1, "post_id": 42}"#).await.status, 202);
    reports(&consumer, "[-] postgres failed: Connection refused").await;
    setup.postgres().start_again().unwrap();
    setup.wait_for_rows(1).await;
    consumer.wait_ready(SOON).unwrap();
}

/// The role, the database, its schema and the privileges may appear in any order.
#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_waits_for_its_role_schema_and_privileges() {
    let setup = Setup::without_schema(&[]).await;
    let url = setup.database_url().replace("postgres://postgres@", "postgres://late@");
    let consumer = setup.start("consumer", &[("DATABASE_URL", &url)]);
    reports(&consumer, "role \"late\" does not exist").await;
    let client = setup.postgres_client().await;
    client.batch_execute("CREATE ROLE late LOGIN").await.unwrap();
    reports(&consumer, "the database has no likestream schema; run likesctl migrate").await;
    setup.migrate();
    reports(&consumer, "permission denied for table likes_schema").await;
    client.batch_execute("GRANT SELECT ON likes_schema TO late").await.unwrap();
    reports(&consumer, "permission denied for table likes_database").await;
    let grants = "GRANT SELECT ON likes_database TO late;
                  GRANT SELECT, INSERT ON likes TO late;
                  GRANT SELECT, INSERT, UPDATE ON likes_watermarks, likes_incidents TO late";
    client.batch_execute(grants).await.unwrap();
    consumer.wait_ready(SOON).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_waits_for_a_migration() {
    let setup = Setup::new().await;
    let client = setup.postgres_client().await;
    client.batch_execute("UPDATE likes_schema SET version = 0").await.unwrap();
    let consumer = setup.start("consumer", &[]);
    reports(&consumer, "the schema is at version 0, but this program requires version 2").await;
    client.batch_execute("UPDATE likes_schema SET version = 2").await.unwrap();
    consumer.wait_ready(SOON).unwrap();
}

/// Passwords are rotated on the server, too.
#[tokio::test(flavor = "multi_thread")]
async fn services_wait_until_their_password_is_valid() {
    let setup = Setup::with_redis(&["--requirepass", "first"]).await;
    let url = setup.redis.url().replace("redis://", "redis://:second@");
    let ingest = setup.start("ingest", &[("REDIS_URL", &url)]);
    reports(&ingest, "WRONGPASS").await;
    let first = setup.redis.url().replace("redis://", "redis://:first@");
    let set = ["SET", "requirepass", "second"].map(Value::from).into();
    connections(&first).await.run::<Value>("x", Retry::Idempotent, "CONFIG", set).await.unwrap();
    ingest.wait_ready(SOON).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_waits_for_its_servers_ends_on_sigterm() {
    let mut setup = Setup::with_own_postgres(&[]);
    setup.postgres().stop();
    let mut consumer = setup.start("consumer", &[]);
    reports(&consumer, "[-] postgres failed").await;
    setup.redis.stop();
    let mut ingest = setup.start("ingest", &[]);
    reports(&ingest, "[-] redis failed").await;
    for program in [&mut consumer, &mut ingest] {
        program.signal(Signal::SIGTERM);
        assert!(program.wait_exit(SOON).unwrap().success(), "{}", program.log_text());
    }
}
