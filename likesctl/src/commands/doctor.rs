//! `likesctl doctor`: diagnoses the pipeline and suggests fixes.
//!
//! Purpose: one function per check, grouped by subject; `findings` collects and prints the results. May depend on
//! `context`, `overview` and `verifier`. Must not change anything.

mod database;
mod findings;
mod group;
mod pending;
mod postgres;
mod redis;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use shared::{
    postgres::Session,
    settings::args::{PostgresArgs, partition_count},
    wire::partition::PartitionCount,
};
use tokio_postgres::Client;

use self::findings::Findings;
use crate::{
    context::{self, Context, RedisAccess, answer},
    exit::{CliError, Exit},
    output::{OutputArgs, age},
};

/// Idle time or age above which an entry is reported, well over CLAIM_MIN_IDLE.
const STALE_AFTER: Duration = Duration::from_mins(5);

/// Tolerated difference between two clocks.
const CLOCK_SKEW: Duration = Duration::from_secs(2);

#[derive(Args)]
pub(crate) struct Options {
    /// Number of partitions that the programs are configured with, to compare with the cluster settings
    #[arg(long, env = "LIKES_PARTITIONS", value_name = "COUNT", value_parser = partition_count)]
    likes_partitions: Option<PartitionCount>,

    #[command(flatten)]
    output: OutputArgs,

    #[command(flatten)]
    redis: RedisAccess,

    #[command(flatten)]
    postgres: PostgresArgs,
}

pub(crate) async fn run(options: Options) -> Result<Exit, CliError> {
    let mut findings = Findings::new(options.output);
    let context = connect_to_redis(&mut findings, &options).await?;
    let mut postgres = connect_to_postgres(&mut findings, &options).await?;
    let client = postgres.as_ref().map(|(client, _)| client);
    if let Some(client) = client {
        let checked = postgres::check(&mut findings, client).await;
        findings.record_failure("postgres", checked)?;
    }
    if let Some(context) = &context {
        let checked = redis::check(&mut findings, context).await;
        findings.record_failure("redis", checked)?;
        partitions(&mut findings, context, options.likes_partitions)?;
        let checked = clocks(&mut findings, context, client.map(|client| &**client)).await;
        findings.record_failure("clocks", checked)?;
        match context.overview(&context.partitions_of(None)?).await {
            Ok(overview) => {
                group::check(&mut findings, &overview)?;
                let checked = pending::check(&mut findings, context, &overview).await;
                findings.record_failure("pending", checked)?;
                group::dead_letters(&mut findings, &overview)?;
            }
            Err(error) => findings.record_failure("group", Err(error.into()))?,
        }
    }
    if let (Some(context), Some((client, address))) = (&context, &mut postgres) {
        let checked = database::check(&mut findings, context, client, address).await;
        findings.record_failure("database", checked)?;
        let checked = postgres::stored(&mut findings, context, client).await;
        findings.record_failure("stored", checked)?;
    }
    findings.finish()
}

async fn connect_to_redis(findings: &mut Findings, options: &Options) -> Result<Option<Context>, CliError> {
    match options.redis.open().await {
        Ok(context) => {
            findings.ok("redis", format!("{} answers", context.server))?;
            Ok(Some(context))
        }
        Err(error) => {
            let why = error.line_and_code().0.unwrap_or_default();
            findings.fail("redis", why, "the checks of the streams need Redis")?;
            Ok(None)
        }
    }
}

/// Returns the connection and the address.
async fn connect_to_postgres(
    findings: &mut Findings,
    options: &Options,
) -> Result<Option<(Session, String)>, CliError> {
    let limit = options.redis.startup_timeout;
    match context::postgres(&options.postgres, "likesctl doctor", limit).await {
        Ok((client, postgres)) => Ok(Some((client, postgres.address().to_owned()))),
        Err(error) => {
            let why = error.line_and_code().0.unwrap_or_default();
            findings.fail("postgres", why, "likes stay in Redis until Postgres is available")?;
            Ok(None)
        }
    }
}

fn partitions(
    findings: &mut Findings,
    context: &Context,
    configured: Option<PartitionCount>,
) -> Result<(), CliError> {
    let recorded = context.partitions;
    match configured {
        Some(configured) if configured != recorded => findings.warn(
            "partitions",
            format!("Redis records {recorded}, but LIKES_PARTITIONS is {configured}"),
            format!("set LIKES_PARTITIONS to {recorded}, or unset it"),
        ),
        _ => findings.ok("partitions", format!("Redis records {recorded}")),
    }
}

async fn clocks(findings: &mut Findings, context: &Context, client: Option<&Client>) -> Result<(), CliError> {
    let local_ms = || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
    };
    let mut skews = vec![("Redis", context.now_ms().await?.abs_diff(local_ms()))];
    if let Some(client) = client {
        let now = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint";
        let row = answer(client.query_typed_one(now, &[])).await?;
        skews.push(("Postgres", row.get::<_, i64>(0).unsigned_abs().abs_diff(local_ms())));
    }
    let skewed = skews.iter().filter(|(_, skew_ms)| u128::from(*skew_ms) > CLOCK_SKEW.as_millis());
    let skewed: Vec<String> =
        skewed.map(|(server, skew_ms)| format!("{server} by {}", age(*skew_ms))).collect();
    if skewed.is_empty() {
        return findings.ok("clocks", "the servers are in sync with this machine");
    }
    let seen = format!("clock skew to this machine: {}", skewed.join(", "));
    findings.warn("clocks", seen, "reported ages and latencies are off by this much; check NTP")
}
