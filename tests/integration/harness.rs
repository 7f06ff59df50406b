//! Test harness: private servers, the real programs, and clients that inspect the servers directly.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use devstack::{
    backlog,
    http_client::{HttpClient, Response},
    postgres_server::{self, PostgresOptions, PostgresServer},
    process::Lifetime,
    program::{self, Program},
    redis_server::{RedisOptions, RedisServer},
};
use fred::{
    prelude::{Builder, Client, ClientLike, Config, HashesInterface, StreamsInterface, Value},
    types::{ClusterHash, CustomCommand},
};
use shared::{
    redis::{Connections, Redis},
    wire::{codec, like::Like},
};
use tempfile::TempDir;
use tokio_util::task::AbortOnDropHandle;

pub(crate) const GROUP: &str = "likes-writers";

/// Number of partitions: small, so that tests can inspect all of them.
pub(crate) const PARTITIONS: u16 = 4;

/// Time limit for events that normally take seconds, on a machine that runs other tests at the same time.
pub(crate) const SOON: Duration = Duration::from_secs(90);

/// Arguments of a Redis whose data survive a restart. Without fsync, they do not survive a crash of the machine.
const DURABLE: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "no"];

/// Number of log lines per program that a failed test prints.
const LAST_LINES: usize = 40;

pub(crate) type Settings<'a> = &'a [(&'a str, &'a str)];

/// The servers of one test.
pub(crate) struct Setup {
    pub(crate) redis: RedisServer,
    database: Database,
    folder: TempDir,
    logs: AtomicU32,
}

enum Database {
    /// URL of a database on the server that all tests share.
    Shared(String),
    /// Private server, which the test may stop or break.
    Own(Box<PostgresServer>),
}

/// Server for all tests of this process. It ends with the process.
fn shared_postgres() -> &'static PostgresServer {
    static SHARED: OnceLock<PostgresServer> = OnceLock::new();
    SHARED.get_or_init(|| start_postgres(&[]))
}

pub(crate) fn start_postgres(settings: Settings<'_>) -> PostgresServer {
    // Every test creates a database, and none of them needs to survive a crash of the machine.
    let all = [("fsync", "off")].iter().chain(settings);
    let settings = all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let options = PostgresOptions { settings, ..PostgresOptions::default() };
    PostgresServer::start(options, Lifetime::Attached).unwrap()
}

pub(crate) fn start_redis(arguments: &[&str]) -> RedisServer {
    let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    RedisServer::start(RedisOptions { arguments, ..RedisOptions::default() }, Lifetime::Attached).unwrap()
}

/// Prints the end of the logs if the test failed, because the log files are removed with the setup.
impl Drop for Setup {
    fn drop(&mut self) {
        if !thread::panicking() {
            return;
        }
        for number in 0..self.logs.load(Ordering::Relaxed) {
            for program in ["ingest", "consumer"] {
                if let Ok(text) = fs::read_to_string(self.log(program, number)) {
                    let lines: Vec<&str> = text.lines().collect();
                    let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
                    println!("the last lines of {program} {number}:\n{}", last.join("\n"));
                }
            }
        }
    }
}

impl Setup {
    /// Creates a setup with a Redis and an empty database with the schema.
    pub(crate) async fn new() -> Self {
        Self::with_redis(&DURABLE).await
    }

    pub(crate) async fn with_redis(arguments: &[&str]) -> Self {
        let setup = Self::without_schema(arguments).await;
        setup.migrate();
        setup
    }

    pub(crate) async fn without_schema(redis_arguments: &[&str]) -> Self {
        static DATABASES: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", DATABASES.fetch_add(1, Ordering::Relaxed));
        let server = shared_postgres();
        let admin = postgres_client(&server.url("postgres")).await;
        admin.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
        Self::with(redis_arguments, Database::Shared(server.url(&name)))
    }

    /// Creates a setup with a private Postgres, which the test may stop, kill or freeze.
    pub(crate) fn with_own_postgres(postgres_settings: Settings<'_>) -> Self {
        let postgres = Box::new(start_postgres(postgres_settings));
        let setup = Self::with(&DURABLE, Database::Own(postgres));
        setup.migrate();
        setup
    }

    fn with(redis_arguments: &[&str], database: Database) -> Self {
        Self::of(start_redis(redis_arguments), database)
    }

    /// Creates a setup from servers that were started for this test. The database is empty.
    pub(crate) fn of_servers(redis: RedisServer, postgres: PostgresServer) -> Self {
        Self::of(redis, Database::Own(Box::new(postgres)))
    }

    fn of(redis: RedisServer, database: Database) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { redis, database, folder, logs: AtomicU32::new(0) }
    }

    pub(crate) fn postgres(&mut self) -> &mut PostgresServer {
        match &mut self.database {
            Database::Own(server) => server,
            Database::Shared(_) => panic!("this test shares its Postgres"),
        }
    }

    /// Runs a test step while Postgres is frozen.
    pub(crate) async fn frozen_postgres(&self, work: impl AsyncFnOnce()) {
        let Database::Own(server) = &self.database else { panic!("this test shares its Postgres") };
        server.pause();
        work().await;
        server.resume();
    }

    pub(crate) fn database_url(&self) -> String {
        match &self.database {
            Database::Own(server) => server.url("postgres"),
            Database::Shared(url) => url.clone(),
        }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn migrate(&self) {
        let migrated = run("likesctl", &["migrate"], &[("DATABASE_URL", &self.database_url())]);
        assert_eq!(migrated.code, Some(0), "{}", migrated.stderr);
    }

    /// Settings of every program of this test. Later settings override earlier ones, and a file its value.
    fn settings(&self, over: Settings<'_>) -> Vec<(String, String)> {
        let own = [
            ("REDIS_URL", self.redis.url()),
            ("DATABASE_URL", self.database_url()),
            ("LIKES_PARTITIONS", PARTITIONS.to_string()),
            ("INGEST_LISTEN", "127.0.0.1:0".to_owned()),
            ("INGEST_ADMIN_LISTEN", "127.0.0.1:0".to_owned()),
            ("CONSUMER_ADMIN_LISTEN", "127.0.0.1:0".to_owned()),
        ];
        let has_file = |name: &str| over.iter().any(|(file, _)| file.strip_suffix("_FILE") == Some(name));
        let own = own.into_iter().filter(|(name, _)| !has_file(name));
        let over = over.iter().map(|(name, value)| (*name, (*value).to_owned()));
        own.chain(over).map(|(name, value)| (name.to_owned(), value)).collect()
    }

    fn log(&self, program: &str, number: u32) -> PathBuf {
        self.folder().join(format!("{program}-{number}.log"))
    }

    /// Starts a program without waiting until it is ready.
    pub(crate) fn start(&self, name: &str, over: Settings<'_>) -> Program {
        self.start_without("", name, over)
    }

    /// Starts a program as [`Self::start`] does, without a setting that the setup has.
    pub(crate) fn start_without(&self, setting: &str, name: &str, over: Settings<'_>) -> Program {
        let mut settings = self.settings(over);
        settings.retain(|(name, _)| name != setting);
        let settings: Vec<(&str, String)> =
            settings.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        let log = self.log(name, self.logs.fetch_add(1, Ordering::Relaxed));
        Program::start(name, &settings, &log).unwrap()
    }

    pub(crate) fn ingest(&self, over: Settings<'_>) -> Program {
        let ingest = self.start("ingest", over);
        ingest.wait_ready(SOON).unwrap();
        ingest
    }

    pub(crate) fn consumer(&self, over: Settings<'_>) -> Program {
        let consumer = self.start("consumer", over);
        consumer.wait_ready(SOON).unwrap();
        consumer
    }

    /// Client that inspects Redis directly.
    pub(crate) async fn redis_client(&self) -> Client {
        let client = Builder::from_config(Config::from_url(&self.redis.url()).unwrap()).build().unwrap();
        client.init().await.unwrap();
        client
    }

    pub(crate) async fn postgres_client(&self) -> tokio_postgres::Client {
        postgres_client(&self.database_url()).await
    }

    /// Appends likes as another producer would, spread over the partitions, with `per_entry` likes per entry.
    pub(crate) async fn append(&self, likes: &[Like], per_entry: usize) {
        let client = self.redis_client().await;
        for (entry, likes) in likes.chunks(per_entry).enumerate() {
            let partition = u16::try_from(entry % usize::from(PARTITIONS)).unwrap();
            append_raw(&client, partition, &codec::encode(likes)).await;
        }
    }

    /// Rows of the table: user, post, microseconds since the epoch.
    pub(crate) async fn rows(&self) -> Vec<(i64, i64, i64)> {
        let sql = "SELECT user_id, post_id, (extract(epoch FROM created_at) * 1000000)::bigint FROM likes
                   ORDER BY user_id, post_id";
        let rows = self.postgres_client().await.query(sql, &[]).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
    }

    pub(crate) async fn count(&self) -> usize {
        let row = self.postgres_client().await.query_one("SELECT count(*) FROM likes", &[]).await.unwrap();
        usize::try_from(row.get::<_, i64>(0)).unwrap()
    }

    /// Waits until the table has exactly this number of rows.
    pub(crate) async fn wait_for_rows(&self, rows: usize) {
        let client = self.postgres_client().await;
        eventually(&format!("{rows} rows"), async || {
            let row = client.query_one("SELECT count(*) FROM likes", &[]).await.unwrap();
            row.get::<_, i64>(0) == i64::try_from(rows).unwrap()
        })
        .await;
    }

    /// Waits until the backlog of all partitions is empty.
    pub(crate) async fn wait_until_drained(&self) {
        wait_until_drained(&self.redis.url()).await;
    }
}

pub(crate) async fn postgres_client(url: &str) -> tokio_postgres::Client {
    postgres_server::connect(url).await.unwrap()
}

pub(crate) fn stream(partition: u16) -> String {
    format!("likes:{{{partition}}}")
}

pub(crate) fn dead_stream(partition: u16) -> String {
    format!("likes:{{{partition}}}:dead")
}

pub(crate) async fn append_raw(client: &Client, partition: u16, payload: &[u8]) -> String {
    let fields = vec![("l", bytes::Bytes::copy_from_slice(payload))];
    client.xadd(stream(partition), false, None::<()>, "*", fields).await.unwrap()
}

pub(crate) async fn create_groups(client: &Client) {
    for partition in 0..PARTITIONS {
        client.xgroup_create::<(), _, _, _>(stream(partition), GROUP, "0", true).await.unwrap();
    }
}

/// Number of entries in all streams, acknowledged or not.
pub(crate) async fn entries(client: &Client) -> u64 {
    let mut entries = 0;
    for partition in 0..PARTITIONS {
        entries += client.xlen::<u64, _>(stream(partition)).await.unwrap();
    }
    entries
}

/// Number of pending entries of the group over all partitions.
pub(crate) async fn pending(client: &Client) -> u64 {
    let mut pending = 0;
    for partition in 0..PARTITIONS {
        let summary: Vec<Value> = client.xpending(stream(partition), GROUP, ()).await.unwrap();
        pending += summary[0].as_u64().unwrap();
    }
    pending
}

/// Number of pending entries, where partitions without the group count as 0.
pub(crate) async fn pending_or_none(client: &Client) -> u64 {
    let mut pending = 0;
    for partition in 0..PARTITIONS {
        let summary: Result<Vec<Value>, _> = client.xpending(stream(partition), GROUP, ()).await;
        pending += summary.ok().and_then(|summary| summary[0].as_u64()).unwrap_or(0);
    }
    pending
}

/// Waits until the backlog of all partitions of this Redis is empty.
pub(crate) async fn wait_until_drained(redis_url: &str) {
    let redis = connections(redis_url).await;
    let backlog = async || backlog::entries(&redis, (0..PARTITIONS).map(stream)).await.unwrap();
    eventually("drained", async || backlog().await == 0).await;
}

/// Connects to the Redis deployment at the URL.
pub(crate) async fn connections(redis_url: &str) -> Connections {
    Redis::at(redis_url, SOON).unwrap().connect().await.unwrap()
}

/// Sends heartbeats for a consumer that does not run, until the handle is dropped.
pub(crate) fn send_heartbeats_as(client: Client, consumer: &'static str) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        let key = format!("likes:members:{GROUP}");
        loop {
            let time = CustomCommand::new_static("TIME", ClusterHash::Random, false);
            let (seconds, microseconds): (u64, u64) =
                client.custom(time, Vec::<String>::new()).await.unwrap();
            let heartbeat = format!("test leaving  {}", seconds * 1_000 + microseconds / 1_000);
            client.hset::<u64, _, _>(&key, (consumer, heartbeat)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }))
}

/// Polls a condition until it holds, and panics after [`SOON`].
pub(crate) async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !is_so().await {
        assert!(Instant::now() < deadline, "not within {SOON:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) fn like(user: u64, post: u64) -> Like {
    Like::new(user.into(), post.into(), 1_700_000_000_000_000).unwrap()
}

/// Likes of users 1 to `users` for one post.
pub(crate) fn likes(users: u64) -> Vec<Like> {
    (1..=users).map(|user| like(user, 42)).collect()
}

pub(crate) async fn post(ingest: &Program, body: &str) -> Response {
    let mut client = HttpClient::new(ingest.listen());
    client.post("/likes", "application/json", body.to_owned().into()).await.unwrap()
}

/// Checks the required members of a problem response and returns its code.
pub(crate) fn problem(response: &Response) -> String {
    assert_eq!(response.headers["content-type"], "application/problem+json");
    let problem: serde_json::Value = serde_json::from_slice(&response.body).unwrap();
    assert_eq!(problem["status"], response.status.as_u16());
    assert_eq!(problem["request_id"], response.headers["x-request-id"].to_str().unwrap());
    assert!(
        !problem["title"].as_str().unwrap().is_empty() && !problem["detail"].as_str().unwrap().is_empty()
    );
    problem["type"].as_str().unwrap().strip_prefix("urn:likestream:problem:").unwrap().to_owned()
}

/// Exit code and output of a program.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs a program to its end.
pub(crate) fn run(program: &str, arguments: &[&str], settings: Settings<'_>) -> Ended {
    let settings: Vec<(&str, String)> =
        settings.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    let output = program::command(program, &settings).unwrap().args(arguments).output().unwrap();
    Ended {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}
