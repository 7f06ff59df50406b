//! `POST /likes` with thousands of slow connections, compared with the same load without them.

use std::time::{Duration, Instant};

use devstack::{
    program::Program,
    slow_clients::{SlowClients, Slowness},
};
use tokio::time::sleep;

use crate::{
    BenchError, Settings,
    figures::Figures,
    load::{self, Clients, Load, Responses},
    mib,
    servers::{Servers, stop},
};

const ROW: &str = "slow connections";
const CLIENTS: Clients = Clients::new(32, 1);
const LIKES_PER_SECOND: f64 = 2_000.0;

/// Factor of the measured duration, long enough that ingest closes slow connections during the run.
const DURATIONS: u32 = 3;

/// Time limit for slow connections to open, and to disappear.
const SETTLE_LIMIT: Duration = Duration::from_mins(1);
const SETTLE_POLL: Duration = Duration::from_millis(20);

/// Measures without slow connections, with them, and after them.
pub(crate) async fn run(
    settings: &Settings,
    servers: &Servers,
    figures: &mut Figures,
) -> Result<(), BenchError> {
    let slow = settings.slow_connections;
    let disturbed_case = format!("{slow} slow connections");
    let mut users = 1;
    for run in 1..=settings.runs {
        if !settings.begins(ROW, &disturbed_case, run) {
            continue;
        }
        servers.empty().await?;
        // The peak memory of a process counts from its start.
        let ingest = servers.start_ingest(&[])?;
        let undisturbed = measure(settings, &ingest, &mut users).await?;
        let files_before = open_files(&ingest)?;
        let mut add = |case: &str, measure, value| figures.add(ROW, case, measure, value);
        add("none", "peak resident MiB", mib(ingest.peak_resident_bytes().unwrap_or(0)));

        let slow_clients = SlowClients::start(ingest.listen(), slow, &Slowness::HTTP1);
        wait_open(&slow_clients, slow).await?;
        let disturbed = measure(settings, &ingest, &mut users).await?;
        add(&disturbed_case, "peak resident MiB", mib(ingest.peak_resident_bytes().unwrap_or(0)));
        add(&disturbed_case, "open at the end", slow_clients.open() as f64);
        add(&disturbed_case, "closed by ingest", slow_clients.closed() as f64);
        slow_clients.stop().await;
        let left = files_left(&ingest, files_before).await?;
        let after = measure(settings, &ingest, &mut users).await?;
        add("afterwards", "additional open files", left);
        for (case, responses) in
            [("none", &undisturbed), (disturbed_case.as_str(), &disturbed), ("afterwards", &after)]
        {
            add(case, "p50 ms", responses.latencies.quantile_ms(0.5));
            add(case, "p99 ms", responses.latencies.quantile_ms(0.99));
            add(case, "p99.9 ms", responses.latencies.quantile_ms(0.999));
            if case != "none" {
                let times = |quantile| {
                    responses.latencies.quantile_ms(quantile) / undisturbed.latencies.quantile_ms(quantile)
                };
                add(case, "times the undisturbed p50", times(0.5));
                add(case, "times the undisturbed p99", times(0.99));
                add(case, "times the undisturbed p99.9", times(0.999));
            }
        }
        stop([ingest])?;
    }
    Ok(())
}

/// Measures clients after a warm-up. All likes must be accepted.
async fn measure(settings: &Settings, ingest: &Program, users: &mut u64) -> Result<Responses, BenchError> {
    let mut responses = None;
    for duration in [settings.duration / 5, settings.duration * DURATIONS] {
        let per_second = Some(LIKES_PER_SECOND);
        let load = Load { clients: CLIENTS, per_second, duration, first_user: *users };
        let sent = load::send(ingest.listen(), load).await?;
        *users += sent.accepted;
        responses = Some(sent);
    }
    responses.ok_or(BenchError::Unknown("no like was sent"))
}

/// Waits until at least 90 % of the slow connections are open. Those that ingest has just closed are reconnecting.
async fn wait_open(slow_clients: &SlowClients, wanted: u32) -> Result<(), BenchError> {
    let deadline = Instant::now() + SETTLE_LIMIT;
    while slow_clients.open() < u64::from(wanted - wanted / 10) {
        if Instant::now() > deadline {
            let open = slow_clients.open();
            let closed = slow_clients.closed();
            return Err(BenchError::SlowConnections { wanted, open, closed });
        }
        sleep(SETTLE_POLL).await;
    }
    Ok(())
}

/// Waits until ingest has no additional open files, and returns the number that is left after the time limit.
async fn files_left(ingest: &Program, before: usize) -> Result<f64, BenchError> {
    let deadline = Instant::now() + SETTLE_LIMIT;
    loop {
        let left = open_files(ingest)?.saturating_sub(before);
        if left == 0 || Instant::now() > deadline {
            return Ok(left as f64);
        }
        sleep(SETTLE_POLL).await;
    }
}

fn open_files(ingest: &Program) -> Result<usize, BenchError> {
    ingest.open_files().ok_or(BenchError::Unknown("cannot count the open files of ingest"))
}
