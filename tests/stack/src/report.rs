//! Result of a demo run, as text and as JSON.

use devstack::terminal::print_line;
use serde::Serialize;
use shared::thousands::group_thousands;

/// All figures. Rates are likes per second: `in` up to the last 202, `out` up to the end of draining.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) accepted: u64,
    pub(crate) distinct: u64,
    pub(crate) rows: u64,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) unexpected: u64,
    pub(crate) retries: u64,
    pub(crate) indeterminate: u64,
    pub(crate) transactions: u64,
    pub(crate) likes_per_transaction: f64,
    pub(crate) likes_per_entry: f64,
    pub(crate) likes_per_second_in: f64,
    pub(crate) likes_per_second_out: f64,
    pub(crate) post_p50_ms: f64,
    pub(crate) post_p99_ms: f64,
    pub(crate) end_to_end_p50_ms: f64,
    pub(crate) end_to_end_p99_ms: f64,
    pub(crate) insert_each_likes: u64,
    pub(crate) insert_each_likes_per_second: f64,
    pub(crate) ingest_peak_rss_bytes: u64,
    pub(crate) consumer_peak_rss_bytes: u64,
}

impl Report {
    /// Returns whether every guarantee held.
    pub(crate) fn passed(&self) -> bool {
        let expected = self.distinct..=self.distinct + self.indeterminate;
        self.accepted > 0
            && self.lost == 0
            && self.duplicated == 0
            && self.unexpected == 0
            && expected.contains(&self.rows)
    }

    pub(crate) fn print(&self) {
        for (name, value) in self.counts().into_iter().chain(self.rates()) {
            print_line(&format!("{name:>15}  {value}"));
        }
        print_line(&self.verdict());
    }

    fn counts(&self) -> [(&'static str, String); 6] {
        let transactions = format!(
            "{}, {:.0} likes per transaction ({:.1} likes per entry)",
            grouped(self.transactions),
            self.likes_per_transaction,
            self.likes_per_entry
        );
        [
            ("accepted", format!("{} likes (202 responses)", grouped(self.accepted))),
            ("distinct", format!("{} (user, post) pairs", grouped(self.distinct))),
            ("rows", format!("{} in Postgres", grouped(self.rows))),
            ("lost", grouped(self.lost)),
            ("duplicated", grouped(self.duplicated)),
            ("transactions", transactions),
        ]
    }

    fn rates(&self) -> [(&'static str, String); 5] {
        let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
        let per_second_in = rounded(self.likes_per_second_in);
        let per_second_out = rounded(self.likes_per_second_out);
        let latency = format!(
            "p50 {:.0} ms, p99 {:.0} ms from accept to commit",
            self.end_to_end_p50_ms, self.end_to_end_p99_ms
        );
        let memory = format!(
            "peak {} in ingest, {} in the larger consumer",
            mib(self.ingest_peak_rss_bytes),
            mib(self.consumer_peak_rss_bytes)
        );
        let insert_each = format!(
            "{} likes/s, {likes} transactions for {likes} likes, without HTTP",
            rounded(self.insert_each_likes_per_second),
            likes = grouped(self.insert_each_likes)
        );
        [
            ("likes/s", format!("{per_second_in} in, {per_second_out} out")),
            ("POST", format!("p50 {:.1} ms, p99 {:.1} ms", self.post_p50_ms, self.post_p99_ms)),
            ("end to end", latency),
            ("memory", memory),
            ("INSERT per like", insert_each),
        ]
    }

    fn verdict(&self) -> String {
        if self.passed() {
            return "PASS: every accepted like is in the table exactly once".to_owned();
        }
        format!(
            "FAIL: {} lost, {} duplicated, {} unexpected rows",
            grouped(self.lost),
            grouped(self.duplicated),
            grouped(self.unexpected)
        )
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate, for display")]
fn rounded(rate: f64) -> String {
    grouped(rate.round() as u64)
}

fn grouped(number: u64) -> String {
    group_thousands(&number.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            accepted: 10,
            distinct: 8,
            rows: 8,
            lost: 0,
            duplicated: 0,
            unexpected: 0,
            retries: 0,
            indeterminate: 0,
            transactions: 1,
            likes_per_transaction: 10.0,
            likes_per_entry: 1.0,
            likes_per_second_in: 1.0,
            likes_per_second_out: 1.0,
            post_p50_ms: 1.0,
            post_p99_ms: 1.0,
            end_to_end_p50_ms: 1.0,
            end_to_end_p99_ms: 1.0,
            insert_each_likes: 10,
            insert_each_likes_per_second: 1.0,
            ingest_peak_rss_bytes: 1,
            consumer_peak_rss_bytes: 1,
        }
    }

    #[test]
    fn any_violated_guarantee_fails_the_demo() {
        assert!(report().passed());
        assert!(Report { indeterminate: 1, rows: 9, ..report() }.passed());
        for violated in [
            Report { accepted: 0, ..report() },
            Report { lost: 1, ..report() },
            Report { duplicated: 1, ..report() },
            Report { unexpected: 1, ..report() },
            Report { rows: 7, ..report() },
            Report { rows: 9, ..report() },
        ] {
            assert!(!violated.passed(), "{violated:?}");
        }
    }
}
