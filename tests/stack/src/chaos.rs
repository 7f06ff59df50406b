//! A run of faults under load, repeatable by its seed, and what became of every like.

mod check;
mod injector;
mod malformed;
mod plan;

use std::{
    error::Error,
    path::PathBuf,
    time::{Duration, Instant},
};

use devstack::process::Lifetime;
use shared::{redis::Connections, settings::args::positive_duration};
use tokio::{runtime::Handle, time::sleep};
use tokio_postgres::NoTls;
use tokio_util::sync::CancellationToken;

use crate::{
    backlog::{self, Keys},
    chaos::{
        injector::Injector,
        malformed::Malformed,
        plan::{Kind, Plan},
    },
    figures,
    load::{self, Load, Pace, REJECTED_POST},
    progress::say,
    stack::{Stack, StackOptions},
    stack_redis::Deployment,
};

/// How much is thrown at the stack, and for how long.
#[derive(clap::Args)]
pub(crate) struct ChaosOptions {
    /// What the faults follow from [default: any]
    #[arg(long, env = "SEED")]
    seed: Option<u64>,

    /// How long
    #[arg(long, default_value = "1m", value_parser = positive_duration)]
    duration: Duration,

    /// How many likes a second
    #[arg(long, default_value = "2000", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,

    /// How Redis is run
    #[arg(long, default_value = "one", value_name = "DEPLOYMENT")]
    redis: Deployment,

    /// Where the figures go as JSON
    #[arg(long, default_value = "target/chaos.json", value_name = "FILE")]
    json: PathBuf,
}

const CONSUMERS: usize = 3;
const CALLERS: u16 = 16;
const DUPLICATE_PERCENT: u8 = 10;
const REJECTED_PER_MILLE: u16 = 2;

/// At the end everything has to be done within this time.
const DRAIN: Duration = Duration::from_mins(2);

/// Runs it and tells whether every promise was kept.
pub(crate) async fn run(options: &ChaosOptions) -> Result<bool, Box<dyn Error>> {
    figures::check_file(&options.json)?;
    let seed = options.seed.unwrap_or_else(|| rand::random::<u32>().into());
    say(&format!("chaos with SEED={seed}: starting private servers, ingest and {CONSUMERS} consumers"));
    let stack = Stack::start(stack_options(options.redis), Lifetime::Leashed)?;
    let (ingest, redis_url, database_url) =
        (stack.ingest.listen(), stack.redis.url(), stack.postgres.url("postgres"));
    reject_the_rejected_post(&database_url).await?;
    let redis = backlog::connect(&redis_url).await?;

    let until = Instant::now() + options.duration;
    let load = Load {
        likes: u64::from(options.rate) * options.duration.as_secs().max(1) * 2,
        duplicate_percent: DUPLICATE_PERCENT,
        rejected_per_mille: REJECTED_PER_MILLE,
    };
    let pace = Pace { connections: CALLERS, per_second: Some(options.rate), until: Some(until) };
    // The injector blocks, and must hear of it when this is dropped.
    let stop = CancellationToken::new();
    let _stops_with_this = stop.clone().drop_guard();
    let injector = Injector {
        stack,
        redis: redis.clone(),
        runtime: Handle::current(),
        stop,
        malformed: Malformed::default(),
        injected: std::collections::BTreeMap::new(),
    };
    let plan = Plan::new(seed, Kind::all(options.redis));
    let injecting = tokio::task::spawn_blocking(move || injector.run(plan, until));
    let sending = load::send(load, ingest, pace);
    let injected = async { Ok::<_, Box<dyn Error>>(injecting.await??) };
    let (injector, sent) = tokio::try_join!(injected, async { Ok(sending.await?) })?;

    let left = wait_until_drained(&redis).await?;
    let run = (seed, options.duration.as_secs(), left);
    let mut report = check::check(run, (load, &sent), &injector.malformed, &redis, &database_url).await?;
    report.faults = injector.injected.iter().map(|(kind, count)| (kind.to_string(), *count)).collect();
    injector.stack.stop()?;
    report.print();
    figures::write_json(&report, &options.json)?;
    Ok(report.passed())
}

/// Every crash of Redis is to keep what was accepted; and what is left pending is to be claimed soon.
fn stack_options(redis: Deployment) -> StackOptions {
    let acks = match redis {
        Deployment::One => "memory",
        // What the replica has not, a failover loses.
        Deployment::Cluster => "replicas:1",
    };
    let consumer_settings = [("BATCH_LINGER", "20ms"), ("WRITE_TIMEOUT", "900ms"), ("CLAIM_MIN_IDLE", "2s")];
    StackOptions {
        consumer_admin_ports: vec![0; CONSUMERS],
        redis_arguments: ["--appendfsync", "always"].map(str::to_owned).to_vec(),
        redis,
        ingest_settings: vec![("REDIS_ACK", acks.to_owned())],
        consumer_settings: consumer_settings.map(|(name, value)| (name, value.to_owned())).to_vec(),
        ..StackOptions::default()
    }
}

async fn reject_the_rejected_post(database_url: &str) -> Result<(), tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(database_url, NoTls).await?;
    tokio::spawn(connection);
    client.batch_execute(&format!("ALTER TABLE likes ADD CHECK (post_id <> {REJECTED_POST})")).await
}

/// How many entries are still to be done when the time is up.
async fn wait_until_drained(redis: &Connections) -> Result<u64, fred::error::Error> {
    let (keys, give_up_at) = (Keys::default(), Instant::now() + DRAIN);
    loop {
        let waiting = backlog::entries(redis, &keys).await?;
        if waiting == 0 || Instant::now() >= give_up_at {
            return Ok(waiting);
        }
        sleep(Duration::from_millis(100)).await;
    }
}
