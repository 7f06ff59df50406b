//! Redis users and Postgres roles with exactly the privileges that their program needs.

use std::{collections::BTreeSet, fs};

use devstack::{
    process::Lifetime,
    redis_server::{RedisOptions, RedisServer},
};
use fred::{
    prelude::{
        Builder, Client, ClientLike, Config, Error, HashesInterface, KeysInterface, StreamsInterface, Value,
    },
    types::{ClusterHash, CustomCommand},
};
use shared::wire::codec;
use tokio_postgres::error::SqlState;

use crate::{
    database_failures::forbid_post_13,
    harness::{
        Ended, GROUP, PARTITIONS, Settings, Setup, append_raw, create_groups, dead_stream, eventually, like,
        likes, post, postgres_client, run, start_postgres, start_redis, stream,
    },
};

const ROLES: &str = include_str!("../../sql/roles.sql");
const USERS: &str = include_str!("../../deploy/redis/users.acl");
const SENTINEL_USERS: &str = include_str!("../../deploy/redis/sentinel.acl");

/// Password of all users, with characters that a URL must escape.
const PASSWORD: &str = "hunter2/@:%";
const ESCAPED: &str = "hunter2%2F%40%3A%25";

/// User with which tests inspect Redis directly.
const ADMIN: &str = "user admin on >hunter2/@:% ~* &* +@all\n";

/// Granted commands that these tests do not use: redirection during a slot migration.
const RARE: [&str; 1] = ["asking"];

async fn refused(client: &tokio_postgres::Client, statements: &[&str]) {
    for sql in statements {
        let error = client.batch_execute(sql).await.unwrap_err();
        assert_eq!(error.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE), "{sql}: {error:?}");
    }
}

/// Creates a setup with a private Postgres, because roles belong to the server, and the role `administrator`: no superuser, as
/// on a managed server. `granted` gives it its privileges on the database `postgres`.
async fn managed(granted: &str) -> Setup {
    let setup = Setup::of_servers(start_redis(&["--appendonly", "yes"]), start_postgres(&[]));
    let superuser = setup.postgres_client().await;
    superuser.batch_execute("CREATE ROLE administrator LOGIN CREATEROLE").await.unwrap();
    superuser.batch_execute(granted).await.unwrap();
    setup
}

const OWNS_THE_DATABASE: &str = "ALTER DATABASE postgres OWNER TO administrator";

fn url_as(setup: &Setup, role: &str) -> String {
    setup.database_url().replace("postgres@", &format!("{role}@"))
}

async fn make_roles(setup: &Setup) {
    postgres_client(&url_as(setup, "administrator")).await.batch_execute(ROLES).await.unwrap();
}

fn migrate_as(setup: &Setup, role: &str) -> Ended {
    run("likesctl", &["migrate"], &[("DATABASE_URL", &url_as(setup, role))])
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pipeline_runs_with_least_privilege_postgres_roles() {
    let setup = managed(OWNS_THE_DATABASE).await;
    let owner = setup.postgres_client().await;
    let (migrator, consumer) = (url_as(&setup, "likestream_migrator"), url_as(&setup, "likestream_consumer"));
    let reader = url_as(&setup, "likestream_reader");
    make_roles(&setup).await;
    let migrated = migrate_as(&setup, "likestream_migrator");
    assert_eq!(migrated.code, Some(0), "{}", migrated.stderr);

    // Direct copy, staged copy and dead letters.
    forbid_post_13(&setup).await;
    owner.batch_execute("INSERT INTO likes VALUES (1, 42, 'epoch')").await.unwrap();
    let settings: Settings<'_> = &[("DATABASE_URL", &consumer), ("STREAM_RETENTION", "1h")];
    let writer = setup.consumer(settings);
    setup.append(&likes(1_000), 10).await;
    setup.append(&likes(1_000), 10).await;
    setup.append(&[like(7, 13)], 1).await;
    setup.wait_until_drained().await;
    assert_eq!(setup.count().await, 1_000);
    let total = |metric| writer.metrics().unwrap().sum(metric);
    eventually("the dead letter is counted", async || total("likestream_dead_letters_total") == 1.0).await;
    assert!(total("likestream_direct_copy_fallbacks_total") > 0.0, "{}", writer.log_text());
    let watched = "SELECT FROM likes_watermarks";
    eventually("watermarks", async || !owner.query(watched, &[]).await.unwrap().is_empty()).await;
    assert!(!writer.log_text().contains("permission denied"), "{}", writer.log_text());

    let redis = setup.redis.url();
    let ctl = |database: &str, arguments: &[&str]| {
        run("likesctl", arguments, &[("REDIS_URL", &redis), ("DATABASE_URL", database)])
    };
    for (arguments, code) in [(&["verify"][..], 0), (&["pending", "ack", "--all", "--yes"], 0)] {
        let ended = ctl(&reader, arguments);
        assert_eq!(ended.code, Some(code), "{arguments:?}: {}{}", ended.stdout, ended.stderr);
    }
    let doctor = ctl(&reader, &["doctor"]);
    assert!(doctor.stdout.contains("schema") && !doctor.stdout.contains("permission"), "{}", doctor.stdout);
    let again = ctl(&consumer, &["reprocess", "--from", "1h", "--yes"]);
    assert!(again.stderr.contains("rows inserted"), "{}{}", again.stdout, again.stderr);

    let to_the_likes =
        ["UPDATE likes SET post_id = 1", "DELETE FROM likes", "TRUNCATE likes", "DROP TABLE likes"];
    let to_the_schema = [
        "CREATE TABLE public.mine (id int)",
        "ALTER TABLE likes ADD COLUMN more int",
        "INSERT INTO likes_schema (version, oldest_program) VALUES (9, 9)",
        "UPDATE likes_schema SET version = 9",
        "UPDATE likes_database SET id = gen_random_uuid()",
        "DELETE FROM likes_incidents",
        "SELECT FROM refinery_schema_history",
    ];
    for role in [&consumer, &reader] {
        let client = postgres_client(role).await;
        refused(&client, &to_the_likes).await;
        refused(&client, &to_the_schema).await;
    }
    let acknowledge = "UPDATE likes_incidents SET acknowledged_at = now()";
    let insert = "INSERT INTO likes VALUES (1, 1, now())";
    refused(&postgres_client(&reader).await, &[insert, acknowledge]).await;
    refused(&postgres_client(&migrator).await, &["CREATE ROLE other", "CREATE DATABASE other"]).await;
    assert_eq!(setup.count().await, 1_000);

    make_roles(&setup).await;
    assert!(migrate_as(&setup, "likestream_migrator").stdout.starts_with("nothing to do"));
}

/// `CREATE` on the database is no privilege on its schema public, in which not every role can create tables.
#[tokio::test(flavor = "multi_thread")]
async fn roles_need_no_privilege_on_the_schema_public() {
    let setup = managed(
        "GRANT CREATE ON DATABASE postgres TO administrator; REVOKE CREATE ON SCHEMA public FROM PUBLIC",
    )
    .await;
    make_roles(&setup).await;
    make_roles(&setup).await;
    let migrated = migrate_as(&setup, "likestream_migrator");
    assert_eq!(migrated.code, Some(0), "{}", migrated.stderr);
    let (consumer, reader) = (url_as(&setup, "likestream_consumer"), url_as(&setup, "likestream_reader"));
    let writer = setup.consumer(&[("DATABASE_URL", &consumer)]);
    setup.append(&likes(100), 10).await;
    setup.append(&likes(100), 10).await;
    setup.wait_until_drained().await;
    assert!(!writer.log_text().contains("permission denied"), "{}", writer.log_text());
    let client = postgres_client(&reader).await;
    let stored = client.query_one("SELECT count(*) FROM likestream.likes", &[]).await.unwrap();
    assert_eq!(stored.get::<_, i64>(0), 100);
    refused(&client, &["INSERT INTO likes VALUES (1, 1, now())", "CREATE TABLE likestream.mine (id int)"])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_that_cannot_connect_are_refused_with_the_fix() {
    let granted = "REVOKE ALL ON DATABASE postgres FROM PUBLIC;
                   GRANT CONNECT, CREATE ON DATABASE postgres TO administrator";
    let setup = managed(granted).await;
    let administrator = postgres_client(&url_as(&setup, "administrator")).await;
    let error = administrator.batch_execute(ROLES).await.unwrap_err();
    let expected = "cannot grant CONNECT on database postgres to likestream_migrator: administrator does not own the \
                    database; run this file as its owner";
    assert_eq!(error.as_db_error().unwrap().message(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn migrate_grants_missing_privileges_to_existing_roles() {
    let setup = managed(OWNS_THE_DATABASE).await;
    let migrated = migrate_as(&setup, "administrator");
    assert!(!migrated.stdout.contains("granted"), "{}{}", migrated.stdout, migrated.stderr);
    let owner = setup.postgres_client().await;
    owner.batch_execute("CREATE ROLE likestream_consumer LOGIN").await.unwrap();
    let granted = migrate_as(&setup, "administrator");
    let expected = "granted SELECT ON likes TO likestream_consumer\n\
                    granted INSERT ON likes TO likestream_consumer\n\
                    granted SELECT ON likes_schema TO likestream_consumer\n\
                    granted SELECT ON likes_database TO likestream_consumer\n\
                    granted SELECT ON likes_watermarks TO likestream_consumer\n\
                    granted INSERT ON likes_watermarks TO likestream_consumer\n\
                    granted UPDATE ON likes_watermarks TO likestream_consumer\n\
                    granted SELECT ON likes_incidents TO likestream_consumer\n\
                    granted INSERT ON likes_incidents TO likestream_consumer\n\
                    granted UPDATE ON likes_incidents TO likestream_consumer\n";
    assert_eq!((granted.code, granted.stdout.as_str()), (Some(0), expected), "{}", granted.stderr);
    assert!(migrate_as(&setup, "administrator").stdout.starts_with("nothing to do"));
    let consumer = postgres_client(&url_as(&setup, "likestream_consumer")).await;
    consumer.batch_execute("INSERT INTO likes SELECT 1, 1, now() FROM likes_schema").await.unwrap();

    // A role that may migrate, but not grant.
    owner
        .batch_execute(
            "CREATE ROLE likestream_reader LOGIN; CREATE ROLE other LOGIN;
             GRANT CREATE ON SCHEMA public TO other; GRANT SELECT ON refinery_schema_history TO other",
        )
        .await
        .unwrap();
    for (cause, granted) in [
        ("ERROR: permission denied for table likes", ""),
        (
            "this role does not own the table",
            "GRANT SELECT ON likes, likes_schema, likes_database, likes_watermarks, likes_incidents TO other",
        ),
    ] {
        owner.batch_execute(granted).await.unwrap();
        let refused = migrate_as(&setup, "other");
        let expected = format!(
            "error: cannot grant SELECT ON likes TO likestream_reader: {cause}; run likesctl migrate as the owner of the \
             tables, or as a superuser\n"
        );
        assert_eq!((refused.code, refused.stderr), (Some(1), expected));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_of_another_owner_pass_to_the_migrator_role() {
    let setup = managed(OWNS_THE_DATABASE).await;
    let migrated = migrate_as(&setup, "administrator");
    assert_eq!(migrated.code, Some(0), "{}", migrated.stderr);
    let administrator = postgres_client(&url_as(&setup, "administrator")).await;
    administrator.batch_execute(include_str!("../../sql/optional/hash_partitions.sql")).await.unwrap();
    make_roles(&setup).await;
    let others =
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
                  AND relowner <> 'likestream_migrator'::regrole";
    let rows = setup.postgres_client().await.query(others, &[]).await.unwrap();
    let others: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert!(others.is_empty(), "{others:?}");
    // The file has granted what migrate grants.
    let again = migrate_as(&setup, "likestream_migrator");
    assert!(again.stdout.starts_with("nothing to do"), "{}{}", again.stdout, again.stderr);
    // The administrator has not stayed in the role.
    refused(&administrator, &["SELECT FROM likes"]).await;
}

/// Text of an ACL file, with a password instead of each placeholder hash.
fn with_passwords(users: &str) -> String {
    let words = users.lines().map(|line| {
        let words = line.split(' ').map(|word| {
            if word.starts_with("#SHA256-OF-THE-PASSWORD-OF-") {
                format!(">{PASSWORD}")
            } else {
                word.to_owned()
            }
        });
        words.collect::<Vec<_>>().join(" ") + "\n"
    });
    words.collect()
}

/// Setup whose Redis has users from an ACL file.
struct Guarded {
    setup: Setup,
    admin: Client,
}

fn start_guarded(folder: &std::path::Path, users: &str, arguments: &[&str]) -> RedisServer {
    let file = folder.join("users.acl");
    fs::write(&file, users).unwrap();
    let arguments = arguments.iter().copied().chain(["--aclfile", file.to_str().unwrap()]);
    let options =
        RedisOptions { arguments: arguments.map(str::to_owned).collect(), ..RedisOptions::default() };
    RedisServer::start(options, Lifetime::Attached).unwrap()
}

fn url_of(server: &RedisServer, user: &str) -> String {
    format!("redis://{user}:{ESCAPED}@127.0.0.1:{}/0", server.port())
}

async fn client(server: &RedisServer, user: &str) -> Client {
    let url = url_of(server, user);
    // Sentinels have no databases.
    let url = url.trim_end_matches("/0");
    let client = Builder::from_config(Config::from_url(url).unwrap()).build().unwrap();
    client.init().await.unwrap();
    client
}

async fn command(client: &Client, words: &[&str]) -> Result<Value, Error> {
    let name = CustomCommand::new(words[0], ClusterHash::FirstKey, false);
    client.custom(name, words[1..].iter().map(|&word| word.to_owned()).collect()).await
}

impl Guarded {
    async fn new(arguments: &[&str]) -> Self {
        let mut setup = Setup::new().await;
        let users = with_passwords(USERS) + ADMIN;
        setup.redis = start_guarded(setup.folder(), &users, arguments);
        let admin = client(&setup.redis, "admin").await;
        Self { setup, admin }
    }

    fn url(&self, user: &str) -> String {
        url_of(&self.setup.redis, user)
    }

    async fn client(&self, user: &str) -> Client {
        client(&self.setup.redis, user).await
    }

    /// Resets the command statistics.
    async fn begin(&self) {
        command(&self.admin, &["CONFIG", "RESETSTAT"]).await.unwrap();
    }

    /// Checks that no command was denied, and that every granted command was used since [`Guarded::begin`].
    async fn used_exactly(&self, user: &str, but: &[&str]) {
        let denied = format!("{:?}", command(&self.admin, &["ACL", "LOG"]).await.unwrap());
        assert_eq!(denied, "Array([])", "{user} was denied a command");
        let stats = command(&self.admin, &["INFO", "commandstats"]).await.unwrap().into_string().unwrap();
        let called: BTreeSet<&str> =
            stats.lines().filter_map(|line| line.strip_prefix("cmdstat_")?.split(':').next()).collect();
        let unused: Vec<&str> = granted(user).into_iter().filter(|name| !called.contains(name)).collect();
        let expected: Vec<&str> = granted(user)
            .into_iter()
            .filter(|name| RARE.contains(name) || name.starts_with("cluster|") || but.contains(name))
            .collect();
        assert_eq!(unused, expected, "{user} has privileges that it does not use");
    }
}

async fn knows_waitaof(admin: &Client) -> bool {
    let about = command(admin, &["COMMAND", "INFO", "WAITAOF"]).await.unwrap();
    about.into_array().iter().any(|about| !about.is_null())
}

/// Commands that the file grants.
fn granted(user: &str) -> BTreeSet<&'static str> {
    let line = USERS.lines().find(|line| line.starts_with(&format!("user {user} "))).unwrap();
    let names = line.split(' ').filter_map(|word| word.trim_matches(['(', ')']).strip_prefix('+'));
    let granted: BTreeSet<&str> = names.collect();
    assert!(granted.len() > 10 && granted.iter().all(|name| !name.contains('@')), "{granted:?}");
    granted
}

#[test]
fn acl_files_grant_no_categories_and_require_passwords() {
    assert!(USERS.starts_with("user default off\n"));
    for line in (USERS.to_owned() + SENTINEL_USERS).lines().filter(|line| *line != "user default off") {
        assert!(line.contains(" resetchannels -@all +") && !line.contains("+@"), "{line}");
        assert!(line.contains(" on #SHA256-OF-THE-PASSWORD-OF-") && line.contains(" resetkeys "), "{line}");
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("users.acl");
    fs::write(&file, USERS).unwrap();
    // With the placeholders, Redis must refuse to start, instead of starting with well-known passwords.
    let arguments = vec!["--aclfile".to_owned(), file.display().to_string()];
    let started =
        RedisServer::start(RedisOptions { arguments, ..RedisOptions::default() }, Lifetime::Attached);
    assert!(started.is_err());
}

async fn use_ingest(guarded: &Guarded) {
    let Guarded { setup, admin } = guarded;
    let url = guarded.url("ingest");
    let redis = ("REDIS_URL", url.as_str());
    guarded.begin().await;
    let ingest = setup.ingest(&[redis]);
    assert_eq!(post(&ingest, r#"{"user_id": 1, "post_id": 42}"#).await.status, 202);
    // No replica can confirm the like.
    let other = setup.ingest(&[redis, ("REDIS_ACK", "replicas:1"), ("REDIS_TIMEOUT", "500ms")]);
    assert_eq!(post(&other, r#"{"user_id": 2, "post_id": 42}"#).await.status, 503);
    drop(other);
    admin.hset::<u64, _, _>("likes:settings", ("partitions", "2")).await.unwrap();
    eventually("the partition count is restored", async || {
        admin.hget::<String, _, _>("likes:settings", "partitions").await.unwrap() == PARTITIONS.to_string()
    })
    .await;
    let log = ingest.log_text();
    assert!(!log.contains("NOPERM") && !log.contains(PASSWORD), "{log}");
    drop(ingest);
    guarded.used_exactly("ingest", &[]).await;

    // REDIS_ACK=fsync needs additional grants, listed in docs/security.md.
    let mut grant = vec!["ACL", "SETUSER", "ingest", "+config|get", "+command|info"];
    if knows_waitaof(admin).await {
        grant.push("+waitaof");
    }
    command(admin, &grant).await.unwrap();
    guarded.begin().await;
    let synced = setup.ingest(&[redis, ("REDIS_ACK", "fsync")]);
    assert_eq!(post(&synced, r#"{"user_id": 3, "post_id": 42}"#).await.status, 202);
    assert!(!synced.log_text().contains("NOPERM"));
}

async fn read_as(admin: &Client, consumer: &str, partition: u16) -> Vec<String> {
    let read =
        admin.xreadgroup::<Value, _, _, _, _>(GROUP, consumer, None, None, false, stream(partition), ">");
    read.await.unwrap();
    let pending = admin.xpending::<Vec<(String, String, u64, u64)>, _, _, _>(
        stream(partition),
        GROUP,
        (0, "-", "+", 100, consumer),
    );
    pending.await.unwrap().into_iter().map(|(id, ..)| id).collect()
}

/// Uses every command of a consumer.
async fn use_consumer(guarded: &Guarded) {
    let Guarded { setup, admin } = guarded;
    create_groups(admin).await;
    append_raw(admin, 0, &codec::encode(&[like(3, 42)])).await;
    let ids = read_as(admin, "gone", 0).await;
    // An entry with too many deliveries is quarantined.
    command(admin, &["XCLAIM", &stream(0), GROUP, "gone", "0", &ids[0], "RETRYCOUNT", "9", "JUSTID"])
        .await
        .unwrap();
    append_raw(admin, 1, b"\xc1").await;
    append_raw(admin, 2, &codec::encode(&likes(100))).await;
    admin.xgroup_destroy::<u64, _, _>(stream(3), GROUP).await.unwrap();
    guarded.begin().await;
    let url = guarded.url("consumer");
    let over: Settings<'_> = &[("REDIS_URL", &url), ("LIKES_PARTITIONS", "4")];
    let mut consumer = setup.consumer(over);
    setup.wait_for_rows(100).await;
    eventually("the malformed entry is a dead letter", async || {
        admin.xlen::<u64, _>(dead_stream(1)).await.unwrap() == 1
    })
    .await;
    // The recorded partition count is lowered, and then lost.
    admin.hset::<u64, _, _>("likes:settings", ("partitions", "2")).await.unwrap();
    let recorded = async || admin.hget::<Option<String>, _, _>("likes:settings", "partitions").await.unwrap();
    eventually("the partition count is restored", async || recorded().await.as_deref() == Some("4")).await;
    admin.del::<u64, _>("likes:settings").await.unwrap();
    eventually("the partition count is recorded again", async || recorded().await.as_deref() == Some("4"))
        .await;
    eventually("all entries are trimmed", async || {
        let mut left = 0;
        for partition in 0..PARTITIONS {
            left += admin.xlen::<u64, _>(stream(partition)).await.unwrap();
        }
        left == 0
    })
    .await;
    assert!(consumer.terminate(crate::harness::SOON).unwrap().success());
    let log = consumer.log_text();
    assert!(!log.contains("NOPERM") && !log.contains(PASSWORD), "{log}");
    guarded.used_exactly("consumer", &[]).await;
}

/// Uses every command of likesctl.
async fn use_likesctl(guarded: &Guarded) {
    let Guarded { setup, admin } = guarded;
    for partition in 0..PARTITIONS {
        append_raw(admin, partition, &codec::encode(&[like(200 + u64::from(partition), 42)])).await;
        read_as(admin, "gone", partition).await;
    }
    append_raw(admin, 3, b"\xc1").await;
    let heartbeat = format!("gone active  {}", 1);
    admin.hset::<u64, _, _>(format!("likes:members:{GROUP}"), ("gone", heartbeat)).await.unwrap();
    guarded.begin().await;
    let (redis, database) = (guarded.url("likesctl"), setup.database_url());
    let ctl = |arguments: &[&str]| -> Ended {
        let ended = run(
            "likesctl",
            arguments,
            &[("REDIS_URL", &redis), ("DATABASE_URL", &database), ("USER", "tester")],
        );
        let said = format!("{}{}", ended.stdout, ended.stderr);
        assert!(!said.contains("NOPERM") && !said.contains("denied") && !said.contains(PASSWORD), "{said}");
        ended
    };
    let file = setup.folder().join("letters.ndjson").display().to_string();
    for (arguments, code) in [
        (&["status"][..], Some(0)),
        (&["doctor"], None),
        (&["consumers", "list"], Some(0)),
        (&["pending", "list"], Some(0)),
        (&["pending", "claim", "-p", "0", "--to", "gone", "--yes"], Some(0)),
        (&["pending", "retry", "-p", "0", "--yes"], Some(0)),
        (&["pending", "ack", "-p", "1", "--yes"], Some(4)),
        (&["pending", "drop", "--all", "--yes", "--no-export"], Some(0)),
        (&["consumers", "remove", "gone", "--yes"], Some(0)),
        (&["dead", "list"], Some(0)),
        (&["dead", "export"], Some(0)),
        (&["dead", "purge", "--all", "--yes", "--export", &file], Some(0)),
        (&["dead", "import", &file, "--yes"], Some(0)),
        (&["dead", "retry", "--all", "--yes"], Some(0)),
        (&["pause", "--yes"], Some(0)),
        (&["resume", "-p", "1", "--yes"], Some(0)),
        (&["resume", "--yes"], Some(0)),
        (&["verify"], None),
        (&["reprocess", "--from", "1h", "--yes"], None),
        (&["drain", "--timeout", "1s"], None),
        (&["partitions", "grow", "8", "--yes"], Some(0)),
        (&["audit"], Some(0)),
    ] {
        let ended = ctl(arguments);
        assert!(code.is_none() || code == ended.code, "{arguments:?}: {}{}", ended.stdout, ended.stderr);
    }
    guarded.used_exactly("likesctl", &[]).await;
}

/// Each program does all of its work without a denied command, and uses every granted command.
#[tokio::test(flavor = "multi_thread")]
async fn redis_users_have_exactly_the_permissions_the_programs_use() {
    let guarded = Guarded::new(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    use_ingest(&guarded).await;
    use_consumer(&guarded).await;
    use_likesctl(&guarded).await;
}

async fn denied(guarded: &Guarded, user: &str, commands: &[&str]) {
    let client = guarded.client(user).await;
    for text in commands {
        let words: Vec<&str> = text.split(' ').collect();
        let error = command(&client, &words).await.unwrap_err();
        assert!(error.details().starts_with("NOPERM"), "{user}: {text}: {error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_users_are_denied_everything_else() {
    let guarded = Guarded::new(&[]).await;
    append_raw(&guarded.admin, 1, &codec::encode(&likes(1))).await;
    create_groups(&guarded.admin).await;
    let forbidden_for_all = [
        "FLUSHALL",
        "FLUSHDB",
        "KEYS *",
        "CONFIG SET maxmemory-policy allkeys-lru",
        "SHUTDOWN",
        "DEL likes:{1}",
        "DEL likes:settings",
        "RENAME likes:{1} x",
        "SET other 1",
        "GET other",
        "ACL LIST",
        "CONFIG GET masterauth",
        "SCRIPT FLUSH",
        "CLIENT LIST",
        "MONITOR",
        "XTRIM other MAXLEN 0",
        "XADD other * l x",
        "EXPIRE likes:{1} 1",
        "XGROUP DESTROY likes:{1} likes-writers",
        "XGROUP SETID likes:{1} likes-writers $",
    ];
    for user in ["ingest", "consumer", "likesctl"] {
        denied(&guarded, user, &forbidden_for_all).await;
    }
    let reading = [
        "XRANGE likes:{1} - +",
        "XREVRANGE likes:{1} + -",
        "XREADGROUP GROUP likes-writers me STREAMS likes:{1} >",
        "XREAD STREAMS likes:{1} 0",
        "XACK likes:{1} likes-writers 1-1",
        "XDEL likes:{1} 1-1",
        "XTRIM likes:{1} MAXLEN 0",
        "XADD likes:{1}:dead * l x",
        "HGETALL likes:members:likes-writers",
    ];
    denied(&guarded, "ingest", &reading).await;
    let forging = [
        "XADD likes:{1} * l x",
        "XDEL likes:{1} 1-1",
        "XRANGE likes:{1}:dead - +",
        "SADD likes:paused:likes-writers all",
        "XADD likes:audit * a b",
    ];
    denied(&guarded, "consumer", &forging).await;
    denied(
        &guarded,
        "likesctl",
        &["XDEL likes:{1} 1-1", "XTRIM likes:{1} MAXLEN 0", "HINCRBY likes:settings a 1"],
    )
    .await;
    assert_eq!(guarded.admin.xlen::<u64, _>(stream(1)).await.unwrap(), 1);
    // A script does not bypass the restrictions.
    let script = ["EVAL", "return redis.call('XRANGE', KEYS[1], '-', '+')", "1", "likes:{1}"];
    let error = command(&guarded.client("ingest").await, &script).await.unwrap_err();
    // Redis 7 and newer servers word it differently.
    let wordings = ["can't run this command", "has no permissions to run the 'xrange' command"];
    assert!(wordings.iter().any(|wording| error.details().contains(wording)), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_users_authenticate_to_cluster_nodes() {
    let setup = Setup::new().await;
    let node = start_guarded(setup.folder(), &(with_passwords(USERS) + ADMIN), &["--cluster-enabled", "yes"]);
    let admin = client(&node, "admin").await;
    command(&admin, &["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]).await.unwrap();
    eventually("the cluster is up", async || {
        let info = command(&admin, &["CLUSTER", "INFO"]).await.unwrap().into_string().unwrap();
        info.contains("cluster_state:ok")
    })
    .await;
    let url = |user| format!("redis-cluster://{user}:{ESCAPED}@127.0.0.1:{}", node.port());
    stored(&setup, &url("ingest"), &url("consumer")).await;
    let log = format!("{:?}", command(&admin, &["ACL", "LOG"]).await.unwrap());
    assert_eq!(log, "Array([])");
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_users_authenticate_to_sentinels_and_the_primary() {
    let setup = Setup::new().await;
    let master = start_guarded(setup.folder(), &(with_passwords(USERS) + ADMIN), &[]);
    let file = setup.folder().join("sentinel.acl");
    fs::write(&file, format!("user default off\n{ADMIN}{}", with_passwords(SENTINEL_USERS))).unwrap();
    let config = format!(
        "sentinel monitor likestream 127.0.0.1 {} 1\nsentinel auth-user likestream admin\n\
         sentinel auth-pass likestream {PASSWORD}\n",
        master.port()
    );
    let arguments = ["--sentinel", "--aclfile", file.to_str().unwrap()];
    let options = RedisOptions {
        arguments: arguments.map(str::to_owned).into(),
        config: Some(config),
        ..RedisOptions::default()
    };
    let sentinel = RedisServer::start(options, Lifetime::Attached).unwrap();
    let url = |user| {
        let to = format!("redis-sentinel://{user}:{ESCAPED}@127.0.0.1:{}/0", sentinel.port());
        format!("{to}?sentinelServiceName=likestream&sentinelUsername=likestream&sentinelPassword={ESCAPED}")
    };
    stored(&setup, &url("ingest"), &url("consumer")).await;
    let log = format!("{:?}", command(&client(&sentinel, "admin").await, &["ACL", "LOG"]).await.unwrap());
    assert_eq!(log, "Array([])");
}

/// Sends a like and waits until it is stored.
async fn stored(setup: &Setup, ingest: &str, consumer: &str) {
    let ingest = setup.ingest(&[("REDIS_URL", ingest)]);
    let _consumer = setup.consumer(&[("REDIS_URL", consumer)]);
    assert_eq!(post(&ingest, r#"{"user_id": 1, "post_id": 42}"#).await.status, 202);
    setup.wait_for_rows(1).await;
}
