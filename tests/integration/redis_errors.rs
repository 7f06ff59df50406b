//! Redis replies with an error: a reply is never taken for an unreachable server, and all programs name it.

use std::{fs, path::PathBuf};

use devstack::{admin, program::Program, redis_server::RedisServer};

use crate::harness::{Ended, SOON, Setup, eventually, likes, post, problem, run};

/// A folder in the place of the snapshot, which Redis cannot replace. It then refuses writes, PING and to end.
struct InTheWay(PathBuf);

impl InTheWay {
    fn of(redis: &RedisServer) -> Self {
        let folder = redis.folder().join("dump.rdb");
        fs::create_dir_all(folder.join("not empty")).unwrap();
        redis.command(&["BGSAVE"]).unwrap();
        Self(folder)
    }
}

impl Drop for InTheWay {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const LIKE: &str = r#"{"user_id": 7, "post_id": 42}"#;

fn readiness(program: &Program) -> String {
    admin::get(program.admin(), "/readyz?verbose").unwrap().1
}

fn ctl(setup: &Setup, arguments: &[&str]) -> Ended {
    let settings = [("REDIS_URL", setup.redis.url()), ("DATABASE_URL", setup.database_url())];
    run("likesctl", arguments, &settings.each_ref().map(|(name, value)| (*name, value.as_str())))
}

/// Sends a like until it is refused with a code, and returns the detail of the refusal.
async fn refusal(ingest: &Program, code: &str) -> String {
    let mut detail = String::new();
    eventually(code, async || {
        let response = post(ingest, LIKE).await;
        let is_refused = response.status == 503 && problem(&response) == code;
        let body: serde_json::Value = serde_json::from_slice(&response.body).unwrap();
        body["detail"].as_str().unwrap_or_default().clone_into(&mut detail);
        is_refused
    })
    .await;
    detail
}

/// Checks that all programs name an error of Redis, and that none of them takes Redis for unreachable.
async fn is_named_everywhere(setup: &Setup, programs: [&Program; 2], error: &str, remedy: &str) {
    for program in programs {
        eventually(error, async || readiness(program).contains(error)).await;
        eventually("the log names it", async || program.log_text().contains(error)).await;
    }
    let status = ctl(setup, &["status"]);
    assert_eq!(status.code, Some(0), "{}", status.stderr);
    assert!(status.stdout.contains(error) && status.stdout.contains(remedy), "{}", status.stdout);
    let check = ctl(setup, &["status", "--check"]);
    assert!(check.code == Some(2) && check.stdout.contains(error), "{}", check.stdout);
    let doctor = ctl(setup, &["doctor"]);
    assert!(doctor.stdout.contains(error) && doctor.stdout.contains(remedy), "{}", doctor.stdout);
    assert!(!doctor.stdout.contains("reach") && doctor.stdout.contains("backlog"), "{}", doctor.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_snapshot_is_named_and_recovered_from() {
    let setup = Setup::with_redis(&["--save", "3600 1", "--dbfilename", "dump.rdb"]).await;
    let (ingest, consumer) = (setup.ingest(&[]), setup.consumer(&[]));
    assert_eq!(post(&ingest, LIKE).await.status, 202);
    let in_the_way = InTheWay::of(&setup.redis);
    let detail = refusal(&ingest, "redis-refused").await;
    assert!(detail.starts_with("Redis rejected the write (MISCONF). No like was accepted."), "{detail}");
    is_named_everywhere(&setup, [&ingest, &consumer], "MISCONF", "run BGSAVE").await;
    let status = ctl(&setup, &["status"]).stdout;
    assert!(status.contains("1 live consumer"), "{status}");

    drop(in_the_way);
    setup.redis.command(&["BGSAVE"]).unwrap();
    eventually("202", async || post(&ingest, LIKE).await.status == 202).await;
    setup.wait_for_rows(1).await;
    for program in [&ingest, &consumer] {
        program.wait_ready(SOON).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_redis_is_named_and_recovered_from() {
    let setup = Setup::new().await;
    let (ingest, consumer) = (setup.ingest(&[]), setup.consumer(&[]));
    assert_eq!(post(&ingest, LIKE).await.status, 202);
    setup.wait_for_rows(1).await;
    setup.redis.command(&["REPLICAOF", "127.0.0.1", "1"]).unwrap();
    let detail = refusal(&ingest, "redis-read-only").await;
    assert!(detail.contains("(READONLY). No like was accepted."), "{detail}");
    is_named_everywhere(&setup, [&ingest, &consumer], "READONLY", "REPLICAOF NO ONE").await;
    let primary = "replica of 127.0.0.1:1";
    eventually("its primary is named", async || readiness(&ingest).contains(primary)).await;

    setup.redis.command(&["REPLICAOF", "NO", "ONE"]).unwrap();
    eventually("202", async || post(&ingest, LIKE).await.status == 202).await;
    setup.append(&likes(100), 10).await;
    setup.wait_for_rows(100).await;
    for program in [&ingest, &consumer] {
        program.wait_ready(SOON).unwrap();
    }
}

/// An operator may rename EVAL, or not grant it to the user.
#[tokio::test(flavor = "multi_thread")]
async fn refused_scripts_are_named() {
    let renamed =
        Setup::with_redis(&["--rename-command", "EVAL", "", "--rename-command", "EVALSHA", ""]).await;
    let not_granted = Setup::new().await;
    not_granted.redis.command(&["ACL", "SETUSER", "default", "-eval", "-evalsha"]).unwrap();
    for (setup, cause) in [(&renamed, "ERR unknown command 'EVAL'"), (&not_granted, "NOPERM")] {
        let consumer = setup.start("consumer", &[]);
        let said = format!("Redis refuses EVAL: {cause}");
        eventually("the consumer names it", async || readiness(&consumer).contains(&said)).await;
        let text = readiness(&consumer);
        assert!(text.contains("consumers and likesctl need scripts") && !text.contains("local "), "{text}");
        assert!(consumer.log_text().contains(&said) && !consumer.log_text().contains("local "));
        let doctor = ctl(setup, &["doctor"]).stdout;
        assert!(doctor.contains(&said) && !doctor.contains("local "), "{doctor}");
    }
}

/// The file with the URL is read again for each connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_password_is_read_without_a_restart() {
    let setup = Setup::new().await;
    let rotate = |password: &str| {
        let password = format!(">{password}");
        setup
            .redis
            .command(&["ACL", "SETUSER", "likes", "on", "resetpass", &password, "~*", "+@all"])
            .unwrap();
        setup.redis.command(&["CLIENT", "KILL", "USER", "likes"]).unwrap();
    };
    let file = setup.folder().join("redis-url");
    let write = |text: &str| {
        let next = setup.folder().join("next");
        fs::write(&next, text).unwrap();
        fs::rename(next, &file).unwrap();
    };
    let url = |password: &str| setup.redis.url().replace("redis://", &format!("redis://likes:{password}@"));
    rotate("hunter1");
    write(&url("hunter1"));
    let path = file.display().to_string();
    let settings = [("REDIS_URL_FILE", path.as_str())];
    let (ingest, consumer) = (setup.ingest(&settings), setup.consumer(&settings));
    assert_eq!(post(&ingest, LIKE).await.status, 202);

    rotate("hunter2");
    for program in [&ingest, &consumer] {
        eventually("the refusal is quoted", async || readiness(program).contains("WRONGPASS")).await;
        eventually("the log quotes it", async || program.log_text().contains("WRONGPASS")).await;
    }
    write("");
    for program in [&ingest, &consumer] {
        let empty = format!("REDIS_URL_FILE: {path} is empty");
        eventually("the empty file is named", async || readiness(program).contains(&empty)).await;
    }
    write(&url("hunter2"));
    eventually("202", async || post(&ingest, LIKE).await.status == 202).await;
    setup.append(&likes(100), 10).await;
    setup.wait_for_rows(100).await;
    for program in [&ingest, &consumer] {
        let text = program.log_text() + &readiness(program);
        assert!(!text.contains("hunter"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_programs_connect_over_a_unix_socket() {
    let setup = Setup::with_redis(&["--unixsocket", "redis.sock"]).await;
    let socket = setup.redis.folder().join("redis.sock");
    let url = format!("unix://{}?db=0", socket.display());
    let settings = [("REDIS_URL", url.as_str())];
    let (ingest, _consumer) = (setup.ingest(&settings), setup.consumer(&settings));
    assert_eq!(post(&ingest, LIKE).await.status, 202);
    setup.wait_for_rows(1).await;
    let status = run("likesctl", &["status"], &settings);
    assert!(status.stdout.contains("Redis at /"), "{}{}", status.stdout, status.stderr);
}
