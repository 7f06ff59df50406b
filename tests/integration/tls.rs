//! TLS to Redis and Postgres, with server and client certificates.

use std::fs;

use devstack::{postgres_server::PostgresServer, redis_server::RedisServer};

use crate::{
    certificates::{Authority, HERE, Issued},
    harness::{Ended, SOON, Settings, Setup, eventually, post, run, start_postgres, start_redis},
};

/// Role of the programs.
const ROLE: &str = "likestream";

fn whole_url(server: &PostgresServer, host: &str, parameters: &str) -> String {
    format!("postgres://{ROLE}:hunter2@{host}:{}/postgres?{parameters}", server.port())
}

/// Creates the role of the programs, with a password.
async fn make_role(setup: &Setup) {
    let role = format!("CREATE ROLE {ROLE} LOGIN SUPERUSER PASSWORD 'hunter2'");
    setup.postgres_client().await.batch_execute(&role).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pipeline_runs_with_mutual_tls() {
    let authority = Authority::new("one authority");
    let ca = authority.file().display().to_string();
    let client = authority.issue(ROLE, &[]);
    let redis = authority.redis(&HERE, true, &["--appendonly", "yes"]);
    let who = "hostssl all all all cert clientcert=verify-full";
    let mut setup = Setup::of_servers(redis, authority.postgres(&HERE, who));
    make_role(&setup).await;
    let (cert, key) = (client.certificate(), client.key());
    let parameters = format!("sslmode=verify-full&sslrootcert={ca}&sslcert={cert}&sslkey={key}");
    let database = whole_url(setup.postgres(), "localhost", &parameters);
    let settings = [
        ("DATABASE_URL", database.as_str()),
        ("RUST_LOG", "trace"),
        ("REDIS_TLS_CA", &ca),
        ("REDIS_TLS_CERT", client.certificate()),
        ("REDIS_TLS_KEY", client.key()),
    ];
    let redis_url = setup.redis.url();
    let ctl = |arguments: &[&str]| {
        let settings = [&settings[..], &[("REDIS_URL", redis_url.as_str())]].concat();
        let ended = run("likesctl", arguments, &settings);
        assert_eq!(ended.code, Some(0), "{arguments:?}: {}", ended.stderr);
        assert!(!client.key_is_in(&ended.stderr) && !ended.stderr.contains("hunter2"));
        ended.stdout
    };
    ctl(&["migrate"]);

    let ingest = setup.ingest(&settings);
    let consumers = [setup.consumer(&settings), setup.consumer(&settings)];
    for user in 1..=50 {
        let body = format!(r#"{{"user_id": {user}, "post_id": 42}}"#);
        assert_eq!(post(&ingest, &body).await.status, 202);
    }
    setup.wait_for_rows(50).await;
    assert!(ctl(&["status"]).contains("likes"));
    ctl(&["verify"]);

    let sessions = "SELECT bool_and(ssl), count(*), min(client_dn) FROM pg_stat_ssl
                    JOIN pg_stat_activity USING (pid) WHERE application_name = 'likestream consumer'";
    let row = setup.postgres_client().await.query_one(sessions, &[]).await.unwrap();
    assert!(row.get::<_, bool>(0) && row.get::<_, i64>(1) > 0);
    assert_eq!(row.get::<_, &str>(2), format!("/CN={ROLE}"));
    for program in [&ingest, &consumers[0], &consumers[1]] {
        let log = program.log_text();
        assert!(!client.key_is_in(&log) && !log.contains("hunter2"));
    }
}

/// The files of a client certificate are read again for each connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_redis_client_certificate_is_read_without_a_restart() {
    let (authority, other) = (Authority::new("one authority"), Authority::new("another"));
    let ca = authority.file().display().to_string();
    let setup = Setup::of_servers(authority.redis(&HERE, true, &[]), start_postgres(&[]));
    setup.migrate();
    let file = |name: &str| setup.folder().join(name).display().to_string();
    let (cert, key) = (file("client.crt"), file("client.key"));
    let replace_by = |issued: &Issued| {
        for (from, to) in [(issued.certificate(), &cert), (issued.key(), &key)] {
            let next = format!("{to}.next");
            fs::copy(from, &next).unwrap();
            fs::rename(next, to).unwrap();
        }
    };
    replace_by(&other.issue("stranger", &[]));
    let settings = [("REDIS_TLS_CA", ca.as_str()), ("REDIS_TLS_CERT", &cert), ("REDIS_TLS_KEY", &key)];
    let (ingest, consumer) = (setup.start("ingest", &settings), setup.start("consumer", &settings));
    let cause = "the server does not trust the authority of the client certificate";
    for program in [&ingest, &consumer] {
        eventually(cause, async || program.log_text().contains(cause)).await;
    }
    replace_by(&authority.issue(ROLE, &[]));
    for program in [&ingest, &consumer] {
        program.wait_ready(SOON).unwrap();
    }
    assert_eq!(post(&ingest, r#"{"user_id": 7, "post_id": 42}"#).await.status, 202);
    setup.wait_for_rows(1).await;
}

/// Runs likesctl with settings under which it must fail, and returns the last line of standard error.
fn last_line(settings: Settings<'_>) -> String {
    let ended = run("likesctl", &["status"], &[&[("STARTUP_TIMEOUT", "2s")], settings].concat());
    failed_in_words(&ended)
}

fn failed_in_words(ended: &Ended) -> String {
    assert!(matches!(ended.code, Some(1 | 2)), "{:?}: {}", ended.code, ended.stderr);
    assert!(!ended.stderr.contains("panicked") && !ended.stderr.contains("hunter2"), "{}", ended.stderr);
    ended.stderr.lines().last().unwrap().to_owned()
}

fn redis_says(redis: &RedisServer, settings: Settings<'_>, cause: &str) {
    let line = last_line(&[&[("REDIS_URL", redis.url().as_str())], settings].concat());
    let server = format!("error: cannot connect to Redis at 127.0.0.1:{}: ", redis.port());
    assert!(line.starts_with(&server) && line.ends_with("; check REDIS_URL"), "{line}");
    assert!(line.contains(cause), "{line}");
}

#[test]
fn redis_certificate_errors_are_reported_immediately() {
    let (authority, other) = (Authority::new("one authority"), Authority::new("another"));
    let (file, others) = (authority.file(), other.file());
    let (ca, others) = (file.to_str().unwrap(), others.to_str().unwrap());
    let redis = authority.redis(&HERE, true, &[]);

    redis_says(
        &redis,
        &[("REDIS_TLS_CA", others)],
        "the server certificate is not signed by a trusted authority",
    );
    // Those of the system don't include one that was made just now.
    let system = last_line(&[("REDIS_URL", &redis.url())]);
    assert!(
        system.contains("is not signed by a trusted authority")
            || system.contains("no trusted certificate authorities"),
        "{system}"
    );
    redis_says(
        &redis,
        &[("REDIS_TLS_CA", ca)],
        "the server requires a client certificate (see REDIS_TLS_CERT)",
    );
    let stranger = other.issue("stranger", &[]);
    let shown =
        [("REDIS_TLS_CA", ca), ("REDIS_TLS_CERT", stranger.certificate()), ("REDIS_TLS_KEY", stranger.key())];
    redis_says(&redis, &shown, "the server does not trust the authority of the client certificate");

    let elsewhere = authority.redis(&["redis.example"], false, &[]);
    redis_says(
        &elsewhere,
        &[("REDIS_TLS_CA", ca)],
        "the server certificate is not valid for the host in REDIS_URL",
    );
}

#[test]
fn tls_on_only_one_side_is_reported() {
    let authority = Authority::new("one authority");
    let ca = authority.file().display().to_string();
    let encrypted = authority.redis(&HERE, false, &[]);
    let line = last_line(&[("REDIS_URL", &encrypted.url().replace("rediss", "redis"))]);
    assert!(line.contains("the server may require TLS (rediss:// is with TLS)"), "{line}");

    let plain = start_redis(&[]);
    let url = plain.url().replace("redis", "rediss");
    let line = last_line(&[("REDIS_URL", &url), ("REDIS_TLS_CA", &ca), ("REDIS_TIMEOUT", "500ms")]);
    // What it makes of a greeting is up to the random bytes in it: an error, or waiting for more.
    let words = ["the server does not use TLS on this port", "the server may not use TLS"];
    assert!(words.iter().any(|words| line.contains(words)), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn clusters_and_sentinels_support_tls() {
    let authority = Authority::new("one authority");
    let ca = authority.file().display().to_string();
    let setup = Setup::new().await;

    let node = authority.redis(&HERE, false, &["--cluster-enabled", "yes", "--tls-cluster", "yes"]);
    node.command(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]).unwrap();
    eventually("the cluster is up", async || {
        node.command(&["CLUSTER", "INFO"]).unwrap().contains("cluster_state:ok")
    })
    .await;
    let url = node.url().replace("rediss:", "rediss-cluster:");
    is_stored(&setup, &[("REDIS_URL", &url), ("REDIS_TLS_CA", &ca)], 1).await;

    let master = authority.redis(&HERE, false, &["--tls-replication", "yes"]);
    let config = format!("sentinel monitor likestream 127.0.0.1 {} 1\n", master.port());
    let arguments = ["--sentinel", "--tls-replication", "yes"];
    let sentinel = authority.redis_with(&HERE, false, &arguments, Some(config));
    let url = sentinel.url().replace("rediss:", "rediss-sentinel:") + "/0?sentinelServiceName=likestream";
    is_stored(&setup, &[("REDIS_URL", &url), ("REDIS_TLS_CA", &ca)], 2).await;
}

/// Sends a like of a new user with these settings, and waits until it is stored.
async fn is_stored(setup: &Setup, settings: Settings<'_>, user: u64) {
    let (ingest, _consumer) = (setup.ingest(settings), setup.consumer(settings));
    let body = format!(r#"{{"user_id": {user}, "post_id": 42}}"#);
    assert_eq!(post(&ingest, &body).await.status, 202);
    setup.wait_for_rows(usize::try_from(user).unwrap()).await;
}

fn migrate(database_url: &str) -> Ended {
    let settings = [("DATABASE_URL", database_url), ("STARTUP_TIMEOUT", "2s")];
    run("likesctl", &["migrate"], &settings)
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_ssl_modes_behave_like_libpq() {
    let (authority, other) = (Authority::new("one authority"), Authority::new("another"));
    let (ca, others) = (authority.file().display().to_string(), other.file().display().to_string());
    let who = "hostssl all all all scram-sha-256";
    let redis = start_redis(&[]);
    let mut setup = Setup::of_servers(redis, authority.postgres(&["postgres.example"], who));
    make_role(&setup).await;
    let server = setup.postgres();
    let address = format!("error: cannot connect to Postgres at 127.0.0.1:{}: ", server.port());
    let url = |parameters: &str| whole_url(server, "127.0.0.1", parameters);

    for (parameters, ca) in [
        ("sslmode=prefer", None),
        ("", None),
        ("sslmode=require", None),
        ("sslmode=require&channel_binding=require", None),
        ("sslmode=require", Some(&ca)),
        // This mode does not verify the host name.
        ("sslmode=verify-ca", Some(&ca)),
    ] {
        let root = ca.map(|ca| format!("&sslrootcert={ca}")).unwrap_or_default();
        let ended = migrate(&url(&format!("{parameters}{root}")));
        assert_eq!(ended.code, Some(0), "{parameters}{root}: {}", ended.stderr);
    }
    for (parameters, ca, why) in [
        ("sslmode=verify-full", &ca, "not valid for name \"127.0.0.1\""),
        ("sslmode=verify-full", &others, "it is not signed by a trusted authority"),
        ("sslmode=verify-ca", &others, "it is not signed by a trusted authority"),
        ("sslmode=require", &others, "it is not signed by a trusted authority"),
    ] {
        let line = failed_in_words(&migrate(&url(&format!("{parameters}&sslrootcert={ca}"))));
        assert_refused_by_postgres(&line, &address, why);
    }
    let line = failed_in_words(&migrate(&url("sslmode=disable")));
    assert_refused_by_postgres(&line, &address, "no encryption");
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_postgres_tls_and_client_certificates_are_reported() {
    let (authority, other) = (Authority::new("one authority"), Authority::new("another"));
    let ca = authority.file().display().to_string();
    let who = "hostssl all all all cert clientcert=verify-full";
    let mut setup = Setup::of_servers(start_redis(&[]), authority.postgres(&HERE, who));
    make_role(&setup).await;
    let full = format!("sslmode=verify-full&sslrootcert={ca}");
    let with = |client: &Issued| format!("{full}&sslcert={}&sslkey={}", client.certificate(), client.key());
    let server = setup.postgres();
    let good = migrate(&whole_url(server, "localhost", &with(&authority.issue(ROLE, &[]))));
    assert_eq!(good.code, Some(0), "{}", good.stderr);
    for (parameters, why) in [
        (full.clone(), "requires a valid client certificate"),
        (with(&authority.issue("somebody", &[])), "certificate authentication failed"),
        (with(&other.issue("stranger", &[])), "unknown CA"),
    ] {
        let line = failed_in_words(&migrate(&whole_url(server, "127.0.0.1", &parameters)));
        assert_refused_by_postgres(&line, "error: cannot connect to Postgres at ", why);
    }

    let plain = Setup::new().await.database_url();
    let line = failed_in_words(&migrate(&format!("{plain}?sslmode=require")));
    assert_refused_by_postgres(&line, "error: cannot connect to Postgres at ", "server does not support TLS");
}

/// Asserts that the error line names the server, the problem and the setting to check.
fn assert_refused_by_postgres(line: &str, start: &str, problem: &str) {
    assert!(line.starts_with(start) && line.contains(problem), "{line}");
    assert!(line.trim_end().ends_with("; check DATABASE_URL"), "{line}");
}

/// Asserts that the error line names the setting and the problem. No server is contacted.
fn refused(settings: Settings<'_>, setting: &str, problem: &str) {
    let program = if setting == "DATABASE_URL" { "consumer" } else { "ingest" };
    let ended = run(program, &[], settings);
    assert_eq!(ended.code, Some(2), "{settings:?}: {}", ended.stderr);
    assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
    let line = ended.stderr.trim_end();
    assert!(line.starts_with(&format!("error: {setting}: ")) && line.contains(problem), "{line}");
    assert!(!line.contains("hunter2") && !line.contains("BEGIN"), "{line}");
}

#[test]
fn inconsistent_tls_settings_are_refused() {
    let authority = Authority::new("one authority");
    let (one, other) = (authority.issue("one", &[]), authority.issue("other", &[]));
    let file = authority.file();
    let ca = file.to_str().unwrap();
    let tls = ("REDIS_URL", "rediss://127.0.0.1:1");
    for setting in ["REDIS_TLS_CA", "REDIS_TLS_CERT", "REDIS_TLS_KEY"] {
        refused(&[(setting, ca)], setting, "expected a URL such as rediss://");
    }
    let ca_set = ("REDIS_TLS_CA", ca);
    refused(
        &[tls, ("REDIS_TLS_CA", "/nowhere")],
        "REDIS_TLS_CA",
        "cannot use /nowhere: No such file or directory",
    );
    refused(&[tls, ("REDIS_TLS_CA", one.key())], "REDIS_TLS_CA", "the file has no certificate in PEM format");
    let cert = ("REDIS_TLS_CERT", one.certificate());
    refused(&[tls, ca_set, cert], "REDIS_TLS_CERT", "requires REDIS_TLS_KEY; set both or neither");
    refused(
        &[tls, ca_set, ("REDIS_TLS_KEY", one.key())],
        "REDIS_TLS_KEY",
        "requires REDIS_TLS_CERT; set both or neither",
    );
    refused(
        &[tls, ca_set, cert, ("REDIS_TLS_KEY", other.key())],
        "REDIS_TLS_KEY",
        "the key does not belong to the certificate in",
    );
    refused(
        &[tls, ca_set, cert, ("REDIS_TLS_KEY", ca)],
        "REDIS_TLS_KEY",
        "the file has no private key in PEM format",
    );

    let root = format!("sslrootcert={ca}");
    for (parameters, problem) in [
        ("sslmode=allow".to_owned(), "expected disable, prefer, require, verify-ca or verify-full"),
        ("sslmode=verify-ca".to_owned(), "requires a trusted authority; set sslrootcert"),
        ("sslmode=require&sslrootcert=system".to_owned(), "expected sslmode=verify-full with it"),
        (root.clone(), "expected sslmode=require, verify-ca or verify-full with it"),
        (format!("sslmode=disable&{root}"), "expected sslmode=require, verify-ca or verify-full with it"),
        (
            format!("sslmode=disable&sslcert={ca}&sslkey={ca}"),
            "sslcert and sslkey have no effect with sslmode=disable",
        ),
        (format!("sslmode=require&sslcert={ca}"), "set both or neither"),
        (
            "sslmode=verify-full&sslrootcert=/nowhere".to_owned(),
            "sslrootcert: cannot use /nowhere: No such file or directory",
        ),
        (format!("sslmode=require&sslcert={ca}&sslkey={}", one.key()), "sslkey"),
    ] {
        let url = format!("postgres://u:hunter2@127.0.0.1:1/x?{parameters}");
        refused(&[("DATABASE_URL", &url)], "DATABASE_URL", problem);
    }
}
