//! What became of every like and every malformed entry.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    error::Error,
    io::{self, Write},
};

use fred::{
    bytes::Bytes,
    prelude::{FromValue, Value},
};
use serde::Serialize;
use shared::{
    redis::{Connections, Retry},
    wire::codec,
};
use tokio_postgres::NoTls;

use crate::{
    backlog::Keys,
    chaos::malformed::{Malformed, NEIGHBOUR_POST},
    load::{IndexSet, Load, Sent},
    verify,
};

/// The end of a chaos run.
#[derive(Debug, Serialize)]
pub(crate) struct ChaosReport {
    pub(crate) seed: u64,
    pub(crate) seconds: u64,
    /// 202s, and the distinct pairs among them.
    pub(crate) accepted: u64,
    pub(crate) distinct: u64,
    /// Requests that were sent again, and pairs that may be stored on no promise.
    pub(crate) retries: u64,
    pub(crate) unsure: u64,
    /// Rows in the table, and pairs in a dead-letter stream because the table rejects them.
    pub(crate) stored: u64,
    pub(crate) dead_lettered: u64,
    pub(crate) malformed: u32,
    /// Accepted likes, and malformed, that are nowhere.
    pub(crate) lost: u64,
    /// Rows that are there twice, and dead letters that one entry left twice.
    pub(crate) doubled: u64,
    /// Rows and dead letters of what was never sent, or that should be in the other place.
    pub(crate) foreign: u64,
    /// Entries that are still undelivered or pending.
    pub(crate) stuck: u64,
    pub(crate) faults: BTreeMap<String, u32>,
}

impl ChaosReport {
    /// Whether every promise was kept.
    pub(crate) fn passed(&self) -> bool {
        self.accepted > 0 && self.lost == 0 && self.doubled == 0 && self.foreign == 0 && self.stuck == 0
    }

    pub(crate) fn print(&self) {
        let mut out = io::stdout().lock();
        let mut line = |text: String| {
            // Nobody is left to tell should stdout be gone.
            let _ = writeln!(out, "{text}");
        };
        for (kind, count) in &self.faults {
            line(format!("{count:>6}  {kind}"));
        }
        let faults: u32 = self.faults.values().sum();
        line(format!("{faults:>6}  faults of {} kinds", self.faults.len()));
        line(format!(
            "seed {}, {} s: accepted {}, distinct {}, retries {}, unsure {}, stored {}, dead-lettered {}, malformed {}",
            self.seed,
            self.seconds,
            self.accepted,
            self.distinct,
            self.retries,
            self.unsure,
            self.stored,
            self.dead_lettered,
            self.malformed
        ));
        line(format!(
            "lost {}, doubled {}, foreign {}, stuck pending {}",
            self.lost, self.doubled, self.foreign, self.stuck
        ));
        line(if self.passed() {
            "PASS: every accepted like is in the table once, or a dead letter with its reason".to_owned()
        } else {
            format!("FAIL: replay it with SEED={}", self.seed)
        });
    }
}

/// All dead letters.
struct DeadLetters {
    /// Pairs that the table rejected, by the index of their first like.
    rejected: IndexSet,
    /// The letters that are malformed, by payload.
    malformed: HashMap<Bytes, u32>,
    /// Letters that are neither.
    foreign: u64,
    /// Letters that their entry left more than once.
    doubled: u64,
}

/// Compares the servers with the bookkeeping of the callers.
pub(crate) async fn check(
    (seed, seconds, stuck): (u64, u64, u64),
    (load, sent): (Load, &Sent),
    malformed: &Malformed,
    redis: &Connections,
    database_url: &str,
) -> Result<ChaosReport, Box<dyn Error>> {
    let letters = read_dead_letters(redis, load, sent, malformed).await?;
    let (client, connection) = tokio_postgres::connect(database_url, NoTls).await?;
    tokio::spawn(connection);
    let neighbour_post = NEIGHBOUR_POST.cast_signed();
    let neighbours = client.query("SELECT user_id FROM likes WHERE post_id = $1", &[&neighbour_post]).await?;
    let neighbours: Vec<i64> = neighbours.iter().map(|row| row.get(0)).collect();
    client.execute("DELETE FROM likes WHERE post_id = $1", &[&neighbour_post]).await?;
    let table = verify::read_table(&client, load, sent, &letters.rejected).await?;
    let (malformed_lost, neighbours_foreign) = malformed.missing_and_foreign(&letters.malformed, &neighbours);
    Ok(ChaosReport {
        seed,
        seconds,
        accepted: sent.accepted,
        distinct: sent.pairs.len(),
        retries: sent.retries,
        unsure: sent.unsure_pairs(load),
        stored: table.rows,
        dead_lettered: letters.rejected.len(),
        malformed: malformed.made(),
        lost: table.lost + malformed_lost,
        doubled: table.doubled + letters.doubled,
        foreign: table.foreign + letters.foreign + neighbours_foreign,
        stuck,
        faults: BTreeMap::new(),
    })
}

/// All entries of a stream.
async fn range<T: FromValue>(redis: &Connections, stream: &str) -> Result<T, fred::error::Error> {
    redis.run(stream, Retry::Idempotent, "XRANGE", [stream, "-", "+"].map(Value::from).into()).await
}

async fn read_dead_letters(
    redis: &Connections,
    load: Load,
    sent: &Sent,
    malformed: &Malformed,
) -> Result<DeadLetters, Box<dyn Error>> {
    let mut found = DeadLetters {
        rejected: IndexSet::new(load.likes),
        malformed: HashMap::new(),
        foreign: 0,
        doubled: 0,
    };
    let mut seen = HashSet::new();
    let keys = Keys::default();
    for partition in keys.partitions() {
        let letters: Vec<(String, HashMap<String, Bytes>)> =
            range(redis, &keys.dead_letters(partition)).await?;
        for (_, letter) in letters {
            let field = |name: &str| letter.get(name).cloned().unwrap_or_default();
            let payload = field(codec::FIELD);
            if !seen.insert((field("origin"), field("detail"), payload.clone())) {
                found.doubled += 1;
            } else if malformed.letter(&payload).is_some() {
                *found.malformed.entry(payload).or_default() += 1;
            } else if field("reason") == "rejected" {
                for like in codec::locate(&payload) {
                    match load.first_with(like.like.user_id(), like.like.post_id()) {
                        Some(first) if load.is_rejected(first) && sent.may_have(first) => {
                            found.rejected.insert(first);
                        }
                        _ => found.foreign += 1,
                    }
                }
            } else {
                found.foreign += 1;
            }
        }
    }
    Ok(found)
}
