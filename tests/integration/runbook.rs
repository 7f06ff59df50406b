//! Many problems at once: each is reported, and the runbook's commands fix it.

use std::fs;

use fred::prelude::{Client, StreamsInterface};
use shared::wire::codec;

use crate::{
    harness::{GROUP, PARTITIONS, Setup, append_raw, dead_stream, eventually, like, likes, stream},
    likesctl::{ctl, done, json, settled},
};

const DEAD_CONSUMER: &str = "host-gone-7";
const CRASHED_CONSUMER: &str = "host-crashed-8";

/// Returns the words of a command in the runbook, with its placeholders replaced.
fn runbook_command(command: &str, placeholders: &[(&str, &str)]) -> Vec<String> {
    let runbook = include_str!("../../docs/runbook.md");
    assert!(
        runbook.lines().any(|line| line == format!("likesctl {command}")),
        "not in the runbook: {command}"
    );
    let words = command.split(' ').map(|word| {
        placeholders.iter().find(|(name, _)| *name == word).map_or(word, |(_, value)| value).to_owned()
    });
    words.collect()
}

/// Runs a command of the runbook, and checks that it succeeds without skipped entries.
fn fix(setup: &Setup, command: &str, placeholders: &[(&str, &str)]) {
    let mut words = runbook_command(command, placeholders);
    words.extend(["--yes", "--reason-text", "the test"].map(str::to_owned));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let ended = ctl(setup, &words);
    assert_eq!(ended.code, Some(0), "{command}: {}{}", ended.stdout, ended.stderr);
}

async fn read_as(redis: &Client, consumer: &str, partition: u16, count: u64) {
    let read: fred::prelude::Value =
        redis.xreadgroup(GROUP, consumer, Some(count), None, false, stream(partition), ">").await.unwrap();
    assert!(!read.is_null());
}

/// Appends dead letters of four reasons, five of each; the storable ones have the users 20,001 to 20,010.
async fn add_dead_letters(redis: &Client) {
    for number in 0..20_u64 {
        let good = codec::encode(&[like(20_001 + number % 10, 42)]);
        let (reason, payload): (_, &[u8]) = match number / 5 {
            0 => ("rejected", &good),
            1 => ("max_deliveries", &good),
            2 => ("undecodable", b"\xc1"),
            _ => ("unknown_version", &[0x92, 9, 0x93, 1, 2, 3]),
        };
        let origin = format!("{}/17000000000{number:02}-0", stream(3));
        let fields: Vec<(&str, bytes::Bytes)> = vec![
            ("origin", origin.into()),
            ("deliveries", "6".into()),
            ("consumer", "host-1".into()),
            ("dead_at", "1700000000000".into()),
            ("l", bytes::Bytes::copy_from_slice(payload)),
            ("reason", reason.into()),
            ("detail", "by a test".into()),
        ];
        redis.xadd::<String, _, _, _, _>(dead_stream(3), false, None::<()>, "*", fields).await.unwrap();
    }
}

/// Ids of entries with a problem.
struct Faults {
    /// Delivered seven times.
    suspect: String,
    /// Acknowledged, and not in the table.
    missing: String,
}

async fn create_faults(setup: &Setup, redis: &Client) -> Faults {
    // A dead consumer with 5,000 pending entries.
    setup.append(&likes(5_000), 1).await;
    for partition in 0..PARTITIONS {
        read_as(redis, DEAD_CONSUMER, partition, 1_250).await;
    }
    // An entry that was delivered seven times.
    let suspect = append_raw(redis, 1, &codec::encode(&[like(10_001, 42)])).await;
    read_as(redis, CRASHED_CONSUMER, 1, 1).await;
    redis
        .xclaim::<fred::prelude::Value, _, _, _, _>(
            stream(1),
            GROUP,
            CRASHED_CONSUMER,
            0,
            &suspect,
            None,
            None,
            Some(7),
            false,
            true,
        )
        .await
        .unwrap();
    // An entry that was acknowledged and is not in the table.
    let missing = append_raw(redis, 0, &codec::encode(&[like(10_002, 42)])).await;
    read_as(redis, "host-liar-9", 0, 1).await;
    assert_eq!(redis.xack::<u64, _, _, _>(stream(0), GROUP, &missing).await.unwrap(), 1);
    add_dead_letters(redis).await;
    done(setup, &["pause", "-p", "2", "--yes"]);
    Faults { suspect, missing }
}

/// Checks that each problem is reported.
fn check_reports(setup: &Setup, faults: &Faults) {
    let status = json(setup, &["status", "-o", "json"]);
    assert_eq!(status["total"]["pending"], 5_001, "{status:#}");
    assert_eq!(status["total"]["dead"], 20);
    assert_eq!(status["total"]["paused"], 1);
    let gone = |name: &str| {
        let consumers = status["consumers"].as_array().unwrap();
        consumers.iter().find(|consumer| consumer["name"] == name).unwrap().clone()
    };
    assert_eq!(
        (gone(DEAD_CONSUMER)["state"].as_str(), gone(DEAD_CONSUMER)["pending"].as_u64()),
        (Some("gone"), Some(5_000))
    );
    let doctor = ctl(setup, &["doctor"]);
    assert_eq!(doctor.code, Some(1), "{}", doctor.stdout);
    for expected in [
        "no live consumers".to_owned(),
        format!("{DEAD_CONSUMER} is gone and has 5,000 pending entries"),
        format!("1/{} was delivered 7 times", faults.suspect),
        "partitions 2".to_owned(),
        "20 dead letters".to_owned(),
        format!("1 acknowledged like is missing from the table, first in entry 0/{}", faults.missing),
    ] {
        assert!(doctor.stdout.contains(&expected), "{expected} is not in:\n{}", doctor.stdout);
    }
    let verify = ctl(setup, &["verify"]);
    assert_eq!(verify.code, Some(5), "{}", verify.stdout);
}

/// Fixes each problem as the runbook says.
fn fix_all(setup: &Setup, faults: &Faults) {
    let folder = setup.folder().join("purged");
    fs::create_dir_all(&folder).unwrap();
    fix(setup, "consumers remove NAME", &[("NAME", DEAD_CONSUMER)]);
    let entry = format!("1/{}", faults.suspect);
    let shown = ctl(setup, &["pending", "show", &entry]);
    assert!(shown.stdout.contains("user 10001  post 42"), "{}", shown.stdout);
    done(setup, &["pending", "retry", &entry, "--yes"]);
    fix(setup, "dead retry --reason rejected", &[]);
    fix(setup, "dead retry --reason max_deliveries", &[]);
    let file = folder.join("undecodable.ndjson").display().to_string();
    done(setup, &["dead", "purge", "--reason", "undecodable", "--export", &file, "--yes"]);
    assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), 5);
    let file = folder.join("unknown.ndjson").display().to_string();
    done(setup, &["dead", "purge", "--reason", "unknown_version", "--export", &file, "--yes"]);
    let (partition, id) = ("0", faults.missing.as_str());
    fix(setup, "reprocess -p PARTITION --from ID --to ID", &[("PARTITION", partition), ("ID", id)]);
    fix(setup, "resume", &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_problem_is_reported_and_fixed_by_the_runbook() {
    let (setup, redis) = settled().await;
    let faults = create_faults(&setup, &redis).await;
    check_reports(&setup, &faults);
    fix_all(&setup, &faults);
    let consumer = setup.consumer(&[("STREAM_RETENTION", "1h")]);
    let drained = ctl(&setup, &["drain", "--timeout", "60s"]);
    assert_eq!(drained.code, Some(0), "{}{}", drained.stdout, drained.stderr);

    let verified = json(&setup, &["verify", "-o", "json"]);
    assert_eq!(verified["missing"], 0, "{verified:#}");
    // 5,000 likes, the suspect entry, the missing like and the dead letters.
    setup.wait_for_rows(5_000 + 2 + 10).await;
    eventually("doctor has nothing to report", async || {
        let doctor = json(&setup, &["doctor", "-o", "json"]);
        doctor.as_array().unwrap().iter().all(|finding| {
            finding["state"] != "fail" && finding["check"] != "dead letters" || finding["state"] == "ok"
        })
    })
    .await;
    let audit = json(&setup, &["audit", "-o", "json"]);
    let commands: Vec<&str> =
        audit.as_array().unwrap().iter().map(|row| row["command"].as_str().unwrap()).collect();
    assert_eq!(
        commands,
        [
            "resume",
            "reprocess",
            "dead purge",
            "dead purge",
            "dead retry",
            "dead retry",
            "pending retry",
            "consumers remove",
            "pause"
        ]
    );
    assert!(audit.as_array().unwrap().iter().all(|row| row["outcome"].is_string()), "{audit:#}");
    drop(consumer);
}
