//! What the demo has found, for people and as JSON.

use std::io::{self, Write};

use serde::Serialize;

/// All figures. Rates are likes a second; `in` ends with the last 202, `out` when all is stored and acknowledged.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) accepted: u64,
    pub(crate) distinct: u64,
    pub(crate) rows: u64,
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    pub(crate) foreign: u64,
    pub(crate) retries: u64,
    pub(crate) unsure: u64,
    pub(crate) transactions: u64,
    pub(crate) likes_per_transaction: f64,
    pub(crate) likes_per_entry: f64,
    pub(crate) likes_per_second_in: f64,
    pub(crate) likes_per_second_out: f64,
    pub(crate) post_p50_ms: f64,
    pub(crate) post_p99_ms: f64,
    pub(crate) accept_to_commit_p50_ms: f64,
    pub(crate) accept_to_commit_p99_ms: f64,
    pub(crate) insert_each_likes: u64,
    pub(crate) insert_each_likes_per_second: f64,
    pub(crate) ingest_peak_rss_bytes: u64,
    pub(crate) consumer_peak_rss_bytes: u64,
}

impl Report {
    /// Whether the promise was kept.
    pub(crate) fn passed(&self) -> bool {
        let expected = self.distinct..=self.distinct + self.unsure;
        self.accepted > 0
            && self.lost == 0
            && self.doubled == 0
            && self.foreign == 0
            && expected.contains(&self.rows)
    }

    pub(crate) fn print(&self) {
        let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
        let lines = [
            ("accepted", format!("{} likes, answered 202", grouped(self.accepted))),
            ("distinct", format!("{} pairs of user and post", grouped(self.distinct))),
            ("rows", format!("{} in Postgres", grouped(self.rows))),
            ("lost", grouped(self.lost)),
            ("doubled", grouped(self.doubled)),
            (
                "transactions",
                format!(
                    "{}, {:.0} likes each ({:.1} likes per stream entry)",
                    grouped(self.transactions),
                    self.likes_per_transaction,
                    self.likes_per_entry
                ),
            ),
            (
                "likes/s",
                format!(
                    "{} in, {} out",
                    rounded(self.likes_per_second_in),
                    rounded(self.likes_per_second_out)
                ),
            ),
            ("POST", format!("p50 {:.1} ms, p99 {:.1} ms", self.post_p50_ms, self.post_p99_ms)),
            (
                "to commit",
                format!(
                    "p50 {:.0} ms, p99 {:.0} ms from receipt",
                    self.accept_to_commit_p50_ms, self.accept_to_commit_p99_ms
                ),
            ),
            (
                "memory",
                format!(
                    "ingest {}, the larger consumer {} at most",
                    mib(self.ingest_peak_rss_bytes),
                    mib(self.consumer_peak_rss_bytes)
                ),
            ),
            (
                "one INSERT each",
                format!(
                    "{} likes/s, {} transactions for {} likes, no HTTP",
                    rounded(self.insert_each_likes_per_second),
                    grouped(self.insert_each_likes),
                    grouped(self.insert_each_likes)
                ),
            ),
        ];
        let mut out = io::stdout().lock();
        for (name, value) in lines {
            let _ = writeln!(out, "{name:>15}  {value}");
        }
        let line = if self.passed() {
            "PASS: every accepted like is in the table, once".to_owned()
        } else {
            format!(
                "FAIL: {} lost, {} doubled, {} rows that nobody sent",
                grouped(self.lost),
                grouped(self.doubled),
                grouped(self.foreign)
            )
        };
        let _ = writeln!(out, "{line}");
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate, for people to read")]
fn rounded(rate: f64) -> String {
    grouped(rate.round() as u64)
}

/// 1234567 as 1,234,567.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
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
            doubled: 0,
            foreign: 0,
            retries: 0,
            unsure: 0,
            transactions: 1,
            likes_per_transaction: 10.0,
            likes_per_entry: 1.0,
            likes_per_second_in: 1.0,
            likes_per_second_out: 1.0,
            post_p50_ms: 1.0,
            post_p99_ms: 1.0,
            accept_to_commit_p50_ms: 1.0,
            accept_to_commit_p99_ms: 1.0,
            insert_each_likes: 10,
            insert_each_likes_per_second: 1.0,
            ingest_peak_rss_bytes: 1,
            consumer_peak_rss_bytes: 1,
        }
    }

    #[test]
    fn the_demo_fails_on_any_broken_promise() {
        assert!(report().passed());
        assert!(Report { unsure: 1, rows: 9, ..report() }.passed());
        for broken in [
            Report { accepted: 0, ..report() },
            Report { lost: 1, ..report() },
            Report { doubled: 1, ..report() },
            Report { foreign: 1, ..report() },
            Report { rows: 7, ..report() },
            Report { rows: 9, ..report() },
        ] {
            assert!(!broken.passed(), "{broken:?}");
        }
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
