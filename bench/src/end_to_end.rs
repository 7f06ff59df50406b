//! From the receipt of a like to its commit in Postgres, at parts of what the pipeline can take.

use crate::{
    BenchError, Settings,
    figures::Figures,
    load::{self, Callers, Load},
    progress::say,
    servers::{Servers, end_well},
};

const ROW: &str = "end to end";
const CONSUMERS: u16 = 2;
const CAPACITY_CALLERS: Callers = Callers::new(64, 1);
const OPEN_LOOP_CALLERS: Callers = Callers::new(256, 1);
const PERCENT: [u32; 4] = [1, 10, 50, 90];

/// The time of receipt is ingest's, that of the commit is Postgres's; both have one clock here.
const LATENCIES: &str = "
SELECT percentile_cont(ARRAY[0.5, 0.99, 0.999]) WITHIN GROUP (ORDER BY
       extract(epoch FROM pg_xact_commit_timestamp(xmin) - created_at)::float8 * 1000) FROM likes";

/// At 1, 10, 50 and 90 % of what a closed loop of callers gets through just before.
pub(crate) async fn run(
    settings: &Settings,
    servers: &Servers,
    figures: &mut Figures,
) -> Result<(), BenchError> {
    servers.empty().await?;
    let ingest = servers.start_ingest(&[])?;
    let consumers = servers.start_consumers(CONSUMERS, &[])?;
    for run in 1..=settings.runs {
        say(&format!("{ROW}, capacity: run {run} of {}", settings.runs));
        let storm =
            Load { callers: CAPACITY_CALLERS, per_second: None, duration: settings.duration, first_user: 1 };
        let started = std::time::Instant::now();
        let answers = load::send(ingest.listen(), storm).await?;
        servers.drained(&consumers).await?;
        let capacity = answers.accepted as f64 / started.elapsed().as_secs_f64();
        figures.add(ROW, "capacity", "likes/s", capacity);
        for percent in PERCENT {
            let case = format!("{percent} % of capacity");
            if !settings.begins(ROW, &case, run) {
                continue;
            }
            servers.sql.batch_execute("TRUNCATE likes").await?;
            servers.settle().await?;
            let per_second = Some(capacity * f64::from(percent) / 100.0);
            let load = Load { callers: OPEN_LOOP_CALLERS, per_second, ..storm };
            let answers = load::send(ingest.listen(), load).await?;
            servers.drained(&consumers).await?;
            servers.check_rows(answers.accepted).await?;
            let latencies: Vec<f64> = servers.sql.query_one(LATENCIES, &[]).await?.try_get(0)?;
            for (measure, ms) in ["p50 ms", "p99 ms", "p99.9 ms"].into_iter().zip(latencies) {
                figures.add(ROW, &case, measure, ms);
            }
            figures.add(ROW, &case, "likes/s", answers.per_second());
        }
        servers.sql.batch_execute("TRUNCATE likes").await?;
    }
    end_well([ingest].into_iter().chain(consumers))
}
