//! Invalid settings and unreachable servers: one line with the fix, and the documented exit code.

use shared::telemetry::otel_variables::otel_variables;

use crate::harness::{Ended, Setup, run};

/// The line must be the setting, the value, the problem, and the expected value.
fn assert_refused(program: &str, setting: &str, value: &str, problem: &str) {
    let ended = run(program, &[], &[(setting, value)]);
    assert_eq!(ended.code, Some(2), "{setting}={value}: {}", ended.stderr);
    assert!(ended.stdout.is_empty());
    assert_eq!(ended.stderr, format!("error: {setting}: '{value}' {problem}\n"));
}

#[test]
fn invalid_settings_are_refused_in_one_line_with_exit_code_2() {
    let duration = "is not a duration up to 366 days; expected a value such as 250ms, 30s or 5m";
    let zero = "is zero; expected a duration greater than zero, such as 250ms, 30s or 5m";
    let directives = "is not valid; expected a level or directives such as info,consumer=debug";
    let address =
        "is not valid; expected an IP address and a port, such as 127.0.0.1:8080, 0.0.0.0:8080 or [::1]:8080";
    let prefix = "is not valid; expected 1 to 128 of the characters a-z A-Z 0-9 . _ : -";
    let out_of = |range: &str| format!("is out of range; expected an integer {range}");
    for program in ["ingest", "consumer"] {
        assert_refused(program, "LIKES_PARTITIONS", "0", &out_of("from 1 to 1024"));
        assert_refused(program, "LIKES_PARTITIONS", "1025", &out_of("from 1 to 1024"));
        assert_refused(
            program,
            "LIKES_PARTITIONS",
            "many",
            "is not a number; expected an integer from 1 to 1024",
        );
        assert_refused(program, "LIKES_STREAM", "a{b}", prefix);
        assert_refused(program, "REDIS_TIMEOUT", "5", duration);
        assert_refused(program, "REDIS_TIMEOUT", "0s", zero);
        assert_refused(program, "LOG_FORMAT", "xml", "is not valid; expected text or json");
        assert_refused(program, "RUST_LOG", "info,consumer=loud", directives);
        assert_refused(program, "RUST_LOG", "loud", directives);
        assert_refused(program, "RUST_LOG", "info,", directives);
        assert_refused(program, "DRAIN_TIMEOUT", "584542046090y", duration);
        assert_refused(program, "DRAIN_TIMEOUT", "0s", zero);
    }
    assert_refused("ingest", "INGEST_LISTEN", "localhost:8080", address);
    let size = "is not valid; expected a size from 1 byte to 512MiB, such as 16KiB or 4096";
    assert_refused("ingest", "INGEST_MAX_BODY", "0", size);
    assert_refused("ingest", "INGEST_BACKLOG_LIMIT", "0", &out_of("of at least 1"));
    assert_refused("ingest", "INGEST_MAX_CONNECTIONS", "0", &out_of("from 1 to 1000000"));
    assert_refused("ingest", "REDIS_URL_FILE", "", "is empty; expected a value");
    assert_refused("ingest", "INGEST_ENTRY_LIKES", "10001", &out_of("from 1 to 10000"));
    assert_refused("ingest", "INGEST_QUEUE_LIKES", "-1", &out_of("from 1 to 1000000"));
    assert_refused(
        "ingest",
        "INGEST_ADMIN_LISTEN",
        "127.0.0.1:8080",
        "is also INGEST_LISTEN; expected another port",
    );
    assert_refused("consumer", "BATCH_ROWS", "0", &out_of("from 1 to 100000"));
    assert_refused("consumer", "BATCH_LINGER", "fast", duration);
    let name = "is not valid; expected 1 to 128 printable ASCII characters without spaces";
    assert_refused("consumer", "CONSUMER_NAME", "a b", name);
    let reserved = "is reserved for reassigned entries; expected another name";
    assert_refused("consumer", "CONSUMER_NAME", "likesctl", reserved);
    let assignment = "is not valid; expected partitions from 0 to 1023, such as 0-3,8, or a share counted from 0, such as 2/4, \
        or auto, or ordinal/4";
    assert_refused("consumer", "CONSUMER_PARTITIONS", "4/4", assignment);
    let ordinal = "is not valid; expected ordinal/N with N from 1 to 1024";
    assert_refused("consumer", "CONSUMER_PARTITIONS", "ordinal/0", ordinal);
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let no_ordinal = format!(
        "does not fit the host name '{}'; expected a host name that ends in a hyphen and a number below 1, or a value such \
         as auto, 0-3,8 or 2/4",
        host.trim()
    );
    assert_refused("consumer", "CONSUMER_PARTITIONS", "ordinal/1", &no_ordinal);
    let claim = "is too short, so that entries would be claimed while they are written; expected at least BATCH_LINGER plus \
        twice WRITE_TIMEOUT, 20s 10ms";
    assert_refused("consumer", "CLAIM_MIN_IDLE", "20s", claim);
    let pooling = "is not valid; expected session or transaction";
    assert_refused("consumer", "POSTGRES_POOLING", "statement", pooling);
    assert_refused("consumer", "WRITE_TIMEOUT", "25d", "is too long; expected at most 24 days");
    assert_refused("consumer", "MAX_DELIVERIES", "0", &out_of("from 1 to 1000000"));
    assert_refused("ingest", "INGEST_AUTH", "password", "is not valid; expected off, jwt or api-key");
    let algorithms = "is not valid; expected one of RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA, HS256, \
        HS384, HS512";
    assert_refused("ingest", "INGEST_JWT_ALGORITHMS", "none", algorithms);
    let rate = "is not valid; expected a number from 1 to 1000000 per second, minute or hour, such as 20/s, 600/m or 5000/h";
    assert_refused("ingest", "INGEST_USER_RATE", "20", rate);
    assert_refused("ingest", "INGEST_ADDRESS_RATE", "0/s", rate);
    let network = "is not valid; expected an IP address or a network such as 10.0.0.0/8 or fd00::/8";
    assert_refused("ingest", "INGEST_TRUSTED_PROXIES", "proxy", network);
    let origin = "is not valid; expected an origin in lower case without a path, such as https://app.example.org, or *";
    assert_refused("ingest", "INGEST_CORS_ORIGINS", "https://app.example.org/path", origin);
    assert_refused("ingest", "INGEST_DOCS", "perhaps", "is not valid; expected true or false");
    assert_refused("ingest", "INGEST_HEAD_TIMEOUT", "0s", zero);
    let ack = "is not valid; expected memory, fsync, or replicas:N with N from 1 to 65535";
    assert_refused("ingest", "REDIS_ACK", "replicas:0", ack);
}

#[test]
fn invalid_arguments_are_refused_in_one_line_with_exit_code_2() {
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
fn invalid_urls_are_refused_without_showing_secrets() {
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

/// The rest of a password must not become a host, which logs and errors show.
#[test]
fn an_unescaped_at_sign_in_a_url_is_refused_without_showing_the_password() {
    for (program, arguments, setting, url) in [
        (
            "consumer",
            &["--rust-log", "trace"][..],
            "DATABASE_URL",
            "postgres://likes:Tr0ub@dor&3-horse@host/db",
        ),
        ("likesctl", &["migrate"], "DATABASE_URL", "postgres://likes:Tr0ub@dor/3-horse@host/db"),
        ("likesctl", &["migrate"], "DATABASE_URL", "postgres://likes:Tr0ub@dor?3-horse=x@host/db"),
        ("ingest", &["--rust-log", "trace"], "REDIS_URL", "redis://likes:6379/Tr0ub&3-horse@host:6379"),
        ("likesctl", &["status"], "REDIS_URL", "redis://likes:6379?Tr0ub=3-horse@host:6379"),
    ] {
        let ended = run(program, arguments, &[(setting, url)]);
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        let problem = "the URL has an @ that does not end the user and password; escape every other @ as %40";
        assert_eq!(ended.stderr, format!("error: {setting}: {problem}\n"));
        assert!(ended.stdout.is_empty(), "{}", ended.stdout);
    }
}

#[test]
fn unsupported_parameters_of_urls_are_named_without_their_values() {
    for (program, setting, url, name) in [
        ("consumer", "DATABASE_URL", "postgres://u@127.0.0.1/x?sslpassword=hunter2", "sslpassword"),
        ("ingest", "REDIS_URL", "redis://127.0.0.1:6379?password=hunter2", "password"),
    ] {
        let ended = run(program, &[], &[(setting, url)]);
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        let problem = format!("the parameter '{name}' is not supported; remove it");
        assert_eq!(ended.stderr, format!("error: {setting}: {problem}\n"));
    }
}

fn without_servers(arguments: &[&str]) -> Ended {
    let settings = [
        ("REDIS_URL", "redis://:hunter2@127.0.0.1:1"),
        ("DATABASE_URL", "postgres://u:hunter2@127.0.0.1:1/x"),
        ("STARTUP_TIMEOUT", "300ms"),
    ];
    run("likesctl", arguments, &settings)
}

#[test]
fn likesctl_reports_unreachable_servers_in_one_line_with_exit_code_1() {
    for (arguments, server) in [
        (
            &["status"],
            "cannot reach Redis at 127.0.0.1:1 within 300ms: Connection refused (os error 111); start it or check REDIS_URL",
        ),
        (
            &["migrate"],
            "cannot reach Postgres at 127.0.0.1:1 within 300ms: Connection refused (os error 111); start it or check DATABASE_URL",
        ),
    ] {
        let ended = without_servers(arguments);
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        let last = ended.stderr.lines().last().unwrap();
        assert_eq!(last, format!("error: {server}"));
        assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
        assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    }
}

/// A rejected login is not retried, because waiting would not help.
#[tokio::test(flavor = "multi_thread")]
async fn likesctl_does_not_retry_rejected_logins() {
    let setup = Setup::with_redis(&["--requirepass", "hunter2"]).await;
    let redis = setup.redis.url();
    let wrong_password = redis.replace("redis://", "redis://:hunter3@");
    let no_database = setup.database_url().replace("test_", "nothing_");
    for (command, setting, url) in [
        ("status", "REDIS_URL", &redis),
        ("status", "REDIS_URL", &wrong_password),
        ("migrate", "DATABASE_URL", &no_database),
    ] {
        let ended = run("likesctl", &[command], &[(setting, url.as_str()), ("STARTUP_TIMEOUT", "1h")]);
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        let last = ended.stderr.lines().last().unwrap();
        assert!(last.starts_with("error: cannot connect to "), "{last}");
        assert!(last.ends_with(&format!("; check {setting}")), "{last}");
        assert!(!ended.stderr.contains("hunter"), "{}", ended.stderr);
    }
}

/// The kernel accepts connections for a frozen process.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_server_at_start_is_reported_within_the_timeout() {
    let setup = Setup::with_own_postgres(&[]);
    let (redis, database) = (setup.redis.url(), setup.database_url());
    let settings = [("REDIS_URL", redis.as_str()), ("DATABASE_URL", &database), ("STARTUP_TIMEOUT", "500ms")];
    setup
        .frozen_postgres(async || {
            let ended = run("likesctl", &["migrate"], &settings);
            assert_eq!(ended.code, Some(1), "{}", ended.stderr);
            let last = ended.stderr.lines().last().unwrap();
            assert!(last.starts_with("error: no reply from Postgres at "), "{last}");
            assert!(last.ends_with(" within 500ms; check the server and the network"), "{last}");
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_reported() {
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
async fn a_program_with_another_partition_count_is_refused() {
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
async fn secrets_can_be_read_from_files() {
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
        missing.stderr.contains("REDIS_URL_FILE: cannot read /nowhere/redis-url: No such file or directory"),
        "{}",
        missing.stderr
    );
    let both = run("ingest", &[], &[("REDIS_URL_FILE", redis.as_str()), ("REDIS_URL", "redis://127.0.0.1")]);
    assert_eq!(both.code, Some(2), "{}", both.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn white_space_around_urls_is_ignored() {
    let setup = Setup::new().await;
    let settings = [
        ("REDIS_URL", format!(" {}\n", setup.redis.url())),
        ("DATABASE_URL", format!("{}\r\n", setup.database_url())),
        ("LIKES_PARTITIONS", "4".to_owned()),
        ("CONSUMER_ADMIN_LISTEN", "127.0.0.1:0".to_owned()),
    ];
    let log = setup.folder().join("log");
    let consumer = devstack::program::Program::start("consumer", &settings, &log).unwrap();
    consumer.wait_ready(crate::harness::SOON).unwrap();
}

/// `?` is a valid value of OTEL_SERVICE_NAME only.
#[test]
fn every_opentelemetry_variable_is_validated() {
    for name in
        otel_variables().into_iter().map(|variable| variable.name).filter(|name| name != "OTEL_SERVICE_NAME")
    {
        let exported = [("OTEL_TRACES_EXPORTER", "otlp"), ("OTEL_METRICS_EXPORTER", "otlp")];
        let settings = [&exported[..], &[(name.as_str(), "?")]].concat();
        let ended = run("ingest", &[], &settings);
        assert_eq!(ended.code, Some(2), "{name}: {}", ended.stderr);
        assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
        assert!(ended.stderr.starts_with(&format!("error: {name}: ")), "{}", ended.stderr);
    }
}
