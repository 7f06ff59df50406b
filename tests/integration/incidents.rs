//! Losses in Redis and Postgres are recorded until an operator acknowledges them.

use std::time::Duration;

use devstack::{postgres_server::PostgresServer, program::Program};
use fred::{
    prelude::{Client, ClientLike, HashesInterface, KeysInterface, StreamsInterface, Value},
    types::{ClusterHash, CustomCommand},
};
use shared::wire::codec;

use crate::{
    harness::{GROUP, PARTITIONS, Setup, append_raw, eventually, like, likes, postgres_client, run, stream},
    likesctl::{ctl, done, json},
};

fn open_incidents(setup: &Setup) -> Vec<serde_json::Value> {
    json(setup, &["incidents", "list", "-o", "json"]).as_array().unwrap().clone()
}

fn kinds(incidents: &[serde_json::Value]) -> Vec<String> {
    let mut kinds: Vec<String> =
        incidents.iter().map(|incident| incident["kind"].as_str().unwrap().to_owned()).collect();
    kinds.sort();
    kinds
}

/// Waits until consumers have noted in Postgres that entries are undelivered.
async fn wait_for_watermarks(client: &tokio_postgres::Client, undelivered: i64) {
    let sql = "SELECT coalesce(sum(undelivered), 0)::bigint, count(*) FROM likes_watermarks";
    eventually("watermarks", async || {
        let row = client.query_one(sql, &[]).await.unwrap();
        (row.get::<_, i64>(0), row.get::<_, i64>(1)) == (undelivered, PARTITIONS.into())
    })
    .await;
}

/// Removes the oldest entries of a stream, as another program would.
async fn trim(redis: &Client, partition: u16, left: u64) {
    let arguments = vec![stream(partition), "MAXLEN".to_owned(), left.to_string()];
    redis.custom::<Value, _>(command("XTRIM"), arguments).await.unwrap();
}

async fn pause(setup: &Setup, consumers: &[&Program]) {
    done(setup, &["pause", "--yes"]);
    eventually("paused", async || {
        let paused = |c: &&&Program| c.metrics().unwrap().sum("likestream_partitions_paused");
        consumers.iter().map(|c| paused(&c)).sum::<f64>() == f64::from(PARTITIONS)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flushed_redis_is_an_incident_until_it_is_acknowledged() {
    let mut setup = Setup::with_own_postgres(&[]);
    let consumer = setup.consumer(&[("BATCH_ROWS", "10")]);
    let ingest = setup.ingest(&[]);
    let redis = setup.redis_client().await;
    setup.append(&likes(40), 1).await;
    setup.wait_until_drained().await;
    setup.postgres().stop();
    setup.append(&likes(1_040)[40..], 1).await;
    // The latest sample has all entries, while a few batches of them are in flight.
    let backlog = |program: &Program| program.metrics().unwrap().sum("likestream_backlog_entries");
    eventually("sampled", async || backlog(&consumer) == 1_000.0 && backlog(&ingest) == 1_000.0).await;
    redis.flushall::<()>(false).await.unwrap();
    let noticed = "streams vanished from Redis";
    eventually("noticed", async || consumer.log_text().contains(noticed)).await;
    let metric = |name: &str| consumer.metrics().unwrap().sum(name);
    eventually("noticed by ingest", async || ingest.log_text().contains(noticed)).await;
    let lost_streams = "likestream_streams_lost_total";
    eventually("counted by ingest", async || ingest.metrics().unwrap().sum(lost_streams) == 4.0).await;
    eventually("also while Postgres is unavailable", async || metric("likestream_incidents_open") == 1.0)
        .await;
    setup.postgres().start_again().unwrap();
    eventually("recorded", async || consumer.log_text().contains("incident recorded")).await;

    let incidents = open_incidents(&setup);
    assert_eq!(kinds(&incidents), ["stream_lost"], "{incidents:#?}");
    let lost = incidents[0]["entries_lost"].as_u64().unwrap();
    assert!((900..1_000).contains(&lost), "{incidents:#?}");
    // The consumer stores the likes that it had read.
    setup.append(&likes(1), 1).await;
    eventually("settled", async || consumer.log_text().contains("consumer group created")).await;
    setup.wait_until_drained().await;
    assert_eq!(metric("likestream_entries_lost_total"), lost as f64);
    setup.wait_for_rows(usize::try_from(1_040 - lost).unwrap()).await;
    let (doctor, check) = (ctl(&setup, &["doctor"]), ctl(&setup, &["status", "--check"]));
    assert!(doctor.code == Some(1) && doctor.stdout.contains("fail  incidents"), "{}", doctor.stdout);
    assert!(check.code == Some(2) && check.stdout.contains("incidents 1"), "{}", check.stdout);
    assert!(ctl(&setup, &["status"]).stdout.contains("warning: 1 incident is open"));
    assert!(ctl(&setup, &["verify"]).stderr.contains("1 incident is open"));
    assert_eq!(ctl(&setup, &["incidents", "list"]).code, Some(1));

    let id = incidents[0]["id"].to_string();
    let acknowledged = done(&setup, &["incidents", "acknowledge", &id, "--yes"]);
    assert_eq!(acknowledged, "acknowledged 1 incident\n");
    assert_eq!(ctl(&setup, &["incidents", "list"]).stdout, "no open incidents\n");
    assert!(ctl(&setup, &["status", "--check"]).stdout.contains("OK"));
    assert!(ctl(&setup, &["doctor"]).stdout.contains("ok    incidents"));
    eventually("reported no longer", async || metric("likestream_incidents_open") == 0.0).await;
    let all = json(&setup, &["incidents", "list", "--all", "-o", "json"]);
    assert!(all[0]["acknowledged_by"].as_str().is_some(), "{all}");
    let unknown = ctl(&setup, &["incidents", "acknowledge", &id, "--yes"]);
    assert_eq!(unknown.code, Some(1), "{}", unknown.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loss_while_no_consumer_runs_is_noticed_at_the_next_start() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    let mut consumer = setup.consumer(&[]);
    pause(&setup, &[&consumer]).await;
    setup.append(&likes(120), 1).await;
    wait_for_watermarks(&setup.postgres_client().await, 120).await;
    consumer.kill();
    redis.del::<u64, _>(stream(0)).await.unwrap();
    let doctor = ctl(&setup, &["doctor"]).stdout;
    assert!(doctor.contains("fail  streams       1 partition has lost"), "{doctor}");
    redis.flushall::<()>(false).await.unwrap();
    let _consumer = setup.consumer(&[]);
    eventually("recorded", async || !open_incidents(&setup).is_empty()).await;
    let incidents = open_incidents(&setup);
    assert_eq!(kinds(&incidents), ["stream_lost"], "{incidents:#?}");
    assert_eq!(incidents[0]["entries_lost"], 120);
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_that_are_removed_while_no_consumer_runs_are_an_incident() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    let mut consumer = setup.consumer(&[]);
    pause(&setup, &[&consumer]).await;
    setup.append(&likes(400), 1).await;
    wait_for_watermarks(&setup.postgres_client().await, 400).await;
    consumer.stop().unwrap();
    trim(&redis, 2, 30).await;
    let doctor = ctl(&setup, &["doctor"]).stdout;
    assert!(doctor.contains("fail  streams       1 partition has lost"), "{doctor}");
    done(&setup, &["resume", "--yes"]);
    let _consumer = setup.consumer(&[]);
    setup.wait_for_rows(330).await;
    eventually("recorded", async || !open_incidents(&setup).is_empty()).await;
    let incidents = open_incidents(&setup);
    assert_eq!(kinds(&incidents), ["entries_removed"], "{incidents:#?}");
    assert_eq!(incidents[0]["entries_lost"], 70);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loss_is_recorded_while_redis_refuses_writes() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    let consumer = setup.consumer(&[]);
    pause(&setup, &[&consumer]).await;
    setup.append(&likes(40), 1).await;
    wait_for_watermarks(&setup.postgres_client().await, 40).await;
    redis.flushall::<()>(false).await.unwrap();
    setup.redis.command(&["CONFIG", "SET", "min-replicas-to-write", "1"]).unwrap();
    let open = "SELECT kind FROM likes_incidents WHERE acknowledged_at IS NULL";
    let client = setup.postgres_client().await;
    eventually("recorded", async || !client.query(open, &[]).await.unwrap().is_empty()).await;
    setup.redis.command(&["CONFIG", "SET", "min-replicas-to-write", "0"]).unwrap();
    eventually("bound again", async || ctl(&setup, &["status"]).stdout.contains("1 incident is open")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_consumers_record_an_event_once() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    let consumers = [(); 3].map(|()| setup.consumer(&[]));
    pause(&setup, &consumers.each_ref()).await;
    setup.append(&likes(80), 1).await;
    wait_for_watermarks(&setup.postgres_client().await, 80).await;
    redis.flushall::<()>(false).await.unwrap();
    let total = || {
        let lost = |consumer: &Program| consumer.metrics().unwrap().sum("likestream_entries_lost_total");
        consumers.iter().map(lost).sum::<f64>()
    };
    eventually("recorded", async || total() >= 80.0).await;
    setup.append(&likes(80), 1).await;
    setup.wait_for_rows(80).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let incidents = open_incidents(&setup);
    let lost: u64 = incidents.iter().map(|incident| incident["entries_lost"].as_u64().unwrap()).sum();
    assert_eq!((lost, total()), (80, 80.0), "{incidents:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_streams_groups_and_entries_are_incidents_of_their_kinds() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    let consumer = setup.consumer(&[]);
    setup.append(&likes(400), 1).await;
    setup.wait_for_rows(400).await;
    setup.wait_until_drained().await;
    pause(&setup, &[&consumer]).await;
    setup.append(&likes(400), 1).await;
    wait_for_watermarks(&setup.postgres_client().await, 400).await;
    redis.del::<u64, _>(stream(0)).await.unwrap();
    redis.xgroup_destroy::<u64, _, _>(stream(1), GROUP).await.unwrap();
    trim(&redis, 2, 30).await;
    eventually("recorded", async || open_incidents(&setup).len() == 3).await;
    let incidents = open_incidents(&setup);
    assert_eq!(kinds(&incidents), ["entries_removed", "group_lost", "stream_lost"]);
    let lost = |kind: &str| {
        let incident = incidents.iter().find(|incident| incident["kind"] == kind).unwrap();
        incident["entries_lost"].as_u64().unwrap()
    };
    assert_eq!((lost("stream_lost"), lost("group_lost"), lost("entries_removed")), (100, 0, 70));
    // The streams go on, and nothing else is recorded.
    done(&setup, &["resume", "--yes"]);
    setup.append(&likes(500), 1).await;
    setup.wait_for_rows(500).await;
    setup.wait_until_drained().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(open_incidents(&setup).len(), 3, "{:#?}", open_incidents(&setup));
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_that_lose_nothing_are_no_incidents() {
    let mut setup = Setup::new().await;
    let mut consumer = setup.consumer(&[]);
    setup.append(&likes(200), 1).await;
    setup.wait_for_rows(200).await;
    setup.redis.kill();
    setup.redis.start_again().unwrap();
    setup.append(&likes(300), 1).await;
    setup.wait_for_rows(300).await;
    consumer.kill();
    setup.append(&likes(400), 1).await;
    let consumer = setup.consumer(&[]);
    setup.wait_for_rows(400).await;
    done(&setup, &["partitions", "grow", "8", "--yes"]);
    eventually("grown", async || consumer.metrics().unwrap().sum("likestream_partitions_owned") == 8.0).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(open_incidents(&setup).len(), 0, "{:#?}", open_incidents(&setup));
    let doctor = ctl(&setup, &["doctor"]);
    assert!(doctor.stdout.contains("ok    streams"), "{}", doctor.stdout);
}

fn command(name: &'static str) -> CustomCommand {
    CustomCommand::new_static(name, ClusterHash::FirstKey, false)
}

/// As after the promotion of a replica that lacked the newest entries.
#[tokio::test(flavor = "multi_thread")]
async fn newest_entries_that_are_lost_and_replaced_are_an_incident() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    let consumer = setup.consumer(&[]);
    pause(&setup, &[&consumer]).await;
    setup.append(&likes(100), 1).await;
    let earlier: Value = redis.custom(command("DUMP"), vec![stream(0)]).await.unwrap();
    setup.append(&likes(199)[100..], 1).await;
    let deleted = append_raw(&redis, 3, &codec::encode(&[like(1_000, 1)])).await;
    wait_for_watermarks(&setup.postgres_client().await, 200).await;
    // A deleted entry is no sign of an earlier state.
    redis.xdel::<u64, _, _>(stream(3), deleted).await.unwrap();
    let restore: Vec<Value> = vec![stream(0).into(), 0.into(), earlier, "REPLACE".into()];
    redis.custom::<Value, _>(command("RESTORE"), restore).await.unwrap();
    setup.append(&likes(600)[200..], 1).await;
    eventually("recorded", async || !open_incidents(&setup).is_empty()).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let incidents = open_incidents(&setup);
    assert_eq!(kinds(&incidents), ["stream_lost"], "{incidents:#?}");
    assert!(incidents[0]["detail"].as_str().unwrap().contains("streams of partitions 0 "), "{incidents:#?}");
    // All 25, if a sample was taken before the other entries were added.
    assert!((1..=25).contains(&incidents[0]["entries_lost"].as_u64().unwrap()), "{incidents:#?}");
}

/// The later streams have more entries than the lost ones, and are drained, before the next sample.
#[tokio::test(flavor = "multi_thread")]
async fn a_flushed_redis_that_fills_at_once_is_an_incident() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    let consumer = setup.consumer(&[]);
    setup.append(&likes(40), 1).await;
    setup.wait_for_rows(40).await;
    setup.wait_until_drained().await;
    wait_for_watermarks(&setup.postgres_client().await, 0).await;
    redis.flushall::<()>(false).await.unwrap();
    setup.append(&likes(400), 1).await;
    setup.wait_for_rows(400).await;
    eventually("recorded", async || consumer.log_text().contains("incident recorded")).await;
    let incidents = open_incidents(&setup);
    assert_eq!(kinds(&incidents), ["stream_lost"], "{incidents:#?}");
    assert_eq!(incidents[0]["entries_lost"], 0, "{incidents:#?}");
    assert!(incidents[0]["detail"].as_str().unwrap().contains("partitions 0-3"), "{incidents:#?}");
}

/// The last samples are old, and consumers have stored some of the entries in them.
#[tokio::test(flavor = "multi_thread")]
async fn a_loss_under_load_is_at_least_as_large_as_reported() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    let _consumers = [(); 2].map(|()| setup.consumer(&[("BATCH_ROWS", "5")]));
    let all = likes(6_000);
    for (round, some) in all.chunks(50).enumerate() {
        setup.append(some, 1).await;
        if round == 40 || round == 80 {
            redis.flushall::<()>(false).await.unwrap();
        }
        // Some samples are taken meanwhile.
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    setup.wait_until_drained().await;
    let lost =
        || open_incidents(&setup).into_iter().map(|incident| incident["entries_lost"].as_u64().unwrap());
    eventually("recorded", async || lost().count() > 0).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    let missing = (all.len() - setup.count().await) as u64;
    let reported: u64 = lost().sum();
    assert!(reported <= missing, "{reported} of {missing}: {:#?}", open_incidents(&setup));
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_that_were_stored_before_a_graceful_shutdown_do_not_count_as_lost() {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    let mut consumer = setup.consumer(&[]);
    pause(&setup, &[&consumer]).await;
    setup.append(&likes(200), 1).await;
    wait_for_watermarks(&setup.postgres_client().await, 200).await;
    done(&setup, &["resume", "--yes"]);
    setup.wait_for_rows(200).await;
    consumer.stop().unwrap();
    redis.flushall::<()>(false).await.unwrap();
    let _consumer = setup.consumer(&[]);
    eventually("recorded", async || !open_incidents(&setup).is_empty()).await;
    let incidents = open_incidents(&setup);
    assert_eq!(kinds(&incidents), ["stream_lost"], "{incidents:#?}");
    assert_eq!(incidents[0]["entries_lost"], 0, "{incidents:#?}");
}

/// Each consumer starts from watermarks that others keep saving.
#[tokio::test(flavor = "multi_thread")]
async fn consumers_that_come_and_go_under_load_cause_no_incidents() {
    let setup = Setup::new().await;
    let _consumer = setup.consumer(&[]);
    let all = likes(12_000);
    let mut visitors: Vec<Program> = Vec::new();
    for (round, some) in all.chunks(200).enumerate() {
        setup.append(some, 1).await;
        if round % 10 == 0 {
            visitors.push(setup.consumer(&[]));
        } else if round % 20 == 15 {
            visitors.remove(0).kill();
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    setup.wait_for_rows(all.len()).await;
    setup.wait_until_drained().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(open_incidents(&setup).len(), 0, "{:#?}", open_incidents(&setup));
}

/// Likes that the old primary committed and the standby never received are stored again by the command of the incident.
#[tokio::test(flavor = "multi_thread")]
async fn a_failover_to_an_asynchronous_standby_is_an_incident_with_the_reprocess_command() {
    let mut setup = Setup::with_own_postgres(&[]);
    let standby = PostgresServer::standby_of(setup.postgres(), None).unwrap();
    let url = format!(
        "postgres://postgres@127.0.0.1:{},127.0.0.1:{}/postgres?target_session_attrs=read-write",
        setup.postgres().port(),
        standby.port()
    );
    let settings = [("DATABASE_URL", url.as_str()), ("STREAM_RETENTION", "1h")];
    let consumer = setup.consumer(&settings);
    setup.append(&likes(100), 1).await;
    setup.wait_for_rows(100).await;
    setup.wait_until_drained().await;
    let on_standby = postgres_client(&standby.url("postgres")).await;
    wait_for_watermarks(&on_standby, 0).await;
    // From here on the standby receives nothing.
    on_standby.batch_execute("ALTER SYSTEM SET primary_conninfo = ''").await.unwrap();
    on_standby.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    let receivers = "SELECT count(*) FROM pg_stat_wal_receiver";
    eventually("cut off", async || on_standby.query_one(receivers, &[]).await.unwrap().get::<_, i64>(0) == 0)
        .await;
    setup.append(&likes(300), 1).await;
    setup.wait_for_rows(300).await;
    setup.wait_until_drained().await;
    setup.postgres().kill();
    standby.promote().unwrap();

    eventually("noticed", async || {
        consumer.log_text().contains("Postgres continues on another timeline, commits may be lost")
    })
    .await;
    let redis = setup.redis.url();
    let ctl =
        |arguments: &[&str]| run("likesctl", arguments, &[("REDIS_URL", &redis), ("DATABASE_URL", &url)]);
    let listed = ctl(&["incidents", "list", "-o", "json"]);
    let incidents: serde_json::Value = serde_json::from_str(&listed.stdout).unwrap();
    assert_eq!(kinds(incidents.as_array().unwrap()), ["postgres_failover"], "{incidents:#}");
    let detail = incidents[0]["detail"].as_str().unwrap();
    assert!(detail.contains("timeline 2 instead of 1"), "{detail}");
    let rows = async || {
        let row = on_standby.query_one("SELECT count(*) FROM likes", &[]).await.unwrap();
        row.get::<_, i64>(0)
    };
    assert!(rows().await < 300, "nothing was lost");
    let (_, command) = detail.split_once("run likesctl reprocess --from ").unwrap();
    let from = command.split(' ').next().unwrap();
    let again = ctl(&["reprocess", "--from", from, "--yes"]);
    assert_eq!(again.code, Some(0), "{}{}", again.stdout, again.stderr);
    assert_eq!(rows().await, 300);
    let verify = ctl(&["verify"]);
    assert_eq!(verify.code, Some(0), "{}{}", verify.stdout, verify.stderr);
    // The timeline is known from here on.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let open = || {
        let listed = ctl(&["incidents", "list", "-o", "json"]);
        serde_json::from_str::<serde_json::Value>(&listed.stdout).unwrap().as_array().unwrap().len()
    };
    assert_eq!(open(), 1);
    // As if the old primary had been used once more: the same timelines are another failover.
    let binding = format!("likes:database:{GROUP}");
    setup.redis_client().await.hset::<u64, _, _>(&binding, ("timeline", "1")).await.unwrap();
    eventually("another incident", async || open() == 2).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(open(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_to_a_synchronous_standby_is_no_incident() {
    let mut setup = Setup::with_own_postgres(&[]);
    let standby = PostgresServer::standby_of(setup.postgres(), None).unwrap();
    let url = format!(
        "postgres://postgres@127.0.0.1:{},127.0.0.1:{}/postgres?target_session_attrs=read-write",
        setup.postgres().port(),
        standby.port()
    );
    let primary = setup.postgres_client().await;
    primary.batch_execute("ALTER SYSTEM SET synchronous_standby_names = '*'").await.unwrap();
    primary.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    let consumer = setup.consumer(&[("DATABASE_URL", &url)]);
    setup.append(&likes(100), 1).await;
    setup.wait_for_rows(100).await;
    setup.wait_until_drained().await;
    setup.postgres().kill();
    standby.promote().unwrap();
    let noticed = "its commits had waited for a standby";
    eventually("noticed", async || consumer.log_text().contains(noticed)).await;
    setup.append(&likes(200), 1).await;
    let on_standby = postgres_client(&standby.url("postgres")).await;
    let count = "SELECT count(*) FROM likes";
    eventually("stored", async || on_standby.query_one(count, &[]).await.unwrap().get::<_, i64>(0) == 200)
        .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let incidents = on_standby.query("SELECT detail FROM likes_incidents", &[]).await.unwrap();
    assert!(incidents.is_empty(), "{incidents:?}");
    assert_eq!(consumer.log_text().matches(noticed).count(), 1, "{}", consumer.log_text());
}
