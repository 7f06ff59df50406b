//! `devstack chaos`: fault injection under load, reproducible by a seed, followed by a check of every like.
//!
//! Purpose: prove that no fault loses or duplicates an accepted like. `plan` chooses the faults, and `injector` runs them. Each
//! family of faults has a file: `programs`, `redis` (with `link`), `postgres`, `table`, `malformed`. May depend on `stack`, `load`, `verify`
//! and the library. Must not depend on how the programs recover: it sees only their processes, Redis and the table.

mod check;
mod injector;
mod malformed;
mod plan;
mod postgres;
mod programs;
mod redis;
mod table;

use std::{
    error::Error,
    path::PathBuf,
    time::{Duration, Instant},
};

use devstack::{
    backlog::{self, Keys},
    link::Link,
    postgres_server::{self, PostgresServer},
    process::Lifetime,
};
use shared::{redis::Connections, settings::args::positive_duration, stderr::eprint_line};
use tokio::{runtime::Handle, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    chaos::{
        check::{ChaosReport, Check},
        injector::Injector,
        malformed::Malformed,
        plan::{FaultKind, Plan},
    },
    json_file,
    load::{self, Load, Pace, REJECTED_POST},
    stack::{Stack, StackOptions},
    stack_redis::Deployment,
};

#[derive(clap::Args)]
pub(crate) struct ChaosOptions {
    /// Seed of the faults [default: random]
    #[arg(long, env = "SEED")]
    seed: Option<u64>,

    /// Duration of the load
    #[arg(long, default_value = "1m", value_parser = positive_duration)]
    duration: Duration,

    /// Likes per second
    #[arg(long, default_value = "2000", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,

    /// Deployment of Redis
    #[arg(long, default_value = "one", value_name = "DEPLOYMENT")]
    redis: Deployment,

    /// JSON file for the report
    #[arg(long, default_value = "target/chaos.json", value_name = "FILE")]
    json: PathBuf,
}

/// Role of the consumers: a superuser would keep revoked rights.
const CONSUMER_ROLE: &str = "likestream_consumer";
const ROLES: &str = include_str!("../../../sql/roles.sql");

const CONSUMERS: usize = 3;
const CONNECTIONS: u16 = 16;
const DUPLICATE_PERCENT: u8 = 10;
const REJECTED_PER_MILLE: u16 = 2;

/// Time limit for draining the backlog after the load.
const DRAIN_LIMIT: Duration = Duration::from_mins(2);

/// Runs the load and the faults, and returns whether every guarantee held.
pub(crate) async fn run(options: &ChaosOptions) -> Result<bool, Box<dyn Error>> {
    json_file::check(&options.json)?;
    let seed = options.seed.unwrap_or_else(|| rand::random::<u32>().into());
    eprint_line(format_args!(
        "chaos run with SEED={seed}: starting private servers, ingest and {CONSUMERS} consumers"
    ));
    let mut stack = Stack::start(stack_options(options.redis), Lifetime::Attached)?;
    let ingest = stack.ingest.listen();
    let redis = backlog::connect(&stack.redis.url()).await?;
    let check = format!("ALTER TABLE likes ADD CHECK (post_id <> {REJECTED_POST})");
    let admin = postgres_server::connect(&stack.postgres.url("postgres")).await?;
    admin.batch_execute(ROLES).await?;
    admin.batch_execute(&check).await?;
    let standby = PostgresServer::standby_of(&stack.postgres, None)?;
    let link = match (options.redis, stack.redis.servers()) {
        (Deployment::One, [server]) => Some(Link::start(server.port()).await?),
        _ => None,
    };
    let database_url = format!(
        "postgres://{CONSUMER_ROLE}@127.0.0.1:{},127.0.0.1:{}/postgres?target_session_attrs=read-write",
        stack.postgres.port(),
        standby.port()
    );
    let redis_url = link.iter().map(|link| ("REDIS_URL", link.redis_url()));
    stack.restart_consumers(redis_url.chain([("DATABASE_URL", database_url)]))?;

    let until = Instant::now() + options.duration;
    let load = Load {
        likes: u64::from(options.rate) * options.duration.as_secs().max(1) * 2,
        duplicate_percent: DUPLICATE_PERCENT,
        rejected_per_mille: REJECTED_PER_MILLE,
    };
    let pace = Pace { connections: CONNECTIONS, per_second: Some(options.rate), until: Some(until) };
    // The injector blocks a thread, so it needs a signal when this future is dropped.
    let stop = CancellationToken::new();
    let _stop_on_drop = stop.clone().drop_guard();
    let injector = Injector {
        stack,
        standby,
        link,
        redis: redis.clone(),
        runtime: Handle::current(),
        stop,
        malformed: Malformed::default(),
        load,
        injected: std::collections::BTreeMap::new(),
    };
    let plan = Plan::new(seed, FaultKind::all(options.redis));
    let injecting = tokio::task::spawn_blocking(move || injector.run(plan, until));
    let sending = load::send(load, ingest, pace);
    let injected = async { Ok::<_, Box<dyn Error>>(injecting.await??) };
    let (injector, sent) = tokio::try_join!(injected, async { Ok(sending.await?) })?;

    let backlog = wait_until_drained(&redis).await?;
    let table = postgres_server::connect(&injector.stack.postgres.url("postgres")).await?;
    let check = Check { load, sent: &sent, malformed: &injector.malformed, redis: &redis, table: &table };
    let findings = check.run().await?;
    let faults = injector.injected.iter().map(|(kind, count)| (kind.to_string(), *count)).collect();
    let seconds = options.duration.as_secs();
    injector.stack.stop()?;
    let report = ChaosReport { seed, seconds, findings, backlog, faults };
    report.print();
    json_file::write(&options.json, &report)?;
    Ok(report.passed())
}

/// Settings under which a crash of Redis loses no accepted like and pending entries are claimed within seconds.
fn stack_options(redis: Deployment) -> StackOptions {
    let acks = match redis {
        Deployment::One => "memory",
        // A failover loses entries that the replica has not received.
        Deployment::Cluster => "replicas:1",
    };
    // A standby reconnects at once, and misses nothing while it was away.
    let postgres_settings = [("wal_retrieve_retry_interval", "200ms"), ("wal_keep_size", "1GB")];
    let consumer_settings = [("BATCH_LINGER", "20ms"), ("WRITE_TIMEOUT", "900ms"), ("CLAIM_MIN_IDLE", "2s")];
    StackOptions {
        consumer_admin_ports: vec![0; CONSUMERS],
        redis_arguments: ["--appendfsync", "always"].map(str::to_owned).to_vec(),
        redis,
        postgres_settings: postgres_settings
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec(),
        ingest_settings: vec![("REDIS_ACK", acks.to_owned())],
        consumer_settings: consumer_settings.map(|(name, value)| (name, value.to_owned())).to_vec(),
        ..StackOptions::default()
    }
}

/// Waits until the backlog is empty or the time limit has passed, and returns the remaining backlog.
async fn wait_until_drained(redis: &Connections) -> Result<u64, fred::error::Error> {
    let keys = Keys::default();
    let deadline = Instant::now() + DRAIN_LIMIT;
    loop {
        let backlog = backlog::entries(redis, keys.streams()).await?;
        if backlog == 0 || Instant::now() >= deadline {
            return Ok(backlog);
        }
        sleep(Duration::from_millis(100)).await;
    }
}
