//! `POST /likes` while thousands of connections send next to nothing, against the same without them.

use std::time::{Duration, Instant};

use devstack::{
    program::Program,
    slow_callers::{SlowCallers, Slowness},
};
use tokio::time::sleep;

use crate::{
    BenchError, Settings,
    figures::Figures,
    load::{self, Answers, Callers, Load},
    mib,
    servers::{Servers, end_well},
};

const ROW: &str = "slow connections";
const CALLERS: Callers = Callers::new(32, 1);
const LIKES_PER_SECOND: f64 = 2_000.0;

/// Ingest closes slow connections after some seconds: callers are measured for so many durations, to see that, too.
const DURATIONS: u32 = 3;

/// How long it may take until slow connections are open, and until nothing is left of them.
const SETTLE: Duration = Duration::from_mins(1);
const SETTLE_POLL: Duration = Duration::from_millis(20);

/// In turn undisturbed, with slow connections, and after them.
pub(crate) async fn run(
    settings: &Settings,
    servers: &Servers,
    figures: &mut Figures,
) -> Result<(), BenchError> {
    let slow = settings.slow_connections;
    let disturbed_case = format!("{slow} slow ones");
    let mut users = 1;
    for run in 1..=settings.runs {
        if !settings.begins(ROW, &disturbed_case, run) {
            continue;
        }
        servers.empty().await?;
        // What it has had in memory at most is known since its start only.
        let ingest = servers.start_ingest(&[])?;
        let undisturbed = honest(settings, &ingest, &mut users).await?;
        let files_before = open_files(&ingest)?;
        let mut add = |case: &str, measure, value| figures.add(ROW, case, measure, value);
        add("none", "MiB resident at most", mib(ingest.peak_resident_bytes().unwrap_or(0)));

        let callers = SlowCallers::start(ingest.listen(), slow, &Slowness::HTTP1);
        all_open(&callers, slow).await?;
        let disturbed = honest(settings, &ingest, &mut users).await?;
        add(&disturbed_case, "MiB resident at most", mib(ingest.peak_resident_bytes().unwrap_or(0)));
        add(&disturbed_case, "open at the end", callers.open() as f64);
        add(&disturbed_case, "closed by ingest", callers.closed() as f64);
        callers.stop().await;
        let left = files_left(&ingest, files_before).await?;
        let after = honest(settings, &ingest, &mut users).await?;
        add("afterwards", "open files more than before", left);
        for (case, answers) in
            [("none", &undisturbed), (disturbed_case.as_str(), &disturbed), ("afterwards", &after)]
        {
            add(case, "p50 ms", answers.latency_ms(0.5));
            add(case, "p99 ms", answers.latency_ms(0.99));
            add(case, "p99.9 ms", answers.latency_ms(0.999));
            if case != "none" {
                let times = |quantile| answers.latency_ms(quantile) / undisturbed.latency_ms(quantile);
                add(case, "times the undisturbed p50", times(0.5));
                add(case, "times the undisturbed p99", times(0.99));
                add(case, "times the undisturbed p99.9", times(0.999));
            }
        }
        end_well([ingest])?;
    }
    Ok(())
}

/// Honest callers, all of whose likes must be taken, after a warm-up.
async fn honest(settings: &Settings, ingest: &Program, users: &mut u64) -> Result<Answers, BenchError> {
    let mut answers = None;
    for duration in [settings.duration / 5, settings.duration * DURATIONS] {
        let per_second = Some(LIKES_PER_SECOND);
        let load = Load { callers: CALLERS, per_second, duration, first_user: *users };
        let sent = load::send(ingest.listen(), load).await?;
        *users += sent.accepted;
        answers = Some(sent);
    }
    answers.ok_or(BenchError::Answer("no like was sent"))
}

/// Waits until nearly all slow connections are open: those that ingest has just closed are on their way back.
async fn all_open(callers: &SlowCallers, wanted: u32) -> Result<(), BenchError> {
    let give_up_at = Instant::now() + SETTLE;
    while callers.open() < u64::from(wanted - wanted / 10) {
        if Instant::now() > give_up_at {
            let (open, closed) = (callers.open(), callers.closed());
            return Err(BenchError::SlowConnections { wanted, open, closed });
        }
        sleep(SETTLE_POLL).await;
    }
    Ok(())
}

/// How many more files ingest has open than before, once that is none or has not become so in time.
async fn files_left(ingest: &Program, before: usize) -> Result<f64, BenchError> {
    let give_up_at = Instant::now() + SETTLE;
    loop {
        let left = open_files(ingest)?.saturating_sub(before);
        if left == 0 || Instant::now() > give_up_at {
            return Ok(left as f64);
        }
        sleep(SETTLE_POLL).await;
    }
}

fn open_files(ingest: &Program) -> Result<usize, BenchError> {
    ingest.open_files().ok_or(BenchError::Answer("the open files of ingest can't be counted"))
}
