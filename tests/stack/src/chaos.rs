//! `devstack chaos`: fault injection under load, reproducible by a seed, followed by a check of every like.
//!
//! Purpose: prove that no fault loses or duplicates an accepted like. `setup` starts the servers and programs, `plan` chooses the
//! faults, `injector` runs them, and `check` looks for each like. Each family of faults has a file: `programs`, `redis`,
//! `postgres`, `table`, `malformed`, `loss`. May depend on `stack`, `load`, `verify` and the library. Must not depend on how the
//! programs recover: it sees only their processes, Redis, the table and what `likesctl` says.

mod check;
mod group;
mod injector;
mod login;
mod loss;
mod malformed;
mod plan;
mod postgres;
mod programs;
mod redis;
mod setup;
mod table;

use std::{
    error::Error,
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

use devstack::{
    backlog::{self, Keys},
    postgres_server,
};
use shared::{redis::Connections, settings::args::positive_duration, stderr::eprint_line};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    chaos::{
        check::{ChaosReport, Check},
        injector::Injector,
        plan::{FaultKind, Plan},
        setup::CONSUMERS,
    },
    json_file,
    load::{self, Load, Pace},
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
    let load = Load {
        likes: u64::from(options.rate) * options.duration.as_secs().max(1) * 2,
        duplicate_percent: DUPLICATE_PERCENT,
        rejected_per_mille: REJECTED_PER_MILLE,
    };
    // The injector blocks a thread, so it needs a signal when this future is dropped.
    let stop = CancellationToken::new();
    let _stop_on_drop = stop.clone().drop_guard();
    let injector = Injector::start(options.redis, load, stop).await?;
    let ingest = injector.stack.ingest.listen();
    let redis = injector.redis.clone();

    let since = SystemTime::now();
    let until = Instant::now() + options.duration;
    let pace = Pace { connections: CONNECTIONS, per_second: Some(options.rate), until: Some(until) };
    let plan = Plan::new(seed, FaultKind::all(options.redis));
    let injecting = tokio::task::spawn_blocking(move || injector.run(plan, until));
    let sending = load::send(load, ingest, pace);
    let injected = async { Ok::<_, Box<dyn Error>>(injecting.await??) };
    let (injector, sent) = tokio::try_join!(injected, async { Ok(sending.await?) })?;

    let backlog = wait_until_drained(&redis).await?;
    let table = postgres_server::connect(&injector.stack.postgres.url("postgres")).await?;
    let Injector { malformed, lost, .. } = &injector;
    let reported = injector.reported_losses()?;
    let check = Check { load, since, sent: &sent, malformed, lost, reported, redis: &redis, table: &table };
    let findings = check.run().await?;
    let faults = injector.injected.iter().map(|(kind, count)| (kind.to_string(), *count)).collect();
    let seconds = options.duration.as_secs();
    injector.stack.stop()?;
    let report = ChaosReport { seed, seconds, findings, backlog, faults };
    report.print();
    json_file::write(&options.json, &report)?;
    Ok(report.passed())
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
