//! The demo, chaos runs and the development stack: correct verdicts, and no leftovers.

use std::{
    fs,
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
};

use devstack::{
    postgres_server::{PostgresOptions, PostgresServer},
    process::{Lifetime, is_running, wait_until},
    program,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::harness::SOON;

/// Command of `devstack` with a private temporary folder, so that leftovers can be found.
fn devstack(arguments: &[&str], temporary: &tempfile::TempDir) -> Command {
    let settings = [("TMPDIR", temporary.path().display().to_string())];
    let mut command = program::command("devstack", &settings).unwrap();
    // Files that it writes to the working directory are removed with the folder.
    command.args(arguments).current_dir(temporary.path());
    command
}

/// Temporary folder with the permissions of the system folder, so that the user of Postgres can use it.
fn temporary_folder() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    folder
}

/// Lock of the well-known ports. Of two stacks that start at the same time, one would find a port free and then in use.
fn ports_of_up() -> MutexGuard<'static, ()> {
    static PORTS: Mutex<()> = Mutex::new(());
    PORTS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn left_behind(temporary: &tempfile::TempDir) -> Vec<String> {
    let names = fs::read_dir(temporary.path()).unwrap().map(|entry| entry.unwrap().file_name());
    names.map(|name| name.into_string().unwrap()).filter(|name| name.starts_with("likestream-")).collect()
}

#[test]
fn the_demo_passes_and_writes_its_report() {
    let temporary = temporary_folder();
    let json = temporary.path().join("demo.json");
    let arguments = ["demo", "--likes", "20000", "--duplicates", "20", "--json", json.to_str().unwrap()];
    let output = devstack(&arguments, &temporary).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{stdout}{stderr}");
    assert_eq!(
        stdout.lines().last(),
        Some("PASS: every accepted like is in the table exactly once"),
        "{stdout}"
    );
    let figures: serde_json::Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    assert_eq!(
        (&figures["accepted"], &figures["lost"], &figures["duplicated"]),
        (&20_000.into(), &0.into(), &0.into())
    );
    assert_eq!(figures["rows"], figures["distinct"]);
    let (distinct, transactions) =
        (figures["distinct"].as_u64().unwrap(), figures["transactions"].as_u64().unwrap());
    assert!((15_500..=16_500).contains(&distinct), "{distinct}");
    assert!(transactions <= 2_000, "{transactions}");
    assert_eq!(left_behind(&temporary), [""; 0]);
}

/// Short version of `make chaos`.
#[test]
fn chaos_causes_no_loss_and_no_duplicates() {
    let kinds = [
        "failover of Postgres",
        "slow link to Redis",
        "rotated password of Postgres",
        "rotated passwords of Redis",
        "dropped key",
        "another column type",
        "consumer of another database",
        "flushed Redis",
    ];
    chaos("one", "716266", "60s", &kinds);
}

#[test]
fn chaos_on_a_cluster_causes_no_loss_and_no_duplicates() {
    let kinds = [
        "slot migration",
        "kill -9 of Redis",
        "dropped key",
        "consumer of another database",
        "flushed Redis",
    ];
    chaos("cluster", "899332", "60s", &kinds);
}

/// Runs chaos with a seed under which these kinds of faults are among the first.
fn chaos(redis: &str, seed: &str, duration: &str, kinds: &[&str]) {
    let temporary = temporary_folder();
    let json = temporary.path().join("chaos.json");
    let json = json.to_str().unwrap();
    let how =
        ["chaos", "--redis", redis, "--seed", seed, "--duration", duration, "--rate", "300", "--json", json];
    let output = devstack(&how, &temporary).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{stdout}{stderr}");
    assert!(stderr.contains(&format!("SEED={seed}")), "{stderr}");
    let figures: serde_json::Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    let faults = figures["faults"].as_object().unwrap();
    let count: u64 = faults.values().map(|count| count.as_u64().unwrap()).sum();
    assert!(count >= 4, "{count} faults");
    assert!(kinds.iter().all(|kind| faults.contains_key(*kind)), "{faults:?}");
    assert!(figures["dead_lettered"].as_u64().unwrap() > 0 && figures["stored"].as_u64().unwrap() > 1_000);
    assert_eq!(left_behind(&temporary), [""; 0]);
}

/// Starts a demo and waits until all its processes run.
fn running_demo(temporary: &tempfile::TempDir) -> Child {
    let mut command = devstack(&["demo", "--likes", "50000000"], temporary);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let started = wait_until(SOON, || left_behind(temporary).len() == 3 && consumers_are_ready(temporary));
    assert!(started, "{:?}", left_behind(temporary));
    child
}

fn consumers_are_ready(temporary: &tempfile::TempDir) -> bool {
    let Some(logs) = left_behind(temporary).into_iter().find(|name| name.starts_with("likestream-logs-"))
    else {
        return false;
    };
    ["consumer-1.log", "consumer-2.log"].into_iter().all(|log| {
        let log = temporary.path().join(&logs).join(log);
        fs::read_to_string(log).is_ok_and(|text| text.contains("partitions assigned"))
    })
}

#[test]
fn an_interrupted_demo_cleans_up() {
    let temporary = temporary_folder();
    let mut demo = running_demo(&temporary);
    kill(Pid::from_raw(demo.id().cast_signed()), Signal::SIGINT).unwrap();
    assert_eq!(demo.wait().unwrap().code(), Some(130));
    assert_eq!(left_behind(&temporary), [""; 0]);
}

#[test]
fn servers_end_with_the_process_that_started_them() {
    let temporary = temporary_folder();
    let mut demo = running_demo(&temporary);
    demo.kill().unwrap();
    demo.wait().unwrap();
    // Only the folder of logs is left, because its owner was killed.
    let gone =
        wait_until(SOON, || left_behind(&temporary).iter().all(|name| name.starts_with("likestream-logs-")));
    assert!(gone, "{:?}", left_behind(&temporary));
}

#[test]
fn a_stack_runs_until_it_is_stopped() {
    let _ports = ports_of_up();
    let temporary = temporary_folder();
    let state = temporary.path().join("state.json");
    let run = |command: &str| {
        let output = devstack(&["--state", state.to_str().unwrap(), command], &temporary).output().unwrap();
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
        (output.status.code(), said)
    };
    assert_eq!(run("down"), (Some(0), "the stack is not running\n".to_owned()));
    assert_eq!(run("status").0, Some(3));

    let (code, said) = run("up");
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = run("status");
    assert_eq!(
        (code, said.matches("ready").count(), said.matches("running").count()),
        (Some(0), 3, 2),
        "{said}"
    );
    assert!(run("up").1.starts_with("the stack is already running"));
    assert!(run("logs").1.contains("listening"));

    // A crashed process is reported, and no data are removed.
    let parts: serde_json::Value = serde_json::from_slice(&fs::read(&state).unwrap()).unwrap();
    let pid = i32::try_from(parts["parts"][1]["pid"].as_i64().unwrap()).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    assert!(wait_until(SOON, || run("status").0 == Some(3)));
    let (code, said) = run("up");
    assert!(code == Some(3) && said.contains("unhealthy"), "{said}");
    assert_eq!(left_behind(&temporary).len(), 3);

    assert_eq!(run("down").0, Some(0));
    assert_eq!(run("status").0, Some(3));
    assert_eq!(left_behind(&temporary), [""; 0]);
}

#[test]
fn an_interrupted_start_leaves_nothing_running() {
    let _ports = ports_of_up();
    let temporary = temporary_folder();
    let state = temporary.path().join("state.json");
    let arguments = ["--state", state.to_str().unwrap(), "up"];
    let mut up =
        devstack(&arguments, &temporary).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    assert!(wait_until(SOON, || !left_behind(&temporary).is_empty()));
    kill(Pid::from_raw(up.id().cast_signed()), Signal::SIGINT).unwrap();
    assert_eq!(up.wait().unwrap().code(), Some(130));
    assert_eq!(left_behind(&temporary), [""; 0]);
    assert!(!state.exists());
}

#[test]
fn the_demo_reports_which_process_died() {
    let temporary = temporary_folder();
    let mut command = devstack(&["demo", "--likes", "50000000"], &temporary);
    let mut demo = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    assert!(wait_until(SOON, || left_behind(&temporary).len() == 3 && consumers_are_ready(&temporary)));
    let server = fs::read_dir(temporary.path()).unwrap().map(|entry| entry.unwrap().path());
    let folder =
        server.into_iter().find(|path| path.to_string_lossy().contains("likestream-postgres-")).unwrap();
    let pid = fs::read_to_string(folder.join("data/postmaster.pid")).unwrap();
    kill(Pid::from_raw(pid.lines().next().unwrap().parse().unwrap()), Signal::SIGKILL).unwrap();
    assert_eq!(demo.wait().unwrap().code(), Some(1));
    let mut said = String::new();
    std::io::Read::read_to_string(&mut demo.stderr.take().unwrap(), &mut said).unwrap();
    assert!(said.lines().last().unwrap().starts_with("error: postgres exited: "), "{said}");
    assert_eq!(left_behind(&temporary), [""; 0]);
}

#[test]
fn a_postgres_that_cannot_start_reports_the_reason() {
    let settings = vec![("shared_buffers".to_owned(), "nonsense".to_owned())];
    let started = PostgresServer::start(
        PostgresOptions { port: Some(1), settings, ..PostgresOptions::default() },
        Lifetime::Attached,
    );
    let error = started.unwrap_err().to_string();
    assert!(error.starts_with("postgres exited: ") && error.contains("shared_buffers"), "{error}");
}

/// The command can reach ingest and Redis, its child processes end with it, and its exit code is returned.
#[test]
fn a_command_runs_with_ingest_and_its_exit_code_is_returned() {
    let temporary = temporary_folder();
    let script = r#"
        [ "$1" = --strange ] && command -v redis-cli >/dev/null
        sleep 600 </dev/null >/dev/null 2>&1 & echo "$!"
        redis-cli -u "$REDIS_URL" XLEN 'likes:{0}' && echo "$LIKES_URL" "$LIKES_ADMIN_URL" && exit 7"#;
    let arguments = ["run", "--ingest", "LIKES_PARTITIONS=3", "--", "sh", "-c", script, "sh", "--strange"];
    let output = devstack(&arguments, &temporary).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(7), "{stdout}{stderr}");
    assert_eq!(stdout.matches("http://127.0.0.1:").count(), 2, "{stdout}");
    let sleeper = Pid::from_raw(stdout.lines().next().unwrap().parse().unwrap());
    assert!(wait_until(SOON, || !is_running(sleeper)));
    assert_eq!(left_behind(&temporary), [""; 0]);

    let bad = devstack(&["run", "--ingest", "LIKES_PARTITIONS", "true"], &temporary).output().unwrap();
    assert_eq!(bad.status.code(), Some(2));
    let bad = devstack(&["run", "--ingest", "LIKES_PARTITIONS=0", "true"], &temporary).output().unwrap();
    assert_eq!(bad.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&bad.stderr).contains("LIKES_PARTITIONS"));
    assert_eq!(left_behind(&temporary), [""; 0]);
}
