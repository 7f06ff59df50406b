//! `POST /likes`, compared with the same HTTP service that responds immediately.

use std::time::Duration;

use devstack::{latency::Latencies, program::Program};

use crate::{
    BenchError, Settings,
    cost::cpu_seconds,
    figures::Figures,
    load::{self, Clients, Load, Responses},
    mib,
    servers::{Servers, stop},
};

const ROW: &str = "ingest";
const CLIENTS: [Clients; 4] =
    [Clients::new(1, 1), Clients::new(64, 1), Clients::new(512, 1), Clients::new(64, 100)];
const RATES: [u32; 3] = [1_000, 5_000, 10_000];
const OPEN_LOOP_CLIENTS: Clients = Clients::new(256, 1);
const WARM_UP: Duration = Duration::from_millis(500);

/// Measures fixed concurrency and fixed rates.
pub(crate) async fn run(
    settings: &Settings,
    servers: &Servers,
    figures: &mut Figures,
) -> Result<(), BenchError> {
    servers.empty().await?;
    let ingest = servers.start_ingest(&[])?;
    let discarding = servers.start_bench_server("discard")?;
    let mut users = 1;
    for run in 1..=settings.runs {
        for clients in CLIENTS {
            let case = clients.name();
            if !settings.begins(ROW, &case, run) {
                continue;
            }
            let load = |first_user| Load { first_user, ..Load::closed_loop(clients, settings.duration) };
            let before = accepted(&ingest)?;
            let measured = measure(&ingest, servers, load, &mut users).await?;
            let after = accepted(&ingest)?;
            let limit = measure(&discarding, servers, load, &mut users).await?;
            let per_second = measured.responses.per_second();
            let limit_per_second = limit.responses.per_second();
            let mut add = |measure, value| figures.add(ROW, &case, measure, value);
            add("likes/s", per_second);
            add("HTTP limit, likes/s", limit_per_second);
            add("of the HTTP limit", per_second / limit_per_second);
            add_latencies(&measured.responses.latencies, &mut add);
            add("HTTP limit, p99 ms", limit.responses.latencies.quantile_ms(0.99));
            add("CPU s per million likes", measured.cpu_per_million);
            add("HTTP limit, CPU s per million likes", limit.cpu_per_million);
            let entries = after.entries - before.entries;
            add("likes per entry", (after.likes - before.likes) / entries.max(1.0));
            add("peak resident MiB", mib(ingest.peak_resident_bytes().unwrap_or(0)));
            add("Redis bytes per queued like", measured.redis_bytes_per_like);
        }
        for rate in RATES {
            let case = format!("{rate} likes/s");
            if !settings.begins(ROW, &case, run) {
                continue;
            }
            let per_second = Some(rate.into());
            let closed_loop = Load::closed_loop(OPEN_LOOP_CLIENTS, settings.duration);
            let load = |first_user| Load { per_second, first_user, ..closed_loop };
            let measured = measure(&ingest, servers, load, &mut users).await?;
            let limit = measure(&discarding, servers, load, &mut users).await?;
            let mut add = |measure, value| figures.add(ROW, &case, measure, value);
            add_latencies(&measured.responses.latencies, &mut add);
            add("HTTP limit, p99 ms", limit.responses.latencies.quantile_ms(0.99));
        }
    }
    stop([ingest, discarding])
}

fn add_latencies(latencies: &Latencies, add: &mut impl FnMut(&'static str, f64)) {
    add("p50 ms", latencies.quantile_ms(0.5));
    add("p99 ms", latencies.quantile_ms(0.99));
    add("p99.9 ms", latencies.quantile_ms(0.999));
}

/// Likes and entries that Redis has accepted so far.
struct Accepted {
    likes: f64,
    entries: f64,
}

fn accepted(ingest: &Program) -> Result<Accepted, BenchError> {
    let metrics = ingest.metrics()?;
    let likes = metrics.sum("likestream_likes_accepted_total");
    let entries = metrics.sum("messaging_client_sent_messages_total");
    Ok(Accepted { likes, entries })
}

/// Result of a load run on one server.
struct Measured {
    responses: Responses,
    cpu_per_million: f64,
    redis_bytes_per_like: f64,
}

/// Measures a server after a warm-up.
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
    let cpu_before = cpu_seconds(server.pid())?;
    let bytes_before = servers.redis_bytes()?;
    let responses = load::send(address, load(*users)).await?;
    *users += responses.accepted;
    let likes = responses.accepted as f64;
    let cpu_per_million = (cpu_seconds(server.pid())? - cpu_before) / likes * 1e6;
    let redis_bytes_per_like = (servers.redis_bytes()? - bytes_before) / likes;
    servers.empty_streams().await?;
    Ok(Measured { responses, cpu_per_million, redis_bytes_per_like })
}
