//! End-to-end latency, from accept to commit, at fractions of the pipeline's capacity.

use shared::stderr::eprint_line;

use crate::{
    BenchError, Settings,
    figures::Figures,
    load::{self, Clients, Load},
    servers::{Servers, stop},
};

const ROW: &str = "end to end";
const CONSUMERS: u16 = 2;
const CAPACITY_CLIENTS: Clients = Clients::new(64, 1);
const OPEN_LOOP_CLIENTS: Clients = Clients::new(256, 1);
const PERCENT: [u32; 4] = [1, 10, 50, 90];

/// Ingest sets the accept time and Postgres the commit time, with the clock of one machine.
const LATENCIES: &str = "
SELECT percentile_cont(ARRAY[0.5, 0.99, 0.999]) WITHIN GROUP (ORDER BY
       extract(epoch FROM pg_xact_commit_timestamp(xmin) - created_at)::float8 * 1000) FROM likes";

/// Measures 1, 10, 50 and 90 % of the capacity. A closed loop of clients measures the capacity first.
pub(crate) async fn run(
    settings: &Settings,
    servers: &Servers,
    figures: &mut Figures,
) -> Result<(), BenchError> {
    servers.empty().await?;
    let ingest = servers.start_ingest(&[])?;
    let consumers = servers.start_consumers(CONSUMERS, &[])?;
    for run in 1..=settings.runs {
        eprint_line(format_args!("{ROW}, capacity: run {run} of {}", settings.runs));
        let closed_loop = Load::closed_loop(CAPACITY_CLIENTS, settings.duration);
        let started = std::time::Instant::now();
        let responses = load::send(ingest.listen(), closed_loop).await?;
        servers.drained(&consumers).await?;
        let capacity = responses.accepted as f64 / started.elapsed().as_secs_f64();
        figures.add(ROW, "capacity", "likes/s", capacity);
        for percent in PERCENT {
            let case = format!("{percent} % of capacity");
            if !settings.begins(ROW, &case, run) {
                continue;
            }
            servers.sql.batch_execute("TRUNCATE likes").await?;
            servers.checkpoint().await?;
            let per_second = Some(capacity * f64::from(percent) / 100.0);
            let load = Load { clients: OPEN_LOOP_CLIENTS, per_second, ..closed_loop };
            let responses = load::send(ingest.listen(), load).await?;
            servers.drained(&consumers).await?;
            servers.check_rows(responses.accepted).await?;
            let latencies: Vec<f64> = servers.sql.query_one(LATENCIES, &[]).await?.try_get(0)?;
            for (measure, ms) in ["p50 ms", "p99 ms", "p99.9 ms"].into_iter().zip(latencies) {
                figures.add(ROW, &case, measure, ms);
            }
            figures.add(ROW, &case, "likes/s", responses.per_second());
        }
        servers.sql.batch_execute("TRUNCATE likes").await?;
    }
    stop([ingest].into_iter().chain(consumers))
}
