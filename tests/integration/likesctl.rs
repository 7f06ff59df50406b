//! likesctl: views, changes, and refused changes.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Read, Write},
    process::Stdio,
    time::Duration,
};

use devstack::program;
use fred::prelude::{Client, HashesInterface, KeysInterface, LuaInterface, StreamsInterface};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use shared::wire::codec;

use crate::{
    dead_letters::dead_letters,
    harness::{
        Ended, GROUP, PARTITIONS, Setup, append_raw, create_groups, dead_stream, eventually, like, likes,
        pending, run, stream,
    },
};

/// Runs likesctl with the servers of a test.
pub(crate) fn ctl(setup: &Setup, arguments: &[&str]) -> Ended {
    let (redis, database) = (setup.redis.url(), setup.database_url());
    run("likesctl", arguments, &[("REDIS_URL", &redis), ("DATABASE_URL", &database), ("USER", "tester")])
}

/// Runs likesctl, checks that it succeeds, and returns its output.
pub(crate) fn done(setup: &Setup, arguments: &[&str]) -> String {
    let ended = ctl(setup, arguments);
    assert_eq!(ended.code, Some(0), "{arguments:?}: {}{}", ended.stdout, ended.stderr);
    ended.stdout
}

/// Runs likesctl with an input, checks that it succeeds, and returns its output.
fn piped(setup: &Setup, arguments: &[&str], input: &str) -> String {
    let settings = [("REDIS_URL", setup.redis.url())];
    let mut command = program::command("likesctl", &settings).unwrap();
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let ended = child.wait_with_output().unwrap();
    assert!(ended.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&ended.stderr));
    String::from_utf8(ended.stdout).unwrap()
}

/// Returns the JSON output of a command. Ignores its exit code.
pub(crate) fn json(setup: &Setup, arguments: &[&str]) -> Value {
    let ended = ctl(setup, arguments);
    serde_json::from_str(&ended.stdout)
        .unwrap_or_else(|why| panic!("{arguments:?}: {why}: {}{}", ended.stdout, ended.stderr))
}

/// Returns servers with cluster settings and empty groups, without consumers.
pub(crate) async fn settled() -> (Setup, Client) {
    let setup = Setup::new().await;
    let redis = setup.redis_client().await;
    redis.hset::<u64, _, _>("likes:settings", ("partitions", PARTITIONS)).await.unwrap();
    create_groups(&redis).await;
    (setup, redis)
}

async fn read_as(redis: &Client, consumer: &str, count: u64) {
    for partition in 0..PARTITIONS {
        let read = redis.xreadgroup::<fred::prelude::Value, _, _, _, _>(
            GROUP,
            consumer,
            Some(count),
            None,
            false,
            stream(partition),
            ">",
        );
        read.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_require_confirmation() {
    let (setup, redis) = settled().await;
    setup.append(&likes(8), 1).await;
    read_as(&redis, "gone", 100).await;
    for command in [
        &["pending", "retry", "--all"][..],
        &["pending", "drop", "--all"],
        &["consumers", "remove", "gone"],
        &["pause"],
        &["reprocess", "--from", "1h"],
    ] {
        let refused = ctl(&setup, command);
        assert_eq!(refused.code, Some(6), "{command:?}: {}", refused.stderr);
        assert!(
            refused.stderr.lines().last().unwrap().starts_with("error: refused: nothing was changed"),
            "{}",
            refused.stderr
        );
        assert_eq!(refused.stdout, "");
        let dry = ctl(&setup, &[command, &["--dry-run"]].concat());
        assert_eq!(dry.code, Some(0), "{command:?}: {}", dry.stderr);
    }
    // A change without a selection is invalid usage.
    let vague = ctl(&setup, &["pending", "drop", "--yes"]);
    assert_eq!(vague.code, Some(2), "{}", vague.stderr);
    assert_eq!(pending(&redis).await, 8);
    assert!(setup.rows().await.is_empty());
    assert!(!redis.exists::<bool, _>("likes:audit").await.unwrap());
    assert!(!redis.exists::<bool, _>(format!("likes:paused:{GROUP}")).await.unwrap());
}

/// An error is one line on standard error with the documented exit code; standard output stays empty.
#[tokio::test(flavor = "multi_thread")]
async fn errors_are_one_line_with_the_documented_exit_code() {
    let (setup, redis) = settled().await;
    setup.append(&likes(4), 1).await;
    read_as(&redis, "gone", 100).await;
    let closed = "127.0.0.1:1";
    let (no_redis, no_database) =
        (format!("redis://{closed}"), format!("postgres://postgres@{closed}/postgres"));
    let (redis_url, database_url) = (setup.redis.url(), setup.database_url());
    let down =
        [("REDIS_URL", no_redis.as_str()), ("DATABASE_URL", &database_url), ("STARTUP_TIMEOUT", "200ms")];
    let no_table =
        [("REDIS_URL", redis_url.as_str()), ("DATABASE_URL", &no_database), ("STARTUP_TIMEOUT", "3s")];
    let here = [("REDIS_URL", redis_url.as_str()), ("DATABASE_URL", &database_url)];
    let foreign = [("REDIS_URL", redis_url.as_str()), ("LIKES_STREAM", "other")];
    for (arguments, settings, code, words) in [
        (&["status"][..], &down[..], 1, "Redis at 127.0.0.1:1"),
        (&["verify"], &no_table, 1, "Postgres at 127.0.0.1:1"),
        (&["status"], &foreign, 1, "no cluster settings for LIKES_STREAM 'other'"),
        (&["pending", "show", "0/1-1"], &here, 1, "0/1-1 is not pending"),
        (&["pending", "retry", "0/1-1", "--yes"], &here, 1, "0/1-1 is not pending"),
        (&["pending", "retry", "99/1-1", "--yes"], &here, 1, "partition 99 does not exist"),
        (&["pending", "retry", "nonsense", "--yes"], &here, 2, "'nonsense' is not an entry"),
        (&["pending", "retry", "--consumer", "other", "--yes"], &here, 1, "consumer 'other' does not exist"),
        (
            &["pending", "claim", "--all", "--to", "other", "--yes"],
            &here,
            1,
            "consumer 'other' does not exist",
        ),
        (&["consumers", "remove", "other", "--yes"], &here, 1, "consumer 'other' does not exist"),
        (&["dead", "show", "0/1-1"], &here, 1, "dead letter 0/1-1 does not exist"),
        (&["dead", "retry", "0/1-1", "--yes"], &here, 1, "dead letter 0/1-1 does not exist"),
        (&["dead", "import", "/missing", "--yes"], &here, 1, "cannot read '/missing'"),
        (&["dead", "list", "--reason", "boredom"], &here, 2, "'boredom'"),
        (&["status", "-p", "9"], &here, 1, "partition 9 does not exist"),
        (&["verify", "--from", "1h", "--to", "2h"], &here, 2, "ends before it starts"),
        (&["reprocess", "--from", "yesterday", "--yes"], &here, 2, "'yesterday'"),
        (&["pending", "list", "--all"], &here, 2, "--all"),
        (&["pending", "retry", "--all", "-p", "1", "--yes"], &here, 2, "--all cannot be combined"),
        (&["status", "--check", "--backlog", "2,1"], &here, 2, "'2,1'"),
        (&["top"], &here, 2, "terminal"),
        (&["nonsense"], &here, 2, "nonsense"),
    ] {
        let ended = run("likesctl", arguments, settings);
        assert_eq!(ended.code, Some(code), "{arguments:?}: {}{}", ended.stdout, ended.stderr);
        assert_eq!(ended.stdout, "", "{arguments:?}");
        assert_eq!(ended.stderr.lines().count(), 1, "{arguments:?}: {}", ended.stderr);
        assert!(
            ended.stderr.starts_with("error: ") && ended.stderr.contains(words),
            "{arguments:?}: {}",
            ended.stderr
        );
    }
    assert_eq!(pending(&redis).await, 4);
    let unknown = run("likesctl", &["status", "--check"], &down);
    assert_eq!(unknown.code, Some(3), "{}", unknown.stderr);
    assert!(unknown.stdout.starts_with("LIKESTREAM UNKNOWN - "), "{}", unknown.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_check_has_the_exit_codes_of_monitoring_plugins() {
    let (setup, redis) = settled().await;
    let check = |more: &[&str]| ctl(&setup, &[&["status", "--check", "--unread", "9,9"], more].concat());
    assert_eq!(check(&[]).code, Some(0));
    setup.append(&likes(10), 1).await;
    let warned = check(&["--backlog", "10,11"]);
    assert_eq!(warned.code, Some(1), "{}", warned.stdout);
    assert!(
        warned.stdout.starts_with("LIKESTREAM WARNING - backlog 10 | backlog=10;10;11;0 "),
        "{}",
        warned.stdout
    );
    assert_eq!(check(&["--backlog", "1,10"]).code, Some(2));
    assert_eq!(ctl(&setup, &["status", "--check"]).code, Some(2), "no partition has an owner");
    // The lag of a group that was created in the middle of a stream is unknown, not 0.
    redis.xgroup_destroy::<u64, _, _>(stream(0), GROUP).await.unwrap();
    let second: Vec<(String, fred::prelude::Value)> =
        redis.xrange(stream(0), "-", "+", Some(2)).await.unwrap();
    redis.xgroup_create::<(), _, _, _>(stream(0), GROUP, second[1].0.as_str(), false).await.unwrap();
    // A lag of fewer than 20 entries is counted when Redis does not know it, so the lag must be larger.
    setup.append(&likes(200), 1).await;
    let unknown = check(&["--backlog", "1000,2000"]);
    assert_eq!(unknown.code, Some(3), "{}", unknown.stdout);
    assert!(
        unknown.stdout.contains("backlog unknown") && unknown.stdout.contains("backlog=U;"),
        "{}",
        unknown.stdout
    );
    let status = json(&setup, &["status", "-o", "json"]);
    assert!(status["partitions"][0]["lag"].is_null() && status["total"]["backlog"].is_null(), "{status:#}");
    assert!(done(&setup, &["status"]).contains("backlog unknown, at least 0 (lag unknown"));
}

#[tokio::test(flavor = "multi_thread")]
async fn paused_partitions_are_not_read_until_resume() {
    let (setup, redis) = settled().await;
    let consumer = setup.consumer(&[]);
    done(&setup, &["pause", "-p", "1-2", "--yes"]);
    let paused = || consumer.metrics().unwrap().sum("likestream_partitions_paused");
    eventually("the consumer has noticed", async || paused() == 2.0).await;
    setup.append(&likes(8), 1).await;
    setup.wait_for_rows(4).await;
    assert!(consumer.log_text().contains("partitions paused, resume with likesctl resume"));
    let drain = ctl(&setup, &["drain", "--timeout", "1s"]);
    assert_eq!((drain.code, drain.stdout.as_str()), (Some(1), "not drained: 4 entries left\n"));
    assert!(drain.stderr.contains("a paused partition has a backlog"), "{}", drain.stderr);
    assert!(done(&setup, &["status"]).contains("warning: 2 partitions are paused"));
    assert_eq!(done(&setup, &["pause", "-p", "1", "--yes"]), "nothing to do: already paused\n");

    // All partitions, including those that are already paused.
    done(&setup, &["pause", "--yes"]);
    eventually("the consumer has noticed", async || paused() == f64::from(PARTITIONS)).await;
    // Partitions can be resumed one by one.
    done(&setup, &["resume", "-p", "1", "--yes"]);
    eventually("the consumer has noticed", async || paused() == f64::from(PARTITIONS - 1)).await;
    setup.wait_for_rows(6).await;
    done(&setup, &["resume", "--yes"]);
    assert_eq!(done(&setup, &["drain", "--timeout", "30s"]), "drained: the backlog is 0\n");
    setup.wait_for_rows(8).await;
    assert!(!redis.exists::<bool, _>(format!("likes:paused:{GROUP}")).await.unwrap());
    let status = json(&setup, &["status", "-o", "json"]);
    eventually("the last commits are recorded", async || {
        json(&setup, &["status", "-o", "json"])["total"]["last_commit_ms_ago"].is_u64()
    })
    .await;
    assert_eq!(status["consumers"][0]["state"], "active");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_dead_consumer_can_be_removed() {
    let (setup, redis) = settled().await;
    setup.append(&likes(40), 1).await;
    read_as(&redis, "gone", 100).await;
    done(&setup, &["pause", "--yes"]);
    let consumer = setup.consumer(&[("CONSUMER_NAME", "alive")]);
    let refused = ctl(&setup, &["consumers", "remove", "alive", "--yes"]);
    assert_eq!(refused.code, Some(6), "{}", refused.stderr);
    let removed = json(&setup, &["consumers", "remove", "gone", "--yes", "-o", "json"]);
    assert_eq!((&removed["reassigned"], &removed["removed"]), (&Value::from(40), &Value::from(true)));
    let consumers = json(&setup, &["consumers", "list", "-o", "json"]);
    assert!(consumers.as_array().unwrap().iter().all(|consumer| consumer["name"] != "gone"), "{consumers:#}");
    done(&setup, &["resume", "--yes"]);
    setup.wait_for_rows(40).await;
    assert_eq!(consumer.metrics().unwrap().sum("likestream_entries_lost_total"), 0.0);
}

/// Retried entries are stored within seconds, although `CLAIM_MIN_IDLE` is an hour.
#[tokio::test(flavor = "multi_thread")]
async fn retried_entries_are_stored_within_seconds() {
    let (setup, redis) = settled().await;
    let consumer = setup.consumer(&[("CONSUMER_NAME", "alive"), ("CLAIM_MIN_IDLE", "1h")]);
    let heartbeats = crate::harness::send_heartbeats_as(redis.clone(), "frozen");
    eventually("both are members", async || done(&setup, &["consumers", "list"]).contains("frozen")).await;
    done(&setup, &["pause", "--yes"]);
    let paused = || consumer.metrics().unwrap().sum("likestream_partitions_paused");
    eventually("the consumer has noticed", async || paused() == f64::from(PARTITIONS)).await;
    setup.append(&likes(20), 1).await;
    read_as(&redis, "frozen", 100).await;
    done(&setup, &["resume", "--yes"]);
    let claimed =
        done(&setup, &["pending", "claim", "--consumer", "frozen", "-p", "0", "--to", "alive", "--yes"]);
    assert_eq!(claimed, "5 done\n");
    assert_eq!(
        json(&setup, &["pending", "list", "--consumer", "alive", "-o", "json"]).as_array().unwrap().len(),
        5
    );
    // A list in any format can be piped into an action.
    for format in ["ndjson", "table"] {
        let list = done(&setup, &["pending", "list", "-o", format]);
        assert_eq!(
            piped(&setup, &["pending", "retry", "-", "--dry-run"], &list),
            "dry run: nothing was changed\n"
        );
        assert!(list.contains('/'), "{list}");
    }
    let list = done(&setup, &["pending", "list"]);
    assert_eq!(piped(&setup, &["pending", "retry", "-", "--yes"], &list), "20 done\n");
    assert_eq!(piped(&setup, &["pending", "retry", "-", "--yes"], ""), "0 done\n");
    setup.wait_for_rows(20).await;
    drop(heartbeats);
}

/// Consumers take up retried entries while a slow command is still handing over others.
#[tokio::test(flavor = "multi_thread")]
async fn retried_entries_are_stored_while_the_command_runs() {
    let (setup, redis) = settled().await;
    setup.append(&likes(80), 1).await;
    read_as(&redis, "frozen", 100).await;
    let _heartbeats = crate::harness::send_heartbeats_as(redis.clone(), "frozen");
    let _consumer = setup.consumer(&[("CLAIM_MIN_IDLE", "1h")]);
    let settings = [("REDIS_URL", setup.redis.url())];
    let mut retry = program::command("likesctl", &settings).unwrap();
    retry
        .args(["pending", "retry", "--all", "--yes", "--rate", "4"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut retry = retry.spawn().unwrap();
    eventually("the first entries are stored", async || setup.count().await >= 8).await;
    assert!(retry.try_wait().unwrap().is_none(), "the command has ended");
    retry.kill().unwrap();
    retry.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn pending_ack_acknowledges_only_stored_entries() {
    let (setup, redis) = settled().await;
    setup.append(&likes(8), 1).await;
    append_raw(&redis, 0, b"\xc1").await;
    read_as(&redis, "gone", 100).await;
    let sql = "INSERT INTO likes SELECT user_id, 42, now() FROM generate_series(1, 5) AS user_id";
    setup.postgres_client().await.batch_execute(sql).await.unwrap();
    let acked = ctl(&setup, &["pending", "ack", "--all", "--yes"]);
    assert_eq!((acked.code, acked.stdout.as_str()), (Some(4), "5 done, 4 skipped\n"), "{}", acked.stderr);
    assert_eq!(pending(&redis).await, 4);
    let by_like = json(&setup, &["pending", "list", "--user-id", "7", "--post-id", "42", "-o", "json"]);
    assert_eq!(by_like.as_array().unwrap().len(), 1);
    assert_eq!(
        json(&setup, &["pending", "list", "--user-id", "7", "--post-id", "41", "-o", "json"]),
        Value::Array(vec![])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_and_purged_entries_can_be_restored() {
    let (setup, redis) = settled().await;
    setup.append(&likes(250), 1).await;
    let foreign: Vec<(&str, &str)> = vec![("user", "7")];
    redis.xadd::<String, _, _, _, _>(stream(3), false, None::<()>, "*", foreign).await.unwrap();
    read_as(&redis, "gone", 1_000).await;
    let file = setup.folder().join("dropped.ndjson").display().to_string();
    let dropped = done(&setup, &["pending", "drop", "--consumer", "gone", "--yes", "--export", &file]);
    assert_eq!(dropped, format!("251 done; exported to {file}\n"));
    assert_eq!(pending(&redis).await, 0);
    let again = ctl(&setup, &["pending", "drop", "--all", "--yes", "--export", &file]);
    assert_eq!(
        (again.code, again.stdout.as_str()),
        (Some(0), "0 done\n"),
        "no entry is pending: {}",
        again.stderr
    );

    assert_eq!(done(&setup, &["dead", "import", &file, "--yes"]), "251 done\n");
    let twice = ctl(&setup, &["dead", "import", &file, "--yes"]);
    assert_eq!((twice.code, twice.stdout.as_str()), (Some(0), "0 done\n"), "{}", twice.stderr);
    let letters = dead_letters(&redis).await;
    assert_eq!(letters.len(), 251);
    assert!(letters.iter().all(|letter| letter["reason"] == "dropped" && letter["consumer"] == "gone"));

    // Export, purge and import do not change dead letters.
    let exported = ctl(&setup, &["dead", "export"]);
    assert_eq!(exported.stderr, "251 dead letters exported\n");
    let purged = setup.folder().join("kept.ndjson").display().to_string();
    let existing = ctl(&setup, &["dead", "purge", "--all", "--yes", "--export", &file]);
    assert_eq!(existing.code, Some(6), "an existing file is not overwritten: {}", existing.stderr);
    assert_eq!(dead_letters(&redis).await.len(), 251);
    done(&setup, &["dead", "purge", "--all", "--yes", "--export", &purged]);
    assert_eq!(fs::read_to_string(&purged).unwrap(), exported.stdout);
    assert!(dead_letters(&redis).await.is_empty());
    done(&setup, &["dead", "import", &purged, "--yes"]);
    let set = |letters: &[crate::dead_letters::Letter]| letters.iter().cloned().collect::<BTreeSet<_>>();
    assert_eq!(set(&dead_letters(&redis).await), set(&letters));

    // Their likes are stored; the dead letter without a payload is skipped.
    let retried = ctl(&setup, &["dead", "retry", "--all", "--yes"]);
    assert_eq!(
        (retried.code, retried.stdout.as_str()),
        (Some(4), "250 done, 1 skipped\n"),
        "{}",
        retried.stderr
    );
    let _consumer = setup.consumer(&[]);
    setup.wait_for_rows(250).await;
    assert_eq!(dead_letters(&redis).await.len(), 1);
}

/// The whole file is validated before the first import.
#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_file_is_not_partially_imported() {
    let (setup, redis) = settled().await;
    let fields: Vec<(&str, &str)> = vec![("l", "x"), ("reason", "undecodable"), ("origin", "likes:{1}/1-1")];
    redis.xadd::<String, _, _, _, _>(dead_stream(1), false, None::<()>, "*", fields).await.unwrap();
    let good = done(&setup, &["dead", "export"]);
    done(&setup, &["dead", "purge", "--all", "--yes", "--no-export"]);
    for bad in [
        "{",
        "{}",
        &good.replace("\"l\":\"", "\"l\":\"!"),
        &good.replace("\"entry\":\"1/", "\"entry\":\"77/"),
        "null",
    ] {
        let file = setup.folder().join("broken.ndjson");
        fs::write(&file, format!("{good}{bad}\n")).unwrap();
        let ended = ctl(&setup, &["dead", "import", &file.display().to_string(), "--yes"]);
        assert_eq!((ended.code, ended.stderr.lines().count()), (Some(1), 1), "{bad}: {}", ended.stderr);
        assert!(dead_letters(&redis).await.is_empty(), "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_likes_are_found_and_reprocessed() {
    let (setup, redis) = settled().await;
    let consumer = setup.consumer(&[("STREAM_RETENTION", "1h")]);
    setup.append(&likes(1_000), 10).await;
    let bad = append_raw(&redis, 1, &[0x93, 1, 0x93, 1, 42, 3, 0x93, 0, 5, 6]).await;
    setup.wait_for_rows(1_000).await;
    setup.wait_until_drained().await;
    let fine = json(&setup, &["verify", "-o", "json"]);
    assert_eq!((&fine["likes"], &fine["missing"]), (&Value::from(1_001), &Value::from(0)));
    let sampled = json(&setup, &["verify", "--sample", "20", "-o", "json"]);
    assert!((1..=24).contains(&sampled["entries"].as_u64().unwrap()), "{sampled:#}");

    setup.postgres_client().await.batch_execute("DELETE FROM likes WHERE user_id % 100 = 7").await.unwrap();
    let verify = ctl(&setup, &["verify"]);
    assert_eq!(verify.code, Some(5), "{}", verify.stdout);
    assert!(
        verify.stdout.contains("10 missing") && verify.stdout.contains("user 907 post 42"),
        "{}",
        verify.stdout
    );
    // The last line is the command that stores them.
    let command = verify.stdout.lines().last().unwrap();
    let command = command.strip_prefix("to store them, run: likesctl ").unwrap();
    let command: Vec<&str> = command.split(' ').chain(["--yes"]).collect();
    let reprocessed = ctl(&setup, &command);
    assert!(reprocessed.stderr.contains("10 rows inserted"), "{}", reprocessed.stderr);
    assert_eq!(ctl(&setup, &["verify"]).code, Some(0));
    assert_eq!(setup.count().await, 1_000);
    // Entries that cannot be stored are listed as skipped.
    let partial = ctl(&setup, &["reprocess", "-p", "1", "--from", &bad, "--to", &bad, "--yes"]);
    assert_eq!(partial.code, Some(4), "{}", partial.stderr);
    assert!(partial.stderr.contains(&format!("skipped 1/{bad}: ")), "{}", partial.stderr);
    eventually("the dead letter is counted", async || {
        consumer.metrics().unwrap().sum("likestream_dead_letters_total") == 1.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_change_can_be_continued() {
    let (setup, redis) = settled().await;
    setup.append(&likes(400), 1).await;
    read_as(&redis, "gone", 1_000).await;
    let settings = [("REDIS_URL", setup.redis.url())];
    let mut drop = program::command("likesctl", &settings).unwrap();
    drop.args(["pending", "drop", "--all", "--yes", "--no-export", "--rate", "50"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut drop = drop.spawn().unwrap();
    eventually("some are gone", async || pending(&redis).await < 400).await;
    kill(Pid::from_raw(drop.id().cast_signed()), Signal::SIGINT).unwrap();
    let code = drop.wait().unwrap().code();
    let mut said = String::new();
    drop.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(code, Some(130), "{said}");
    let left = pending(&redis).await;
    assert!((1..400).contains(&left), "{left}");
    let (done_so_far, up_to) = said.split_once(" of 400, up to ").unwrap();
    assert_eq!(done_so_far, format!("interrupted: {} done", 400 - left));
    assert!(up_to.contains('/'), "{said}");
    assert_eq!(done(&setup, &["pending", "drop", "--all", "--yes", "--no-export"]), format!("{left} done\n"));
    let audit = json(&setup, &["audit", "-o", "json"]);
    assert_eq!(audit[1]["outcome"], said.trim());
    assert_eq!(audit[0]["matched"], left);
    assert!(audit[0]["who"].as_str().unwrap().contains('@'));
}

/// Memory does not grow with the number of entries, which take 84 bytes each in Redis.
#[tokio::test(flavor = "multi_thread")]
async fn a_million_pending_entries_are_listed_in_bounded_memory() {
    const ENTRIES: u64 = 1_000_000;
    const MIB_MAX: u64 = 100;
    let (setup, redis) = settled().await;
    let fill = "
        for i = 1, tonumber(ARGV[2]) do redis.call('XADD', KEYS[1], '*', 'l', ARGV[1]) end
        redis.call('XREADGROUP', 'GROUP', ARGV[3], 'gone', 'COUNT', ARGV[2], 'STREAMS', KEYS[1], '>')
        return 1";
    let payload = bytes::Bytes::from(codec::encode(&[like(1, 42)]));
    for step in 0..100_u16 {
        let arguments = [payload.clone(), (ENTRIES / 100).to_string().into(), GROUP.into()];
        let filled: u64 =
            redis.eval(fill, vec![stream(step % PARTITIONS)], arguments.to_vec()).await.unwrap();
        assert_eq!(filled, 1);
    }
    let status = json(&setup, &["status", "-o", "json"]);
    assert_eq!(status["total"]["pending"], ENTRIES);
    for arguments in [
        &["pending", "list"][..],
        &["pending", "list", "-o", "json"],
        &["pending", "retry", "--all", "--dry-run"],
    ] {
        let settings = [("REDIS_URL", setup.redis.url())];
        let mut list = program::command("likesctl", &settings).unwrap();
        let mut list = list.args(arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let (stdout, pid) = (list.stdout.take().unwrap(), list.id());
        let counted = std::thread::spawn(move || BufReader::new(stdout).split(b'\n').count() as u64);
        let mut most_kib = 0;
        let code = loop {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            most_kib = most_kib
                .max(peak.and_then(|kib| kib.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap_or(0));
            if let Some(ended) = list.try_wait().unwrap() {
                break ended.code();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert_eq!(code, Some(0));
        assert!((1..MIB_MAX << 10).contains(&most_kib), "{arguments:?}: {most_kib} KiB");
        let lines = counted.join().unwrap();
        assert!(lines >= ENTRIES || arguments.contains(&"--dry-run"), "{lines}");
    }
}
