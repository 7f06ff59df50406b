//! Unexpected data in Redis and Postgres: likesctl reports it, escapes it for the terminal, and still shows the rest.

use std::time::{Duration, Instant};

use fred::prelude::{Client, KeysInterface, StreamsInterface, Value};
use shared::wire::codec;

use crate::{
    harness::{GROUP, PARTITIONS, append_raw, dead_stream, eventually, like, likes, run, stream},
    likesctl::{ctl, done, json, settled},
};

async fn add_dead_letter(redis: &Client, partition: u16, fields: Vec<(&str, bytes::Bytes)>) {
    redis.xadd::<String, _, _, _, _>(dead_stream(partition), false, None::<()>, "*", fields).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn control_characters_in_foreign_data_are_escaped() {
    let (setup, redis) = settled().await;
    let evil = "\u{1b}[2J\u{7}two\nlines\r\u{202e}";
    let payload = codec::encode(&[like(1, 42)]);
    let fields = vec![
        ("l", payload.clone().into()),
        ("reason", evil.into()),
        ("detail", evil.into()),
        ("origin", evil.into()),
        ("consumer", evil.into()),
    ];
    add_dead_letter(&redis, 1, fields).await;
    append_raw(&redis, 1, &payload).await;
    let consumer = bytes::Bytes::from_static(b"c\x1b]0;x\x07");
    let read = redis.xreadgroup::<Value, _, _, _, _>(
        GROUP,
        std::str::from_utf8(&consumer).unwrap(),
        Some(1),
        None,
        false,
        stream(1),
        ">",
    );
    read.await.unwrap();
    for arguments in [
        &["status"][..],
        &["doctor"],
        &["consumers", "list"],
        &["pending", "list", "-o", "wide"],
        &["pending", "retry", "--all", "--dry-run"],
        &["dead", "list"],
        &["dead", "list", "-o", "wide"],
        &["dead", "retry", "--all", "--dry-run"],
    ] {
        let ended = ctl(&setup, arguments);
        let output = format!("{}{}", ended.stdout, ended.stderr);
        let harmful = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!output.contains(harmful), "{arguments:?}: {output:?}");
        assert!(!output.contains("\nlines"), "{arguments:?}: {output:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_the_wrong_type_is_reported_and_the_rest_is_shown() {
    let (setup, redis) = settled().await;
    let name = fred::bytes_utils::Str::from_static("strange");
    redis.xgroup_createconsumer::<u64, _, _, _>(stream(0), GROUP, name).await.unwrap();
    // Only a script can create a name that is not UTF-8.
    let script = "return redis.call('XGROUP', 'CREATECONSUMER', KEYS[1], ARGV[1], string.char(255, 254))";
    let made: u64 =
        fred::prelude::LuaInterface::eval(&redis, script, vec![stream(0)], vec![GROUP]).await.unwrap();
    assert_eq!(made, 1);
    let names = json(&setup, &["consumers", "list", "-o", "json"]);
    assert_eq!(names.as_array().unwrap().len(), 2, "{names:#}");

    redis.del::<u64, _>(stream(1)).await.unwrap();
    redis.set::<(), _, _>(stream(1), "somebody else's", None, None, false).await.unwrap();
    let status = ctl(&setup, &["status"]);
    assert_eq!((status.code, status.stderr.lines().count()), (Some(1), 1), "{}", status.stderr);
    assert!(
        status.stderr.contains("likes:{1}") && status.stderr.contains("written by another application"),
        "{}",
        status.stderr
    );
    assert!(done(&setup, &["status", "-p", "0,2-3"]).contains("backlog 0"));
    let doctor = ctl(&setup, &["doctor"]);
    assert_eq!(doctor.code, Some(1));
    assert!(doctor.stdout.contains("likes:{1}") && doctor.stdout.contains("checks:"), "{}", doctor.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_table_ends_in_a_timeout() {
    let (setup, redis) = settled().await;
    for partition in 0..PARTITIONS {
        let id = append_raw(&redis, partition, &codec::encode(&[like(1, 42)])).await;
        let read =
            redis.xreadgroup::<Value, _, _, _, _>(GROUP, "c", Some(1), None, false, stream(partition), ">");
        read.await.unwrap();
        redis.xack::<u64, _, _, _>(stream(partition), GROUP, &id).await.unwrap();
    }
    let locker = setup.postgres_client().await;
    locker.batch_execute("BEGIN; LOCK TABLE likes IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let started = Instant::now();
    let (verify, doctor) = std::thread::scope(|scope| {
        let verify = scope.spawn(|| ctl(&setup, &["verify"]));
        (ctl(&setup, &["doctor"]), verify.join().unwrap())
    });
    for ended in [&verify, &doctor] {
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        let output = format!("{}{}", ended.stdout, ended.stderr);
        assert!(output.contains("Postgres did not answer within"), "{output}");
    }
    assert!(started.elapsed() < Duration::from_mins(2));
}

/// A retried dead letter is not missing, neither in the backlog nor when it becomes a dead letter again.
#[tokio::test(flavor = "multi_thread")]
async fn retried_dead_letters_are_not_reported_missing() {
    let (setup, redis) = settled().await;
    let sql = "ALTER TABLE likes ADD CONSTRAINT odd CHECK (user_id % 2 = 1)";
    setup.postgres_client().await.batch_execute(sql).await.unwrap();
    let consumer = setup.consumer(&[("STREAM_RETENTION", "1h")]);
    setup.append(&likes(40), 1).await;
    eventually("all are settled", async || {
        let verdict = json(&setup, &["verify", "-o", "json"]);
        verdict["dead"] == 20 && verdict["likes"] == 40
    })
    .await;
    done(&setup, &["pause", "--yes"]);
    let paused = || consumer.metrics().unwrap().sum("likestream_partitions_paused");
    eventually("the consumer has noticed", async || paused() == f64::from(PARTITIONS)).await;
    assert_eq!(done(&setup, &["dead", "retry", "--all", "--yes"]), "20 done\n");
    let waiting = json(&setup, &["verify", "-o", "json"]);
    assert_eq!((&waiting["missing"], &waiting["backlog"]), (&0.into(), &20.into()), "{waiting:#}");
    done(&setup, &["resume", "--yes"]);
    eventually("they are dead letters again", async || {
        let verdict = json(&setup, &["verify", "-o", "json"]);
        verdict["missing"] == 0 && verdict["backlog"] == 0 && verdict["dead"] == 40
    })
    .await;
    drop(redis);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_names_are_errors() {
    let (setup, redis) = settled().await;
    setup.append(&likes(4), 1).await;
    let (redis_url, database_url) = (setup.redis.url(), setup.database_url());
    let unknown =
        [("REDIS_URL", redis_url.as_str()), ("DATABASE_URL", &database_url), ("LIKES_GROUP", "unknown")];
    for arguments in [
        &["pause", "--yes"][..],
        &["pending", "list"],
        &["pending", "retry", "--all", "--yes"],
        &["dead", "retry", "--all", "--yes"],
        &["drain", "--timeout", "1s"],
    ] {
        let ended = run("likesctl", arguments, &unknown);
        assert_eq!(ended.code, Some(1), "{arguments:?}: {}", ended.stdout);
        let expected = "consumer group 'unknown' does not exist on any partition";
        assert!(ended.stderr.contains(expected), "{arguments:?}: {}", ended.stderr);
    }
    assert!(!redis.exists::<bool, _>("likes:paused:unknown").await.unwrap());
    for arguments in [
        &["pending", "list", "--consumer", "unknown"][..],
        &["pending", "list", "0/1-1", "0/2-2"],
        &["pending", "retry", "0/1-1", "0/2-2", "--yes"],
        &["status", "-p", "0,99"],
        &["pause", "-p", "0-99", "--yes"],
    ] {
        let ended = ctl(&setup, arguments);
        assert_eq!(
            (ended.code, ended.stderr.lines().count()),
            (Some(1), 1),
            "{arguments:?}: {}",
            ended.stderr
        );
    }
    let refused = ctl(&setup, &["partitions", "grow", "8"]);
    assert_eq!(refused.code, Some(6), "{}", refused.stderr);
    assert_eq!(json(&setup, &["status", "-o", "json"])["partitions"].as_array().unwrap().len(), 4);
}

/// Redis does not know the lag after a deletion at the end of a stream; an empty stream has none.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_tail_does_not_count_as_lag() {
    let (setup, redis) = settled().await;
    let id = append_raw(&redis, 0, &codec::encode(&[like(1, 42)])).await;
    redis.xdel::<u64, _, _>(stream(0), &id).await.unwrap();
    let status = json(&setup, &["status", "-o", "json"]);
    assert_eq!((&status["partitions"][0]["lag"], &status["total"]["backlog"]), (&0.into(), &0.into()));
    done(&setup, &["drain", "--timeout", "10s"]);
    redis.xgroup_destroy::<u64, _, _>(stream(0), GROUP).await.unwrap();
    append_raw(&redis, 0, &codec::encode(&[like(1, 42)])).await;
    let status = json(&setup, &["status", "-o", "json"]);
    assert_eq!(status["total"]["backlog"], 1, "without a group the whole stream is undelivered");
    assert!(status["total"]["oldest_age_ms"].is_u64());
}
