//! Rate limit of an action.

use std::time::Duration;

use clap::Args;
use shared::settings::args::integer;
use tokio::time::{Instant, sleep_until};

#[derive(Args, Clone, Copy)]
pub(crate) struct PaceArgs {
    /// Maximum number of entries per second
    #[arg(long, value_name = "COUNT", value_parser = integer(1_u32..), help_heading = "Safety")]
    rate: Option<u32>,
}

pub(crate) struct Pace {
    per_second: Option<u32>,
    next: Instant,
}

impl Pace {
    pub(crate) fn new(args: Option<PaceArgs>) -> Self {
        Self { per_second: args.and_then(|args| args.rate), next: Instant::now() }
    }

    /// Returns the maximum size of a chunk, which is the number of entries for 100 ms.
    pub(super) fn chunk(&self) -> usize {
        self.per_second.map_or(usize::MAX, |rate| usize::try_from(rate.div_ceil(10)).unwrap_or(usize::MAX))
    }

    /// Waits until the next entries are due. Time lost to slow chunks is not caught up.
    pub(crate) async fn wait(&mut self, done: usize) {
        if let Some(rate) = self.per_second {
            self.next =
                self.next.max(Instant::now()) + Duration::from_secs_f64(done as f64 / f64::from(rate));
            sleep_until(self.next).await;
        }
    }
}
