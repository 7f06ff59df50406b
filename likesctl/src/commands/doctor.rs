//! `likesctl doctor`: all that can be wrong, looked at in turn, each with what to do.

use std::{
    fmt::Write as _,
    io::{self, Write},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::Args;
use consumer::{entry::EntryId, store::schema};
use serde::Serialize;
use shared::{
    error_chain::one_line,
    settings::args::PostgresArgs,
    wire::partition::{Partition, PartitionCount},
};
use tokio_postgres::Client;

use crate::{
    commands::verify::Verifier,
    context::{self, Context, REASSIGN_CONSUMER, RedisAccess, answer},
    exit::{CliError, Exit},
    output::{Format, OutputArgs, age, count, many, print_document, printable},
    overview::Overview,
};

/// An entry that was pending for longer is stuck: CLAIM_MIN_IDLE is long over.
const STUCK_AFTER: Duration = Duration::from_mins(5);

/// Delivered more often, an entry is suspect: MAX_DELIVERIES, unless somebody has set another.
const SUSPECT_DELIVERIES: u64 = 5;

/// So many pending entries of a partition are looked at, the oldest ones, so many at once.
const SURVEYED: u64 = 10_000;
const SURVEY_PAGE: usize = 1_000;

/// So many acknowledged entries of a partition are compared with the table, the newest ones.
const COMPARED: usize = 1_000;

/// Clocks may differ by so much.
const CLOCK_SKEW: Duration = Duration::from_secs(2);

/// So full, in percent of its maxmemory, Redis is a matter of concern, or of alarm.
const MEMORY_WARN_PERCENT: u64 = 75;
const MEMORY_FAIL_PERCENT: u64 = 90;

#[derive(Args)]
pub(crate) struct Options {
    /// What the programs are set to, to be compared with the record in Redis
    #[arg(long, env = "LIKES_PARTITIONS", value_name = "COUNT")]
    likes_partitions: Option<PartitionCount>,

    #[command(flatten)]
    output: OutputArgs,

    #[command(flatten)]
    redis: RedisAccess,

    #[command(flatten)]
    postgres: PostgresArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    Warn,
    Fail,
}

/// What was looked at, and what was seen.
#[derive(Serialize)]
struct Finding {
    check: &'static str,
    state: State,
    seen: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

/// Findings so far. On a terminal each is shown at once.
struct Examination {
    output: OutputArgs,
    findings: Vec<Finding>,
}

impl Examination {
    fn ok(&mut self, check: &'static str, seen: impl Into<String>) -> Result<(), CliError> {
        self.found(Finding { check, state: State::Ok, seen: seen.into(), advice: None })
    }

    fn bad(
        &mut self,
        check: &'static str,
        state: State,
        seen: impl Into<String>,
        advice: impl Into<String>,
    ) -> Result<(), CliError> {
        self.found(Finding { check, state, seen: seen.into(), advice: Some(advice.into()) })
    }

    /// A look that failed is a finding, too.
    fn look(&mut self, check: &'static str, looked: Result<(), CliError>) -> Result<(), CliError> {
        match looked {
            Err(CliError::Failed(error)) => {
                let advice = "it could not be looked at: see what is wrong with that server, and look again";
                self.bad(check, State::Fail, one_line(&*error), advice)
            }
            looked => looked,
        }
    }

    fn found(&mut self, finding: Finding) -> Result<(), CliError> {
        if matches!(self.output.output, Format::Table | Format::Wide) {
            writeln!(anstream::stdout(), "{}", finding.text())?;
            io::stdout().flush()?;
        }
        self.findings.push(finding);
        Ok(())
    }

    fn end(self) -> Result<Exit, CliError> {
        let number = |state| self.findings.iter().filter(|finding| finding.state == state).count() as u64;
        let (warn, fail) = (number(State::Warn), number(State::Fail));
        print_document(self.output, &self.findings, |_| {
            let (warnings, failures) = (many(warn, "warning", "warnings"), many(fail, "failure", "failures"));
            format!("{} checks: {warnings}, {failures}", self.findings.len())
        })?;
        Ok(if fail > 0 { Exit::Unwell } else { Exit::Done })
    }
}

impl Finding {
    fn text(&self) -> String {
        // Green, yellow and red: ECMA-48, SGR. They are left out where nobody wants them.
        let state = match self.state {
            State::Ok => "\x1b[32mok\x1b[0m  ",
            State::Warn => "\x1b[33mwarn\x1b[0m",
            State::Fail => "\x1b[31mfail\x1b[0m",
        };
        let mut text = format!("{state}  {:<14}{}", self.check, printable(&self.seen));
        if let Some(advice) = &self.advice {
            // A String takes every write.
            let _ = write!(text, "\n{:20}→ {}", "", printable(advice));
        }
        text
    }
}

pub(crate) async fn run(options: Options) -> Result<Exit, CliError> {
    let mut seen = Examination { output: options.output, findings: Vec::new() };
    let context = match options.redis.open().await {
        Ok(context) => {
            seen.ok("redis", format!("{} answers", context.server))?;
            Some(context)
        }
        Err(error) => {
            let why = error.end().0.unwrap_or_default();
            seen.bad("redis", State::Fail, why, "start Redis, or correct REDIS_URL and LIKES_STREAM")?;
            None
        }
    };
    let client =
        match context::postgres(&options.postgres, "likesctl doctor", options.redis.startup_timeout).await {
            Ok((client, _)) => Some(client),
            Err(error) => {
                let why = error.end().0.unwrap_or_default();
                seen.bad(
                    "postgres",
                    State::Fail,
                    why,
                    "likes wait in Redis meanwhile; start Postgres, or correct DATABASE_URL",
                )?;
                None
            }
        };
    if let Some(client) = &client {
        let looked = postgres(&mut seen, client).await;
        seen.look("postgres", looked)?;
    }
    if let Some(context) = &context {
        let looked = redis(&mut seen, context).await;
        seen.look("redis", looked)?;
        partitions(&mut seen, context, options.likes_partitions)?;
        let looked = clocks(&mut seen, context, client.as_ref()).await;
        seen.look("clocks", looked)?;
        match context.overview(&context.partitions_of(None)?).await {
            Ok(overview) => {
                group(&mut seen, &overview)?;
                consumers(&mut seen, &overview)?;
                backlog(&mut seen, &overview)?;
                let looked = pending(&mut seen, context, &overview).await;
                seen.look("pending", looked)?;
                dead(&mut seen, &overview)?;
            }
            Err(error) => seen.look("group", Err(error.into()))?,
        }
    }
    if let (Some(context), Some(client)) = (&context, &client) {
        let looked = stored(&mut seen, context, client).await;
        seen.look("stored", looked)?;
    }
    seen.end()
}

async fn postgres(seen: &mut Examination, client: &Client) -> Result<(), CliError> {
    let about = "SELECT current_setting('server_version'), pg_is_in_recovery(), current_setting('default_transaction_read_only')";
    let row = answer(client.query_typed(about, &[])).await?;
    if let Some(row) = row.first() {
        let (version, standby, read_only): (String, bool, String) = (row.get(0), row.get(1), row.get(2));
        if standby || read_only == "on" {
            seen.bad(
                "postgres",
                State::Fail,
                format!("{version}, read-only"),
                "DATABASE_URL must lead to the primary",
            )?;
        } else {
            seen.ok("postgres", version)?;
        }
    }
    let checked = answer(async { Ok::<_, CliError>(schema::check(client).await) }).await?;
    match checked {
        Ok(()) => seen.ok("schema", format!("version {}", schema::VERSION)),
        Err(error) => seen.bad("schema", State::Fail, one_line(&error), "likesctl migrate"),
    }
}

async fn redis(seen: &mut Examination, context: &Context) -> Result<(), CliError> {
    for (address, info) in context.streams.servers_info().await? {
        let field = |name: &str| {
            info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or("")
        };
        let number = |name: &str| field(name).parse::<u64>().unwrap_or(0);
        // Valkey says there which Redis it is like.
        let valkey = field("valkey_version");
        let (name, version) =
            if valkey.is_empty() { ("Redis", field("redis_version")) } else { ("Valkey", valkey) };
        let major: u32 = version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
        if major >= 7 {
            seen.ok("version", format!("{name} {version} at {address}"))?;
        } else {
            seen.bad(
                "version",
                State::Fail,
                format!("{name} {version}"),
                "use Redis 7.0, Valkey 8, or newer",
            )?;
        }
        let policy = field("maxmemory_policy");
        if policy == "noeviction" {
            seen.ok("eviction", policy)?;
        } else {
            let state = if policy.starts_with("allkeys") { State::Fail } else { State::Warn };
            let advice = "when memory is full Redis may drop what it must keep: CONFIG SET maxmemory-policy noeviction";
            seen.bad("eviction", state, policy, advice)?;
        }
        if number("aof_enabled") == 1 {
            let failed = field("aof_last_write_status") == "err";
            if failed {
                seen.bad(
                    "persistence",
                    State::Fail,
                    "the append-only file can't be written",
                    "look at Redis's disk",
                )?;
            } else {
                seen.ok("persistence", "append-only file")?;
            }
        } else {
            let advice =
                "a crash of Redis loses what was accepted since the last snapshot: CONFIG SET appendonly yes";
            seen.bad("persistence", State::Warn, "no append-only file", advice)?;
        }
        memory(seen, number("used_memory"), number("maxmemory"))?;
    }
    Ok(())
}

fn memory(seen: &mut Examination, used: u64, limit: u64) -> Result<(), CliError> {
    let mib = |bytes: u64| bytes >> 20;
    let Some(percent) = (used * 100).checked_div(limit) else {
        return seen.ok("memory", format!("{} MiB used, no maxmemory", mib(used)));
    };
    let text = format!("{} of {} MiB used, {percent} %", mib(used), mib(limit));
    let state = match percent {
        MEMORY_FAIL_PERCENT.. => State::Fail,
        MEMORY_WARN_PERCENT.. => State::Warn,
        _ => return seen.ok("memory", text),
    };
    seen.bad(
        "memory",
        state,
        text,
        "callers get 503 when it is full: start consumers, or raise maxmemory (runbook: Redis memory)",
    )
}

fn partitions(
    seen: &mut Examination,
    context: &Context,
    set: Option<PartitionCount>,
) -> Result<(), CliError> {
    let recorded = context.partitions;
    match set {
        Some(set) if set != recorded => {
            let advice = format!("set LIKES_PARTITIONS to {recorded}, or to nothing");
            seen.bad(
                "partitions",
                State::Warn,
                format!("{recorded} on record, LIKES_PARTITIONS is {set}"),
                advice,
            )
        }
        _ => seen.ok("partitions", format!("{recorded} on record")),
    }
}

async fn clocks(seen: &mut Examination, context: &Context, client: Option<&Client>) -> Result<(), CliError> {
    let own_ms = || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
    };
    let mut skews = vec![("Redis", context.now_ms().await?.abs_diff(own_ms()))];
    if let Some(client) = client {
        let now = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint";
        let row = answer(client.query_typed_one(now, &[])).await?;
        skews.push(("Postgres", row.get::<_, i64>(0).unsigned_abs().abs_diff(own_ms())));
    }
    let far = skews.iter().filter(|(_, skew_ms)| u128::from(*skew_ms) > CLOCK_SKEW.as_millis());
    let far: Vec<String> = far.map(|(server, skew_ms)| format!("{server} by {}", age(*skew_ms))).collect();
    if far.is_empty() {
        return seen.ok("clocks", "those of the servers agree with this one");
    }
    seen.bad(
        "clocks",
        State::Warn,
        format!("differ from this one: {}", far.join(", ")),
        "ages are wrong by that: look at NTP",
    )
}

fn group(seen: &mut Examination, overview: &Overview) -> Result<(), CliError> {
    let missing: Vec<String> = overview
        .partitions
        .iter()
        .filter(|row| !row.has_group)
        .map(|row| row.partition.to_string())
        .collect();
    if missing.is_empty() {
        return seen.ok("group", format!("{} is on all partitions", overview.group));
    }
    let what = format!("{} is missing on partitions {}", overview.group, missing.join(","));
    seen.bad(
        "group",
        State::Fail,
        what,
        "start a consumer: it makes the group from the first entry on; or correct LIKES_GROUP",
    )
}

fn consumers(seen: &mut Examination, overview: &Overview) -> Result<(), CliError> {
    let alive = overview.consumers.iter().filter(|consumer| consumer.is_alive()).count();
    if alive == 0 {
        seen.bad(
            "consumers",
            State::Fail,
            "none is alive",
            "start consumers: likes wait in Redis meanwhile",
        )?;
    } else {
        seen.ok("consumers", format!("{alive} alive"))?;
    }
    for consumer in &overview.consumers {
        let name = &consumer.name;
        match consumer.state {
            "stuck" => seen.bad(
                "consumers",
                State::Fail,
                format!("{name} can't store anything"),
                "see its log, and postgres above",
            )?,
            _ if name == REASSIGN_CONSUMER && consumer.pending > 0 => {
                let entries = many(consumer.pending, "entry", "entries");
                seen.bad(
                    "consumers",
                    State::Warn,
                    format!("{entries} to be tried again, not claimed yet"),
                    "those that read the partitions claim them in seconds: start consumers",
                )?;
            }
            "dead" | "gone" if consumer.pending > 0 => {
                let what = format!(
                    "{name} is {} and has {}",
                    consumer.state,
                    many(consumer.pending, "pending entry", "pending entries")
                );
                seen.bad(
                    "consumers",
                    State::Warn,
                    what,
                    format!(
                        "living consumers claim them in seconds; if not: likesctl consumers remove {name}"
                    ),
                )?;
            }
            _ => {}
        }
    }
    if overview.total.paused > 0 {
        let paused = overview.partitions.iter().filter(|row| row.paused).map(|row| row.partition.to_string());
        let paused = paused.collect::<Vec<_>>().join(",");
        let flag = if overview.all_paused { String::new() } else { format!(" -p {paused}") };
        seen.bad(
            "paused",
            State::Warn,
            format!("partitions {paused}"),
            format!("when you are done: likesctl resume{flag}"),
        )?;
    }
    let unowned = overview.partitions.iter().filter(|row| row.owners.is_empty() && !row.paused);
    let unowned: Vec<String> = unowned.map(|row| row.partition.to_string()).collect();
    if alive > 0 && !unowned.is_empty() {
        let advice = "start consumers with CONSUMER_PARTITIONS=auto, or fixed to them";
        seen.bad("owners", State::Fail, format!("nobody reads partitions {}", unowned.join(",")), advice)?;
    }
    Ok(())
}

fn backlog(seen: &mut Examination, overview: &Overview) -> Result<(), CliError> {
    let total = &overview.total;
    let oldest = total.oldest_age_ms.unwrap_or(0);
    match total.backlog {
        None => {
            let advice =
                "Redis does not know it after some events; it is known again when consumers have caught up";
            seen.bad("backlog", State::Warn, format!("unknown, at least {}", count(total.pending)), advice)
        }
        Some(backlog) if u128::from(oldest) > STUCK_AFTER.as_millis() => {
            let what = format!("{} entries, the oldest waits for {}", count(backlog), age(oldest));
            seen.bad("backlog", State::Warn, what, "runbook: backlog grows")
        }
        Some(backlog) => seen.ok("backlog", format!("{} entries", count(backlog))),
    }
}

/// What a look at the oldest pending entries has brought.
#[derive(Default)]
struct Survey {
    looked_at: u64,
    deleted: u64,
    first_deleted: Option<(u16, EntryId)>,
    suspect: Option<(u64, u16, EntryId)>,
    laziest: Option<(u64, u16, EntryId)>,
}

async fn pending(seen: &mut Examination, context: &Context, overview: &Overview) -> Result<(), CliError> {
    let mut survey = Survey::default();
    for partition in context.partitions.partitions() {
        survey.partition(context, partition).await?;
    }
    let looked_at = count(survey.looked_at);
    match survey.laziest {
        Some((idle_ms, partition, id)) if u128::from(idle_ms) > STUCK_AFTER.as_millis() => seen.bad(
            "stuck",
            State::Fail,
            format!("{partition}/{id} is pending and was not heard of for {}", age(idle_ms)),
            "likesctl pending list --min-idle 5m, then likesctl pending retry --min-idle 5m",
        )?,
        _ => {
            let pending = count(overview.total.pending);
            seen.ok(
                "stuck",
                format!("no pending entry is idle for long, of {looked_at} looked at, {pending} in all"),
            )?;
        }
    }
    match survey.suspect {
        Some((deliveries, partition, id)) => {
            let what = format!("{partition}/{id} was delivered {deliveries} times: it may kill consumers");
            seen.bad(
                "poison",
                State::Warn,
                what,
                format!("likesctl pending show {partition}/{id} (runbook: stuck pending)"),
            )?;
        }
        None => seen.ok("poison", format!("nothing was delivered very often, of {looked_at} looked at"))?,
    }
    match survey.first_deleted {
        Some((partition, id)) => {
            let what = format!(
                "{} pending entries are no longer in their streams, the first {partition}/{id}",
                count(survey.deleted)
            );
            seen.bad("lost", State::Fail, what, "these likes are lost: runbook: lost entries")
        }
        None => {
            seen.ok("lost", format!("all pending entries are in their streams, of {looked_at} looked at"))
        }
    }
}

impl Survey {
    async fn partition(&mut self, context: &Context, partition: Partition) -> Result<(), CliError> {
        let (mut from, mut looked_at) = (EntryId::default(), 0);
        while looked_at < SURVEYED {
            let page = context.streams.summarize_pending(partition, from, SURVEY_PAGE).await?;
            looked_at += page.entries;
            self.looked_at += page.entries;
            self.deleted += page.deleted.len() as u64;
            if let (None, Some(id)) = (self.first_deleted, page.deleted.first()) {
                self.first_deleted = Some((partition.number(), *id));
            }
            if let Some(id) = page.most_delivered
                && page.most_deliveries > self.suspect.map_or(SUSPECT_DELIVERIES, |(most, ..)| most)
            {
                self.suspect = Some((page.most_deliveries, partition.number(), id));
            }
            if let Some(id) = page.longest_idle
                && page.longest_idle_ms > self.laziest.map_or(0, |(most, ..)| most)
            {
                self.laziest = Some((page.longest_idle_ms, partition.number(), id));
            }
            match page.last.and_then(EntryId::after) {
                Some(next) if page.entries == SURVEY_PAGE as u64 => from = next,
                _ => break,
            }
        }
        Ok(())
    }
}

fn dead(seen: &mut Examination, overview: &Overview) -> Result<(), CliError> {
    match overview.total.dead {
        0 => seen.ok("dead letters", "none"),
        letters => {
            let what = many(
                letters,
                "dead letter: likes that could not be stored",
                "dead letters: likes that could not be stored",
            );
            seen.bad("dead letters", State::Warn, what, "likesctl dead list (runbook: dead letters)")
        }
    }
}

async fn stored(seen: &mut Examination, context: &Context, client: &Client) -> Result<(), CliError> {
    if answer(async { Ok::<_, CliError>(schema::check(client).await) }).await?.is_err() {
        return Ok(());
    }
    let mut verifier = Verifier::new(context, client);
    for partition in context.partitions.partitions() {
        let newest = context.streams.newest(partition, COMPARED).await?;
        if let (Some(last), Some(first)) = (newest.first(), newest.last()) {
            verifier.range(partition, (first.at.id, last.at.id)).await?;
        }
    }
    let verdict = verifier.verdict().await?;
    if let (true, Some(like)) = (verdict.missing > 0, verdict.missing_likes.first()) {
        let what = format!(
            "{} acknowledged likes are not in the table, one of {}",
            count(verdict.missing),
            like.entry
        );
        return seen.bad(
            "stored",
            State::Fail,
            what,
            "likesctl verify names them, likesctl reprocess stores them",
        );
    }
    let entries = count(verdict.entries);
    seen.ok("stored", format!("nothing is missing in the table, of {entries} acknowledged entries looked at"))
}
