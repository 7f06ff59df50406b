//! Latencies of requests.

use std::{ops::AddAssign, time::Duration};

use hdrhistogram::Histogram;

/// Upper bound of the histogram in microseconds. Longer latencies are recorded as this value.
const MAX_US: u64 = 60_000_000;
const SIGNIFICANT_DIGITS: u8 = 3;

/// Histogram of latencies.
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        #[expect(clippy::expect_used, reason = "constants")]
        let histogram = Histogram::new_with_bounds(1, MAX_US, SIGNIFICANT_DIGITS).expect("valid bounds");
        Self(histogram)
    }
}

impl Latencies {
    pub fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
    }

    /// Number of recorded latencies.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// Quantile in milliseconds.
    pub fn quantile_ms(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1e3
    }
}

impl AddAssign for Latencies {
    fn add_assign(&mut self, other: Self) {
        self.0 += other.0;
    }
}
