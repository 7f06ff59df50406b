//! Draining a backlog into a large table, compared with an empty one, with both column orders of the key.

use shared::stderr::eprint_line;

use crate::{
    BenchError, Settings,
    drain::{Backlog, drain},
    figures::Figures,
    servers::Servers,
    traffic::{self, PACKED, Traffic},
};

const ROW: &str = "growth";
const WRITERS: u16 = 2;

/// Primary key of the schema, and the opposite column order.
const KEYS: [&str; 2] = ["post_id, user_id", "user_id, post_id"];

/// Measures an empty and a large table, which are renamed to `likes` in turn.
pub(crate) async fn run(
    settings: &Settings,
    servers: &Servers,
    figures: &mut Figures,
) -> Result<(), BenchError> {
    for key in KEYS {
        servers.empty().await?;
        let two_tables =
            format!("{}; CREATE TABLE likes_grown (LIKE likes INCLUDING ALL)", with_key("likes", key));
        servers.sql.batch_execute(&two_tables).await?;
        let mut grown = 0;
        for &rows in &settings.growth_rows {
            let case = format!("key ({key}), {} rows", millions(rows));
            if !case.contains(&settings.case) {
                continue;
            }
            eprint_line(format_args!("{ROW}, {case}: filling the table"));
            grow(servers, key, grown, rows).await?;
            grown = rows;
            for run in 1..=settings.runs {
                settings.begins(ROW, &case, run);
                servers.sql.batch_execute("TRUNCATE likes").await?;
                let into_empty = likes_per_second(settings, servers, grown).await?;
                swap(servers).await?;
                let into_grown = likes_per_second(settings, servers, grown).await?;
                swap(servers).await?;
                grown += settings.likes;
                figures.add(ROW, &case, "likes/s", into_grown);
                figures.add(ROW, &case, "likes/s into an empty table", into_empty);
                figures.add(ROW, &case, "of the rate into an empty table", into_grown / into_empty);
            }
        }
        servers.empty().await?;
        let restore = format!("DROP TABLE likes_grown; {}", with_key("likes", KEYS[0]));
        servers.sql.batch_execute(&restore).await?;
    }
    Ok(())
}

async fn likes_per_second(settings: &Settings, servers: &Servers, first: u64) -> Result<f64, BenchError> {
    servers.empty_streams().await?;
    servers.checkpoint().await?;
    let traffic = Traffic { first, ..Traffic::new(settings.likes) };
    let rows_before = servers.rows().await?;
    let drained = drain(Backlog { traffic, per_entry: PACKED }, WRITERS, servers).await?;
    servers.check_rows(rows_before + traffic.likes).await?;
    Ok(traffic.likes as f64 / drained.elapsed.as_secs_f64())
}

/// Fills the large table. The key is created afterwards, which is much faster.
async fn grow(servers: &Servers, key: &str, from: u64, to: u64) -> Result<(), BenchError> {
    let fill = format!(
        "ALTER TABLE likes_grown DROP CONSTRAINT IF EXISTS likes_grown_pkey;
         INSERT INTO likes_grown {};
         ALTER TABLE likes_grown ADD CONSTRAINT likes_grown_pkey PRIMARY KEY ({key});
         VACUUM (FREEZE, ANALYZE) likes_grown",
        traffic::rows_in_sql(from, to)
    );
    // VACUUM can't run in a transaction.
    for statement in fill.split(';') {
        servers.sql.batch_execute(statement).await?;
    }
    Ok(())
}

async fn swap(servers: &Servers) -> Result<(), BenchError> {
    let swap = "ALTER TABLE likes RENAME TO likes_other;
                ALTER TABLE likes_grown RENAME TO likes;
                ALTER TABLE likes_other RENAME TO likes_grown";
    Ok(servers.sql.batch_execute(swap).await?)
}

fn with_key(table: &str, key: &str) -> String {
    format!(
        "ALTER TABLE {table} DROP CONSTRAINT {table}_pkey, ADD CONSTRAINT {table}_pkey PRIMARY KEY ({key})"
    )
}

fn millions(rows: u64) -> String {
    format!("{} M", rows as f64 / 1e6)
}
