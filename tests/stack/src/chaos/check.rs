//! Check of every like and every malformed entry after a chaos run.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    error::Error,
    time::SystemTime,
};

use devstack::{backlog::Keys, terminal::print_line};
use fred::{bytes::Bytes, prelude::Value};
use serde::Serialize;
use shared::{
    redis::{Connections, Retry},
    wire::codec,
};
use tokio_postgres::Client;

use crate::{
    chaos::{
        loss::Lost,
        malformed::{Malformed, NEIGHBOUR_POST},
    },
    load::{IndexSet, Load, Sent},
    verify,
};

/// Result of a chaos run.
#[derive(Debug, Serialize)]
pub(crate) struct ChaosReport {
    pub(crate) seed: u64,
    pub(crate) seconds: u64,
    #[serde(flatten)]
    pub(crate) findings: Findings,
    /// Entries that are still undelivered or pending.
    pub(crate) backlog: u64,
    /// Number of faults of each kind.
    pub(crate) faults: BTreeMap<String, u32>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Findings {
    /// 202 responses, and distinct pairs among them.
    accepted: u64,
    distinct: u64,
    /// Requests that were retried, and pairs that may be stored without having been accepted.
    retries: u64,
    indeterminate: u64,
    /// Rows in the table, and pairs in dead letters because the table rejects them.
    stored: u64,
    dead_lettered: u64,
    malformed: u32,
    /// Accepted likes and malformed entries that are neither in the table nor among the dead letters, and that Redis has not
    /// lost.
    lost: u64,
    /// Accepted likes that are missing because Redis has lost their entries.
    lost_with_redis: u64,
    /// Undelivered entries that Redis has lost, and those that consumers have reported as lost.
    lost_entries: u64,
    reported_entries: u64,
    /// Additional rows of a pair, and additional dead letters of an entry.
    duplicated: u64,
    /// Rows and dead letters of likes that were never sent, rejected likes in the table, and valid ones among the dead
    /// letters. Rows whose time is not that of the run.
    unexpected: u64,
}

impl ChaosReport {
    /// Returns whether every guarantee held.
    pub(crate) fn passed(&self) -> bool {
        let Findings { accepted, lost, duplicated, unexpected, lost_entries, reported_entries, .. } =
            self.findings;
        let is_reported = lost_entries == reported_entries;
        accepted > 0 && lost == 0 && duplicated == 0 && unexpected == 0 && self.backlog == 0 && is_reported
    }

    pub(crate) fn print(&self) {
        for (kind, count) in &self.faults {
            print_line(&format!("{count:>6}  {kind}"));
        }
        let faults: u32 = self.faults.values().sum();
        print_line(&format!("{faults:>6}  faults of {} kinds", self.faults.len()));
        let Self { seed, seconds, findings, backlog, .. } = self;
        let Findings { accepted, distinct, retries, indeterminate, .. } = findings;
        let Findings { stored, dead_lettered, malformed, lost, duplicated, unexpected, .. } = findings;
        let Findings { lost_with_redis, lost_entries, reported_entries, .. } = findings;
        print_line(&format!(
            "seed {seed}, {seconds} s: accepted {accepted}, distinct {distinct}, retries {retries}, \
             indeterminate {indeterminate}, stored {stored}, dead-lettered {dead_lettered}, malformed {malformed}"
        ));
        print_line(&format!(
            "lost {lost}, duplicated {duplicated}, unexpected {unexpected}, backlog {backlog}"
        ));
        print_line(&format!(
            "lost with Redis: {lost_with_redis} likes, {lost_entries} entries, of which {reported_entries} were reported"
        ));
        if self.passed() {
            print_line(
                "PASS: every accepted like is in the table exactly once, is a dead letter with its reason, or is reported as lost \
                 with Redis",
            );
        } else {
            print_line(&format!("FAIL: reproduce this run with SEED={seed}"));
        }
    }
}

/// Contents of all dead-letter streams.
struct DeadLetters {
    /// Pairs that the table rejected, by the index of their first like.
    rejected: IndexSet,
    /// Number of dead letters of malformed entries, by payload.
    malformed: HashMap<Bytes, u32>,
    /// All other dead letters.
    unexpected: u64,
    /// Additional dead letters of an entry.
    duplicated: u64,
}

/// Sent likes and entries, and the servers in which they must be found.
pub(crate) struct Check<'a> {
    pub(crate) load: Load,
    /// Start of the load.
    pub(crate) since: SystemTime,
    pub(crate) sent: &'a Sent,
    pub(crate) malformed: &'a Malformed,
    /// Data that Redis has lost.
    pub(crate) lost: &'a Lost,
    /// Number of entries that consumers have reported as lost.
    pub(crate) reported: u64,
    pub(crate) redis: &'a Connections,
    pub(crate) table: &'a Client,
}

impl Check<'_> {
    /// Compares the contents of the servers with the sent likes.
    pub(crate) async fn run(&self) -> Result<Findings, Box<dyn Error>> {
        let &Self { load, sent, malformed, table, .. } = self;
        let dead_letters = self.read_dead_letters().await?;
        let neighbour_post = NEIGHBOUR_POST.cast_signed();
        let neighbours =
            table.query("DELETE FROM likes WHERE post_id = $1 RETURNING user_id", &[&neighbour_post]).await?;
        let neighbours: Vec<i64> = neighbours.iter().map(|row| row.get(0)).collect();
        let rows = verify::read_table(table, load, sent, &dead_letters.rejected).await?;
        let misdated = "SELECT count(*) FROM likes WHERE created_at NOT BETWEEN $1 AND now()";
        let misdated: i64 = table.query_one(misdated, &[&self.since]).await?.get(0);
        let lost_pairs = self.lost_pairs();
        let lost_with_redis = rows.lost.iter().filter(|first| lost_pairs.contains(**first)).count() as u64;
        let missing_malformed = malformed.missing(&dead_letters.malformed, &neighbours);
        Ok(Findings {
            accepted: sent.accepted,
            distinct: sent.pairs.len(),
            retries: sent.retries,
            indeterminate: sent.indeterminate_pairs(load),
            stored: rows.rows,
            dead_lettered: dead_letters.rejected.len(),
            malformed: malformed.count(),
            lost: rows.lost.len() as u64 - lost_with_redis + missing_malformed,
            lost_with_redis,
            lost_entries: self.lost.payloads.len() as u64,
            reported_entries: self.reported,
            duplicated: rows.duplicated + dead_letters.duplicated,
            unexpected: rows.unexpected
                + misdated.unsigned_abs()
                + dead_letters.unexpected
                + malformed.unexpected_neighbours(&neighbours),
        })
    }

    /// Pairs in entries that Redis has lost, by the index of their first like.
    fn lost_pairs(&self) -> IndexSet {
        let pairs = IndexSet::new(self.load.likes);
        for located in self.lost.payloads.iter().flat_map(|payload| codec::locate(payload)) {
            if let Some(first) = self.load.first_with(located.like.user_id(), located.like.post_id()) {
                pairs.insert(first);
            }
        }
        pairs
    }

    async fn read_dead_letters(&self) -> Result<DeadLetters, Box<dyn Error>> {
        let mut found = DeadLetters {
            rejected: IndexSet::new(self.load.likes),
            malformed: HashMap::new(),
            unexpected: 0,
            duplicated: 0,
        };
        let mut seen = HashSet::new();
        for dead_letter in self.lost.dead_letters.iter().chain(&dead_letters(self.redis).await?) {
            let field = |name: &str| dead_letter.get(name).cloned().unwrap_or_default();
            let payload = field(codec::FIELD);
            if !seen.insert((field("origin"), field("detail"), payload.clone())) {
                found.duplicated += 1;
            } else if self.malformed.is_dead_letter(&payload) {
                *found.malformed.entry(payload).or_default() += 1;
            } else if field("reason") == "rejected" {
                self.add_rejected(&payload, &mut found);
            } else {
                found.unexpected += 1;
            }
        }
        Ok(found)
    }

    fn add_rejected(&self, payload: &Bytes, found: &mut DeadLetters) {
        for located in codec::locate(payload) {
            match self.load.first_with(located.like.user_id(), located.like.post_id()) {
                Some(first) if self.load.is_rejected(first) && self.sent.may_have(first) => {
                    found.rejected.insert(first);
                }
                _ => found.unexpected += 1,
            }
        }
    }
}

/// Fields of all dead letters.
pub(super) async fn dead_letters(
    redis: &Connections,
) -> Result<Vec<HashMap<String, Bytes>>, fred::error::Error> {
    let keys = Keys::default();
    let mut found = Vec::new();
    for partition in keys.partitions() {
        let stream = keys.dead_letters(partition);
        let range = [stream.as_str(), "-", "+"].map(Value::from).into();
        let entries: Vec<(String, _)> = redis.run(&stream, Retry::Idempotent, "XRANGE", range).await?;
        found.extend(entries.into_iter().map(|(_, fields)| fields));
    }
    Ok(found)
}
