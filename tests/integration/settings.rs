//! Invalid settings and unreachable servers: one line with the fix, and the documented exit code.

use std::collections::BTreeSet;

use crate::harness::{Ended, Setup, run};

/// Asserts that the error line names the setting, its value and the expected values.
fn assert_refused(program: &str, setting: &str, value: &str, allowed: &str) {
    let ended = run(program, &[], &[(setting, value)]);
    assert_eq!(ended.code, Some(2), "{setting}={value}: {}", ended.stderr);
    assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
    assert!(ended.stdout.is_empty());
    let line = ended.stderr.trim_end();
    assert!(line.starts_with(&format!("error: {setting}: ")), "{line}");
    assert!(line.contains(&format!("'{value}'")) && line.contains(allowed), "{line}");
}

#[test]
fn bad_settings_are_refused_in_one_line_with_exit_code_2() {
    for program in ["ingest", "consumer"] {
        assert_refused(program, "LIKES_PARTITIONS", "0", "from 1 to 1024");
        assert_refused(program, "LIKES_PARTITIONS", "many", "from 1 to 1024");
        assert_refused(program, "LIKES_STREAM", "a{b}", "characters a-z");
        assert_refused(program, "REDIS_TIMEOUT", "5", "like 250ms, 30s");
        assert_refused(program, "REDIS_TIMEOUT", "0s", "not zero");
        assert_refused(program, "LOG_FORMAT", "xml", "text, json");
        assert_refused(program, "RUST_LOG", "info,consumer=loud", "a level");
        assert_refused(program, "RUST_LOG", "loud", "a level");
        assert_refused(program, "RUST_LOG", "info,", "a level");
        assert_refused(program, "STARTUP_TIMEOUT", "584542046090y", "up to 366 days");
        assert_refused(program, "DRAIN_TIMEOUT", "0s", "not zero");
    }
    assert_refused("ingest", "INGEST_LISTEN", "localhost:8080", "127.0.0.1:8080");
    assert_refused("ingest", "INGEST_MAX_BODY", "0", "from 1 to 512MiB");
    assert_refused("ingest", "INGEST_BACKLOG_LIMIT", "0", "1..");
    assert_refused("ingest", "INGEST_MAX_CONNECTIONS", "0", "1..");
    assert_refused("ingest", "REDIS_URL_FILE", "", "a value is needed");
    assert_refused("ingest", "INGEST_ENTRY_LIKES", "10001", "1..=10000");
    assert_refused("ingest", "INGEST_QUEUE_LIKES", "-1", "");
    assert_refused("ingest", "INGEST_ADMIN_LISTEN", "127.0.0.1:8080", "another port");
    assert_refused("consumer", "BATCH_ROWS", "0", "from 1 to 100000");
    assert_refused("consumer", "BATCH_LINGER", "fast", "like 250ms, 30s");
    assert_refused("consumer", "CONSUMER_NAME", "a b", "without spaces");
    assert_refused("consumer", "CONSUMER_PARTITIONS", "4/4", "like 0-3,8");
    assert_refused("consumer", "CONSUMER_PARTITIONS", "ordinal/0", "ordinal/N");
    assert_refused("consumer", "CONSUMER_PARTITIONS", "ordinal/1", "ends in a hyphen and a number");
    assert_refused("consumer", "CLAIM_MIN_IDLE", "20s", "20s 10ms");
    assert_refused("consumer", "POSTGRES_POOLING", "statement", "session, transaction");
    assert_refused("consumer", "WRITE_TIMEOUT", "25d", "at most 24 days");
    assert_refused("consumer", "MAX_DELIVERIES", "0", "1..=1000000");
    assert_refused("ingest", "INGEST_AUTH", "password", "off, jwt, api-key");
    assert_refused("ingest", "INGEST_JWT_ALGORITHMS", "none", "RS256");
    assert_refused("ingest", "INGEST_USER_RATE", "20", "20/s");
    assert_refused("ingest", "INGEST_ADDRESS_RATE", "0/s", "20/s");
    assert_refused("ingest", "INGEST_TRUSTED_PROXIES", "proxy", "10.0.0.0/8");
    assert_refused("ingest", "INGEST_CORS_ORIGINS", "https://app.example.org/path", "no path");
    assert_refused("ingest", "INGEST_DOCS", "perhaps", "true, false");
    assert_refused("ingest", "INGEST_HEAD_TIMEOUT", "0s", "not zero");
    assert_refused("ingest", "REDIS_ACK", "replicas:0", "replicas:N");
}

#[test]
fn bad_usage_is_one_line_with_exit_code_2() {
    for (program, arguments) in
        [("ingest", vec!["--nonsense"]), ("consumer", vec!["surplus"]), ("likesctl", vec!["nonsense"])]
    {
        let ended = run(program, &arguments, &[]);
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
        assert!(ended.stderr.starts_with("error: "), "{}", ended.stderr);
    }
    let nothing_asked = run("likesctl", &[], &[]);
    assert_eq!(nothing_asked.code, Some(2));
    assert!(nothing_asked.stderr.contains("migrate"));
}

#[test]
fn urls_are_refused_without_repeating_their_secrets() {
    for (program, setting, url) in [
        ("ingest", "REDIS_URL", "http://:hunter2@127.0.0.1"),
        ("consumer", "REDIS_URL", "redis://:hunter2@127.0.0.1:port"),
        ("consumer", "DATABASE_URL", "postgres://u:hunter2@127.0.0.1:port/x"),
        ("consumer", "DATABASE_URL", "postgres://u:hunter2@127.0.0.1/x?sslmode=allow"),
        ("consumer", "DATABASE_URL", "hunter2"),
    ] {
        let ended = run(program, &["--rust-log", "trace"], &[(setting, url)]);
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
        assert!(ended.stderr.starts_with(&format!("error: {setting}: ")), "{}", ended.stderr);
        assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
    }
}

fn without_servers(program: &str, arguments: &[&str]) -> Ended {
    let settings = [
        ("REDIS_URL", "redis://:hunter2@127.0.0.1:1"),
        ("DATABASE_URL", "postgres://u:hunter2@127.0.0.1:1/x"),
        ("STARTUP_TIMEOUT", "300ms"),
        ("INGEST_LISTEN", "127.0.0.1:0"),
        ("INGEST_ADMIN_LISTEN", "127.0.0.1:0"),
        ("CONSUMER_ADMIN_LISTEN", "127.0.0.1:0"),
        ("RUST_LOG", "trace"),
    ];
    run(program, arguments, &settings)
}

#[test]
fn missing_servers_are_said_in_one_line_with_exit_code_1() {
    for (program, arguments, server) in [
        (
            "ingest",
            &[][..],
            "cannot reach Redis at 127.0.0.1:1 within 300ms: Connection refused (os error 111); start it or check REDIS_URL",
        ),
        (
            "consumer",
            &[],
            "cannot reach Redis at 127.0.0.1:1 within 300ms: Connection refused (os error 111); start it or check REDIS_URL",
        ),
        (
            "likesctl",
            &["migrate"],
            "cannot reach Postgres at 127.0.0.1:1 within 300ms: Connection refused (os error 111); start it or check DATABASE_URL",
        ),
    ] {
        let ended = without_servers(program, arguments);
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        let last = ended.stderr.lines().last().unwrap();
        assert_eq!(last, format!("error: {server}"));
        assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
        assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    }
}

/// A rejected login is not retried, because waiting would not help.
#[tokio::test(flavor = "multi_thread")]
async fn whom_a_server_does_not_let_in_is_told_at_once() {
    let setup = Setup::with_redis(&["--requirepass", "hunter2"]).await;
    let redis = setup.redis.url();
    let wrong_password = redis.replace("redis://", "redis://:hunter3@");
    let no_database = setup.database_url().replace("test_", "nothing_");
    for (program, arguments, setting, url) in [
        ("ingest", &[][..], "REDIS_URL", &redis),
        ("ingest", &[], "REDIS_URL", &wrong_password),
        ("likesctl", &["migrate"], "DATABASE_URL", &no_database),
    ] {
        let settings = [
            (setting, url.as_str()),
            ("STARTUP_TIMEOUT", "1h"),
            ("INGEST_LISTEN", "127.0.0.1:0"),
            ("INGEST_ADMIN_LISTEN", "127.0.0.1:0"),
        ];
        let ended = run(program, arguments, &settings);
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        let last = ended.stderr.lines().last().unwrap();
        assert!(last.starts_with("error: cannot connect to "), "{last}");
        assert!(last.ends_with(&format!("; check {setting}")), "{last}");
        assert!(!ended.stderr.contains("hunter"), "{}", ended.stderr);
    }
}

/// The kernel accepts connections for a frozen process.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_server_at_start_is_said_in_time() {
    let setup = Setup::with_own_postgres(&[]);
    let (redis, database) = (setup.redis.url(), setup.database_url());
    let settings = [
        ("REDIS_URL", redis.as_str()),
        ("DATABASE_URL", &database),
        ("CONSUMER_ADMIN_LISTEN", "127.0.0.1:0"),
        ("STARTUP_TIMEOUT", "500ms"),
    ];
    setup
        .frozen_postgres(async || {
            for (program, arguments) in [("likesctl", &["migrate"][..]), ("consumer", &[])] {
                let ended = run(program, arguments, &settings);
                assert_eq!(ended.code, Some(1), "{}", ended.stderr);
                let last = ended.stderr.lines().last().unwrap();
                assert!(last.starts_with("error: no reply from Postgres at "), "{last}");
                assert!(last.ends_with(" within 500ms; check the server and the network"), "{last}");
            }
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_is_said() {
    let setup = Setup::without_schema(&[]).await;
    let redis_port = setup.redis.port();
    for (program, setting) in [
        ("ingest", "INGEST_LISTEN"),
        ("ingest", "INGEST_ADMIN_LISTEN"),
        ("consumer", "CONSUMER_ADMIN_LISTEN"),
    ] {
        let taken = format!("127.0.0.1:{redis_port}");
        let mut settings = vec![("INGEST_LISTEN", "127.0.0.1:0"), ("INGEST_ADMIN_LISTEN", "127.0.0.1:0")];
        settings.push((setting, &taken));
        let ended = run(program, &[], &settings);
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        let expected = format!("error: {setting}: cannot listen on {taken}: ");
        assert!(ended.stderr.lines().last().unwrap().starts_with(&expected), "{}", ended.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_programs_must_agree_on_the_partitions() {
    let setup = Setup::new().await;
    let _ingest = setup.ingest(&[]);
    let redis_url = setup.redis.url();
    let database_url = setup.database_url();
    for (program, listen) in [("ingest", "INGEST_ADMIN_LISTEN"), ("consumer", "CONSUMER_ADMIN_LISTEN")] {
        let settings = [
            ("REDIS_URL", redis_url.as_str()),
            ("DATABASE_URL", &database_url),
            ("LIKES_PARTITIONS", "8"),
            ("INGEST_LISTEN", "127.0.0.1:0"),
            (listen, "127.0.0.1:0"),
        ];
        let ended = run(program, &[], &settings);
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        assert_eq!(
            ended.stderr.lines().last().unwrap(),
            "error: LIKES_PARTITIONS: '8' differs from the partition count in likes:settings in Redis; expected 4 or unset (likesctl partitions grow raises the count)"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_come_from_files_too() {
    let setup = Setup::new().await;
    let write = |name: &str, url: &str| {
        let file = setup.folder().join(name);
        std::fs::write(&file, format!("{url}\n")).unwrap();
        file.display().to_string()
    };
    let redis = write("redis-url", &setup.redis.url());
    let database = write("database-url", &setup.database_url());
    let settings = [
        ("REDIS_URL_FILE", redis.as_str()),
        ("DATABASE_URL_FILE", &database),
        ("LIKES_PARTITIONS", "4"),
        ("CONSUMER_ADMIN_LISTEN", "127.0.0.1:0"),
    ];
    let settings: Vec<(&str, String)> =
        settings.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    let log = setup.folder().join("log");
    let consumer = devstack::program::Program::start("consumer", &settings, &log).unwrap();
    consumer.wait_ready(crate::harness::SOON).unwrap();

    let missing = run("ingest", &[], &[("REDIS_URL_FILE", "/nowhere/redis-url")]);
    assert_eq!(missing.code, Some(2), "{}", missing.stderr);
    assert!(
        missing.stderr.contains("REDIS_URL_FILE: '/nowhere/redis-url' can't be read"),
        "{}",
        missing.stderr
    );
    let both = run("ingest", &[], &[("REDIS_URL_FILE", redis.as_str()), ("REDIS_URL", "redis://127.0.0.1")]);
    assert_eq!(both.code, Some(2), "{}", both.stderr);
}

/// `--help` documents all settings except those of OpenTelemetry, which are in docs/telemetry.md. `.env.example` lists all
/// of them.
#[test]
fn every_setting_is_documented_and_in_the_example() {
    let example = include_str!("../../.env.example");
    let listed: BTreeSet<String> = example
        .lines()
        .filter_map(|line| line.trim_start_matches(['#', ' ']).split_once('='))
        .map(|(name, _)| name)
        .filter(|name| name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'))
        .map(str::to_owned)
        .collect();
    let mut documented = BTreeSet::new();
    for (program, arguments) in [
        ("ingest", &["--help"][..]),
        ("consumer", &["--help"]),
        ("likesctl", &["migrate", "--help"]),
        ("likesctl", &["partitions", "grow", "--help"]),
        ("likesctl", &["doctor", "--help"]),
    ] {
        let help = run(program, arguments, &[]);
        assert_eq!(help.code, Some(0));
        let words: Vec<&str> = help.stdout.split_whitespace().collect();
        for part in words.join(" ").split("[env: ").skip(1) {
            documented.insert(part.split([']', '=']).next().unwrap().trim().to_owned());
        }
        assert_eq!(help.stdout.contains("docs/telemetry.md"), program != "likesctl", "{}", help.stdout);
    }
    assert!(documented.len() >= 20, "{documented:?}");
    assert!(!documented.iter().any(|name| name.starts_with("OTEL_")), "{documented:?}");
    documented.extend(documented_for_opentelemetry());
    assert_eq!(listed, documented);
}

/// Variables in the tables of docs/telemetry.md. The second table lists exporter variables without their prefix.
fn documented_for_opentelemetry() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let first_cells =
        include_str!("../../docs/telemetry.md").lines().filter_map(|line| line.split('|').nth(1));
    for name in first_cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)) {
        if name.starts_with("OTEL_") && !name.ends_with('…') {
            names.insert(name.to_owned());
        } else if name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_') {
            names.extend(
                ["", "TRACES_", "METRICS_"].map(|signal| format!("OTEL_EXPORTER_OTLP_{signal}{name}")),
            );
        }
    }
    names
}

/// `?` is invalid for every variable except the service name.
#[test]
fn every_variable_of_opentelemetry_is_checked() {
    for name in documented_for_opentelemetry().into_iter().filter(|name| name != "OTEL_SERVICE_NAME") {
        let exported = [("OTEL_TRACES_EXPORTER", "otlp"), ("OTEL_METRICS_EXPORTER", "otlp")];
        let settings = [&exported[..], &[(name.as_str(), "?")]].concat();
        let ended = run("ingest", &[], &settings);
        assert_eq!(ended.code, Some(2), "{name}: {}", ended.stderr);
        assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
        assert!(ended.stderr.starts_with(&format!("error: {name}: ")), "{}", ended.stderr);
    }
}
