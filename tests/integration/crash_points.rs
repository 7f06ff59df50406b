//! Crashes at critical points, reached deterministically.

use std::time::Duration;

use devstack::http_client::HttpClient;
use fred::prelude::{Client, HashesInterface, KeysInterface, StreamsInterface, Value};
use nix::sys::signal::Signal;
use tokio_postgres::Client as Postgres;

use crate::{
    dead_letters::dead_letters,
    harness::{
        GROUP, PARTITIONS, SOON, Setup, append_raw, create_groups, entries, eventually, like, likes, pending,
        pending_or_none, post, stream,
    },
    likesctl::{done, settled},
    proxy::Proxy,
};

const SOON_CLAIMED: [(&str, &str); 2] = [("CLAIM_MIN_IDLE", "1s"), ("WRITE_TIMEOUT", "400ms")];

/// Locks the table, so that the transaction of a consumer blocks in its INSERT.
pub(crate) async fn hold_table(postgres: &Postgres) {
    postgres.batch_execute("BEGIN; LOCK TABLE likes IN ACCESS EXCLUSIVE MODE").await.unwrap();
}

pub(crate) async fn a_writer_waits(postgres: &Postgres) {
    eventually("a writer waits for the table", async || {
        let sql = "SELECT count(*) FROM pg_locks WHERE relation = 'likes'::regclass AND NOT granted";
        postgres.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) > 0
    })
    .await;
}

/// Kills a consumer after the commit of a batch and before its acknowledgement reaches Redis.
async fn kill_between_commit_and_ack(setup: &Setup, redis: &Client, rows: usize) {
    let proxy = Proxy::start(setup.redis.port()).await;
    let url = proxy.redis_url();
    let mut consumer =
        setup.consumer(&[("REDIS_URL", &url), ("CLAIM_MIN_IDLE", "2m"), ("WRITE_TIMEOUT", "50s")]);
    let before = pending(redis).await;
    assert_eq!(before, 0);
    let postgres = setup.postgres_client().await;
    hold_table(&postgres).await;
    append_with_a_bad_like(redis, rows).await;
    a_writer_waits(&postgres).await;
    proxy.hold_requests();
    postgres.batch_execute("COMMIT").await.unwrap();
    setup.wait_for_rows(rows).await;
    // The consumer may have sent the acknowledgement, but it does not reach Redis.
    tokio::time::sleep(Duration::from_millis(100)).await;
    consumer.kill();
    drop(proxy);
    assert!(pending(redis).await > 0, "nothing was acknowledged");
}

/// Appends one entry with `rows` valid likes and one invalid like.
async fn append_with_a_bad_like(redis: &Client, rows: usize) {
    let mut payload = shared::wire::codec::encode(&likes(rows as u64 + 1));
    // The user id of the first like, which is 1, becomes 0.
    let first_user = payload.windows(2).position(|bytes| bytes == [0x93, 0x01]).unwrap() + 1;
    payload[first_user] = 0;
    append_raw(redis, 0, &payload).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_commit_and_ack_creates_no_duplicate() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    create_groups(&redis).await;
    kill_between_commit_and_ack(&setup, &redis, 100).await;
    assert!(dead_letters(&redis).await.is_empty(), "the dead letter is written with the acknowledgement");

    // Long enough that a slow consumer does not claim its own entries.
    let next = setup.consumer(&[("CLAIM_MIN_IDLE", "10s"), ("WRITE_TIMEOUT", "4s")]);
    setup.wait_until_drained().await;
    assert_eq!(setup.count().await, 100);
    assert_eq!(dead_letters(&redis).await.len(), 1);
    let metrics = next.metrics().unwrap();
    assert_eq!(metrics.sum("likestream_rows_inserted_total"), 0.0, "all rows were in the table");
    assert_eq!(metrics.sum("likestream_entries_reclaimed_total"), 1.0);
}

/// The script has run and its reply is lost: the next consumer of the entry must not write a second dead letter.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_after_a_dead_letter_is_written_creates_no_second_one() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    create_groups(&redis).await;
    let proxy = Proxy::start(setup.redis.port()).await;
    let url = proxy.redis_url();
    let mut consumer =
        setup.consumer(&[("REDIS_URL", &url), ("CLAIM_MIN_IDLE", "2m"), ("WRITE_TIMEOUT", "50s")]);
    let postgres = setup.postgres_client().await;
    hold_table(&postgres).await;
    append_with_a_bad_like(&redis, 10).await;
    a_writer_waits(&postgres).await;
    proxy.hold_replies();
    postgres.batch_execute("COMMIT").await.unwrap();
    eventually("the dead letter is written", async || dead_letters(&redis).await.len() == 1).await;
    consumer.kill();
    drop(proxy);

    let _next = setup.consumer(&SOON_CLAIMED);
    setup.append(&likes(50), 1).await;
    setup.wait_for_rows(50).await;
    setup.wait_until_drained().await;
    assert_eq!(dead_letters(&redis).await.len(), 1);
}

/// The reply to a read is lost: its entries are pending for a consumer that has not received them.
#[tokio::test(flavor = "multi_thread")]
async fn entries_of_a_lost_read_reply_are_recovered_by_the_same_consumer() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    let proxy = Proxy::start(setup.redis.port()).await;
    let url = proxy.redis_url();
    let settings = [("REDIS_URL", url.as_str()), ("CLAIM_MIN_IDLE", "1h"), ("REDIS_TIMEOUT", "500ms")];
    let consumer = setup.consumer(&settings);
    // A consumer that already waits for a reply sends no further read. In that case, try again.
    let mut caught = false;
    for _ in 0..20 {
        proxy.hold_replies();
        setup.append(&likes(20), 1).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        caught = pending_or_none(&redis).await > 0;
        if caught {
            break;
        }
        proxy.let_go();
        setup.wait_until_drained().await;
    }
    assert!(caught);
    eventually("not ready", async || devstack::admin::get(consumer.admin(), "/readyz").unwrap().0 == 503)
        .await;
    proxy.let_go();
    setup.wait_for_rows(20).await;
    setup.wait_until_drained().await;
    eventually("ready", async || devstack::admin::get(consumer.admin(), "/readyz").unwrap().0 == 200).await;
}

/// Redis has the like, but the client got no response. It retries, and the like is stored once.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_append_and_response_creates_no_duplicate() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    let proxy = Proxy::start(setup.redis.port()).await;
    let url = proxy.redis_url();
    let mut ingest = setup.ingest(&[("REDIS_URL", &url), ("REDIS_TIMEOUT", "30s")]);
    proxy.hold_replies();
    let address = ingest.listen();
    let unanswered = tokio::spawn(async move { HttpClient::new(address).post_like(7, 42).await });
    eventually("Redis has the like", async || entries(&redis).await == 1).await;
    assert!(!unanswered.is_finished());
    ingest.kill();
    assert!(unanswered.await.unwrap().is_err());

    let ingest = setup.ingest(&[]);
    assert_eq!(post(&ingest, r#"{"user_id": 7, "post_id": 42}"#).await.status, 202);
    let _consumer = setup.consumer(&[]);
    setup.wait_for_rows(1).await;
    setup.wait_until_drained().await;
    assert_eq!(setup.count().await, 1);
}

const QUARANTINE: &str = "likes:{0}:quarantine:likes-writers";

/// Starts a consumer again and again, and kills it whenever it processes the like of user 66, until an entry is a dead
/// letter. Returns the number of kills.
async fn kill_while_user_66_is_processed(setup: &Setup, redis: &Client, max_deliveries: &str) -> u32 {
    const WAITS: &str = "FROM pg_locks JOIN pg_database ON pg_database.oid = database
                         WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()";
    let postgres = setup.postgres_client().await;
    let trigger = "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
                   $$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NEW; END $$;
                   CREATE TRIGGER deadly BEFORE INSERT ON likes FOR EACH ROW WHEN (NEW.user_id = 66) EXECUTE FUNCTION wait();
                   SELECT pg_advisory_lock(1)";
    postgres.batch_execute(trigger).await.unwrap();
    let settings = [
        ("CONSUMER_NAME", "phoenix"),
        ("MAX_DELIVERIES", max_deliveries),
        ("CLAIM_MIN_IDLE", "2m"),
        ("WRITE_TIMEOUT", "50s"),
    ];
    let mut deaths = 0;
    while dead_letters(redis).await.is_empty() {
        let mut consumer = setup.start("consumer", &settings);
        let mut deadly_moment = false;
        eventually("the consumer processes the entry, or the entry is a dead letter", async || {
            let sql = format!("SELECT count(*) {WAITS}");
            deadly_moment = postgres.query_one(&sql, &[]).await.unwrap().get::<_, i64>(0) > 0;
            deadly_moment || !dead_letters(redis).await.is_empty()
        })
        .await;
        consumer.kill();
        deaths += u32::from(deadly_moment);
        // A session of the killed consumer still waits for the lock, and would be mistaken for one of the next consumer.
        let sql = format!("SELECT pg_terminate_backend(pid, 30000) {WAITS}");
        postgres.execute(&sql, &[]).await.unwrap();
    }
    deaths
}

/// An entry crashes every consumer that processes it. After too many deliveries it is quarantined, and all other entries
/// are stored. After two more crashes, it becomes a dead letter.
#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_crashes_consumers_becomes_a_dead_letter() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    create_groups(&redis).await;
    let killer = shared::wire::codec::encode(&[like(66, 42)]);
    append_raw(&redis, 0, &killer).await;
    setup.append(&likes(20), 1).await;
    // Two deliveries are allowed, and two more happen in quarantine.
    assert_eq!(kill_while_user_66_is_processed(&setup, &redis, "2").await, 4);
    let letters = dead_letters(&redis).await;
    assert_eq!(letters.len(), 1);
    assert_eq!((&letters[0]["reason"][..], &letters[0]["l"][..]), (&b"max_deliveries"[..], &killer[..]));
    assert_eq!(letters[0]["deliveries"], "5");
    let _consumer = setup.consumer(&[]);
    setup.wait_for_rows(20).await;
    setup.wait_until_drained().await;
}

/// Suspects are tried in groups, which get smaller by a factor of eight with each death.
#[tokio::test(flavor = "multi_thread")]
async fn a_deadly_entry_among_many_suspects_is_found_after_few_deaths() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    create_groups(&redis).await;
    for user in 1..=100 {
        append_raw(&redis, 0, &shared::wire::codec::encode(&[like(user, 42)])).await;
    }
    // One delivery is allowed. Then it is tried among 100 and among 12 entries, and alone.
    assert_eq!(kill_while_user_66_is_processed(&setup, &redis, "1").await, 5);
    let letters = dead_letters(&redis).await;
    assert_eq!((letters.len(), &letters[0]["reason"][..]), (1, &b"max_deliveries"[..]));
    let _consumer = setup.consumer(&[]);
    setup.wait_for_rows(99).await;
    setup.wait_until_drained().await;
}

/// Delivers all entries to a consumer, `times` in all.
async fn deliver(redis: &Client, consumer: &str, times: usize) {
    for round in 0..times {
        for partition in 0..PARTITIONS {
            let id = if round == 0 { ">" } else { "0" };
            redis
                .xreadgroup::<Value, _, _, _, _>(GROUP, consumer, None, None, false, stream(partition), id)
                .await
                .unwrap();
        }
    }
}

/// A high delivery count alone does not make a dead letter: the entry was only redelivered during an outage.
#[tokio::test(flavor = "multi_thread")]
async fn a_harmless_entry_with_many_deliveries_is_stored() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    create_groups(&redis).await;
    setup.append(&likes(8), 1).await;
    deliver(&redis, "phoenix", 9).await;
    let consumer = setup.consumer(&[("CONSUMER_NAME", "phoenix")]);
    setup.wait_for_rows(8).await;
    setup.wait_until_drained().await;
    assert!(consumer.log_text().contains("entry quarantined: delivered more than MAX_DELIVERIES times"));
    assert!(dead_letters(&redis).await.is_empty());
    let left = async || redis.exists::<u64, _>(QUARANTINE).await.unwrap();
    eventually("the records are removed", async || left().await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_harmless_suspects_need_few_batches() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    create_groups(&redis).await;
    setup.append(&likes(3_000), 1).await;
    deliver(&redis, "phoenix", 6).await;
    setup.append(&likes(3_100)[3_000..], 1).await;
    let consumer = setup.consumer(&[("CONSUMER_NAME", "phoenix")]);
    setup.wait_for_rows(3_100).await;
    setup.wait_until_drained().await;
    assert!(consumer.log_text().contains("entries quarantined: delivered more than MAX_DELIVERIES times"));
    let batches = consumer.metrics().unwrap().sum("likestream_batches_committed_total");
    assert!(batches < 150.0, "{batches} batches");
    assert!(dead_letters(&redis).await.is_empty());
}

/// Consumers that end while Postgres does not answer are not killed by the entry that they try: neither if they end in time,
/// nor if they are killed while they drain.
#[tokio::test(flavor = "multi_thread")]
async fn a_graceful_shutdown_during_a_quarantine_is_no_death() {
    let (setup, redis) = settled().await;
    setup.append(&likes(1), 1).await;
    deliver(&redis, "gone", 6).await;
    let quarantined = async || {
        let mut found = 0;
        for partition in 0..PARTITIONS {
            found += redis.hlen::<u64, _>(format!("likes:{{{partition}}}:quarantine:{GROUP}")).await.unwrap();
        }
        found
    };
    let port = setup.database_url().rsplit_once(':').unwrap().1.split('/').next().unwrap().parse().unwrap();
    let proxy = Proxy::start(port).await;
    let database = setup.database_url().replace(&format!(":{port}"), &format!(":{}", proxy.port()));
    for killed_while_draining in [false, true, false, true] {
        done(&setup, &["pause", "--yes"]);
        let drain = if killed_while_draining { "1h" } else { "1s" };
        let settings =
            [("DATABASE_URL", database.as_str()), ("DRAIN_TIMEOUT", drain), ("WRITE_TIMEOUT", "14s")];
        let mut consumer = setup.consumer(&settings);
        proxy.hold_requests();
        done(&setup, &["resume", "--yes"]);
        eventually("the entry is tried", async || quarantined().await == 1).await;
        consumer.signal(Signal::SIGTERM);
        eventually("the try has ended", async || quarantined().await == 0).await;
        if killed_while_draining {
            consumer.kill();
        } else {
            consumer.wait_exit(SOON).unwrap();
        }
        proxy.let_go();
    }
    let _consumer = setup.consumer(&[]);
    setup.wait_for_rows(1).await;
    setup.wait_until_drained().await;
    assert!(dead_letters(&redis).await.is_empty());
}
