//! Cost of telemetry: the pipeline under load, without a collector and with a frozen collector.

use std::time::Instant;

use tokio::net::TcpListener;

use crate::{
    BenchError, Settings,
    cost::cpu_seconds,
    figures::Figures,
    load::{self, Clients, Load},
    servers::{Servers, stop},
};

const ROW: &str = "telemetry";
const CONSUMERS: u16 = 2;
const BATCH_LINGER: &str = "100ms";
const CLIENTS: Clients = Clients::new(64, 1);
const OFF: &str = "off";

/// Cases with their sampling ratio. None means no collector.
const CASES: [(&str, Option<&str>); 3] = [
    (OFF, None),
    ("frozen collector, 1 % sampled", Some("0.01")),
    ("frozen collector, all sampled", Some("1")),
];

/// Result of a load run.
struct LoadRun {
    accepted_per_second: f64,
    stored_per_second: f64,
    ingest_cpu_per_million: f64,
}

/// Measures the cases in turn. Each run begins with a different case.
pub(crate) async fn run(
    settings: &Settings,
    servers: &Servers,
    figures: &mut Figures,
) -> Result<(), BenchError> {
    // The kernel accepts connections to this port, and no process reads from them.
    let frozen = TcpListener::bind("127.0.0.1:0").await?;
    let endpoint = format!("http://{}", frozen.local_addr()?);
    for run in 1..=settings.runs {
        let mut load_runs = Vec::new();
        for turn in 0..CASES.len() {
            let (case, ratio) = CASES[(turn + run as usize) % CASES.len()];
            if settings.begins(ROW, case, run) {
                let load_run = run_load(settings, servers, &export(&endpoint, ratio)).await?;
                load_runs.push((case, load_run));
            }
        }
        let off = load_runs.iter().find(|(case, _)| *case == OFF).map(|(_, load_run)| load_run);
        for (case, load_run) in &load_runs {
            let mut add = |measure, value| figures.add(ROW, case, measure, value);
            add("likes/s accepted", load_run.accepted_per_second);
            add("likes/s stored", load_run.stored_per_second);
            add("ingest CPU s per million likes", load_run.ingest_cpu_per_million);
            if let Some(off) = off {
                add(
                    "of the likes/s accepted without telemetry",
                    load_run.accepted_per_second / off.accepted_per_second,
                );
                add(
                    "of the likes/s stored without telemetry",
                    load_run.stored_per_second / off.stored_per_second,
                );
            }
        }
    }
    Ok(())
}

fn export<'a>(endpoint: &'a str, ratio: Option<&'a str>) -> Vec<(&'static str, &'a str)> {
    let Some(ratio) = ratio else { return Vec::new() };
    vec![
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "1s"),
        ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", ratio),
    ]
}

async fn run_load(
    settings: &Settings,
    servers: &Servers,
    export: &[(&'static str, &str)],
) -> Result<LoadRun, BenchError> {
    servers.empty().await?;
    let ingest = servers.start_ingest(export)?;
    let consumers =
        servers.start_consumers(CONSUMERS, &[export, &[("BATCH_LINGER", BATCH_LINGER)]].concat())?;
    let cpu_before = cpu_seconds(ingest.pid())?;
    let load = Load::closed_loop(CLIENTS, settings.duration);
    let started = Instant::now();
    let responses = load::send(ingest.listen(), load).await?;
    servers.drained(&consumers).await?;
    let seconds = started.elapsed().as_secs_f64();
    servers.check_rows(responses.accepted).await?;
    let likes = responses.accepted as f64;
    let ingest_cpu_per_million = (cpu_seconds(ingest.pid())? - cpu_before) / likes * 1e6;
    stop(consumers.into_iter().chain([ingest]))?;
    Ok(LoadRun {
        accepted_per_second: responses.per_second(),
        stored_per_second: likes / seconds,
        ingest_cpu_per_million,
    })
}
