//! What telemetry costs: the whole of it under a storm, without a collector and with one that takes nothing.

use std::time::Instant;

use devstack::program::Program;
use tokio::net::TcpListener;

use crate::{
    BenchError, Settings,
    cost::cpu_seconds,
    figures::Figures,
    load::{self, Callers, Load},
    servers::{Servers, end_well},
};

const ROW: &str = "telemetry";
const CONSUMERS: u16 = 2;
const BATCH_LINGER: &str = "100ms";
const CALLERS: Callers = Callers::new(64, 1);
const OFF: &str = "off";

/// What part of the requests is traced; with nothing there is no collector.
const CASES: [(&str, Option<&str>); 3] = [
    (OFF, None),
    ("frozen collector, 1 % sampled", Some("0.01")),
    ("frozen collector, all sampled", Some("1")),
];

/// What a storm did.
struct Storm {
    answered_per_second: f64,
    stored_per_second: f64,
    ingest_cpu_per_million: f64,
}

/// In turn, each run beginning with another case.
pub(crate) async fn run(
    settings: &Settings,
    servers: &Servers,
    figures: &mut Figures,
) -> Result<(), BenchError> {
    // The system takes connections for it, and nobody reads from them.
    let frozen = TcpListener::bind("127.0.0.1:0").await?;
    let endpoint = format!("http://{}", frozen.local_addr()?);
    for run in 1..=settings.runs {
        let mut storms = Vec::new();
        for turn in 0..CASES.len() {
            let (case, ratio) = CASES[(turn + run as usize) % CASES.len()];
            if settings.begins(ROW, case, run) {
                let storm = storm(settings, servers, &export(&endpoint, ratio)).await?;
                storms.push((case, storm));
            }
        }
        let off = storms.iter().find(|(case, _)| *case == OFF).map(|(_, storm)| storm);
        for (case, storm) in &storms {
            let mut add = |measure, value| figures.add(ROW, case, measure, value);
            add("likes/s answered", storm.answered_per_second);
            add("likes/s stored", storm.stored_per_second);
            add("ingest CPU s per million likes", storm.ingest_cpu_per_million);
            if let Some(off) = off {
                add("of the likes/s answered without", storm.answered_per_second / off.answered_per_second);
                add("of the likes/s stored without", storm.stored_per_second / off.stored_per_second);
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

async fn storm(
    settings: &Settings,
    servers: &Servers,
    export: &[(&'static str, &str)],
) -> Result<Storm, BenchError> {
    servers.empty().await?;
    let ingest = servers.start_ingest(export)?;
    let consumers =
        servers.start_consumers(CONSUMERS, &[export, &[("BATCH_LINGER", BATCH_LINGER)]].concat())?;
    let cpu_before = cpu_seconds(ingest.pid())?;
    let load = Load { callers: CALLERS, per_second: None, duration: settings.duration, first_user: 1 };
    let started = Instant::now();
    let answers = load::send(ingest.listen(), load).await?;
    servers.drained(&consumers).await?;
    let seconds = started.elapsed().as_secs_f64();
    servers.check_rows(answers.accepted).await?;
    let likes = answers.accepted as f64;
    let ingest_cpu_per_million = (cpu_seconds(ingest.pid())? - cpu_before) / likes * 1e6;
    end_well(consumers.into_iter().chain([ingest]).collect::<Vec<Program>>())?;
    Ok(Storm {
        answered_per_second: answers.per_second(),
        stored_per_second: likes / seconds,
        ingest_cpu_per_million,
    })
}
