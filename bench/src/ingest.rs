//! `POST /likes`: against the same HTTP service that answers at once.

use std::time::Duration;

use devstack::program::Program;

use crate::{
    BenchError, Settings,
    cost::cpu_seconds,
    figures::Figures,
    load::{self, Answers, Callers, Load},
    mib,
    servers::{Servers, end_well},
};

const ROW: &str = "ingest";
const CALLERS: [Callers; 4] =
    [Callers::new(1, 1), Callers::new(64, 1), Callers::new(512, 1), Callers::new(64, 100)];
const RATES: [u32; 3] = [1_000, 5_000, 10_000];
const OPEN_LOOP_CALLERS: Callers = Callers::new(256, 1);
const WARM_UP: Duration = Duration::from_millis(500);

/// At fixed concurrency and at fixed rates.
pub(crate) async fn run(
    settings: &Settings,
    servers: &Servers,
    figures: &mut Figures,
) -> Result<(), BenchError> {
    servers.empty().await?;
    let ingest = servers.start_ingest(&[])?;
    let at_once = servers.start_bench_server("nobody")?;
    let mut users = 1;
    for run in 1..=settings.runs {
        for callers in CALLERS {
            let case = callers.name();
            if !settings.begins(ROW, &case, run) {
                continue;
            }
            let load =
                |first_user| Load { callers, per_second: None, duration: settings.duration, first_user };
            let before = appended(&ingest)?;
            let measured = measure(&ingest, servers, load, &mut users).await?;
            let after = appended(&ingest)?;
            let limit_measured = measure(&at_once, servers, load, &mut users).await?;
            let (answers, limit) = (&measured.answers, &limit_measured.answers);
            let mut add = |measure, value| figures.add(ROW, &case, measure, value);
            add("likes/s", answers.per_second());
            add("HTTP limit, likes/s", limit.per_second());
            add("of the HTTP limit", answers.per_second() / limit.per_second());
            add_latency(answers, &mut add);
            add("HTTP limit, p99 ms", limit.latency_ms(0.99));
            add("CPU s per million likes", measured.cpu_per_million);
            add("HTTP limit, CPU s per million likes", limit_measured.cpu_per_million);
            add("likes per entry", (after.0 - before.0) / (after.1 - before.1).max(1.0));
            add("MiB resident at most", mib(ingest.peak_resident_bytes().unwrap_or(0)));
            add("Redis bytes per queued like", measured.redis_bytes_per_like);
        }
        for rate in RATES {
            let case = format!("{rate} likes/s");
            if !settings.begins(ROW, &case, run) {
                continue;
            }
            let load = |first_user| Load {
                callers: OPEN_LOOP_CALLERS,
                per_second: Some(rate.into()),
                duration: settings.duration,
                first_user,
            };
            let measured = measure(&ingest, servers, load, &mut users).await?;
            let limit = measure(&at_once, servers, load, &mut users).await?;
            let mut add = |measure, value| figures.add(ROW, &case, measure, value);
            add_latency(&measured.answers, &mut add);
            add("HTTP limit, p99 ms", limit.answers.latency_ms(0.99));
        }
    }
    end_well([ingest, at_once])
}

fn add_latency(answers: &Answers, add: &mut impl FnMut(&'static str, f64)) {
    add("p50 ms", answers.latency_ms(0.5));
    add("p99 ms", answers.latency_ms(0.99));
    add("p99.9 ms", answers.latency_ms(0.999));
}

/// Likes and entries that Redis has taken.
fn appended(ingest: &Program) -> Result<(f64, f64), BenchError> {
    let metrics = ingest.metrics()?;
    Ok((metrics.sum("likestream_likes_accepted_total"), metrics.sum("messaging_client_sent_messages_total")))
}

/// A server under a load.
struct Measured {
    answers: Answers,
    cpu_per_million: f64,
    redis_bytes_per_like: f64,
}

/// After a warm-up.
async fn measure(
    server: &Program,
    servers: &Servers,
    load: impl Fn(u64) -> Load,
    users: &mut u64,
) -> Result<Measured, BenchError> {
    let address = server.listen();
    let warm_up = load::send(address, Load { duration: WARM_UP, ..load(*users) }).await?;
    *users += warm_up.accepted;
    servers.empty_streams().await?;
    let (cpu_before, bytes_before) = (cpu_seconds(server.pid())?, servers.redis_bytes()?);
    let answers = load::send(address, load(*users)).await?;
    *users += answers.accepted;
    let likes = answers.accepted as f64;
    let cpu_per_million = (cpu_seconds(server.pid())? - cpu_before) / likes * 1e6;
    let redis_bytes_per_like = (servers.redis_bytes()? - bytes_before) / likes;
    servers.empty_streams().await?;
    Ok(Measured { answers, cpu_per_million, redis_bytes_per_like })
}
