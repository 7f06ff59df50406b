//! Helpers for unit tests.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use shared::{
    redis::Incarnation,
    runtime::admin::Health,
    wire::{
        like::Like,
        partition::{Partition, PartitionCount},
    },
};
use tokio::time::{Instant, sleep};
use tracing_subscriber::fmt::MakeWriter;

use crate::{
    entry::{EntryId, Position},
    metrics::Metrics,
};

/// Returns metrics that are not exported.
pub(crate) fn metrics() -> Arc<Metrics> {
    Arc::new(Metrics::new(&opentelemetry::global::meter("test"), &"likes".parse().unwrap()))
}

pub(crate) fn partition() -> Partition {
    PartitionCount::new(1).unwrap().of_user(1)
}

pub(crate) fn position(seq: u64) -> Position {
    Position { partition: partition(), id: EntryId { ms: 1, seq }, incarnation: Incarnation::default() }
}

/// Returns the like of the entry with this number.
pub(crate) fn like(seq: u64) -> Like {
    Like::new(seq.into(), 42, 0).unwrap()
}

/// Returns the numbers of entries as text, each preceded by a space.
pub(crate) fn numbers(numbers: impl IntoIterator<Item = u64>) -> String {
    numbers.into_iter().map(|number| format!(" {number}")).collect::<Vec<_>>().concat()
}

/// Returns the failure detail of a check; `None` while it passes.
pub(crate) fn failing(health: &Health, check: &str) -> Option<String> {
    health.checks().get(check).cloned().flatten()
}

/// Runs all tasks until each of them waits. No time passes.
pub(crate) async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// Advances time by `duration` while tasks run.
pub(crate) async fn pass(duration: Duration) {
    sleep(duration).await;
    settle().await;
}

/// Calls received by the fakes of Redis and Postgres, in order.
#[derive(Clone, Default)]
pub(crate) struct Journal(Arc<Mutex<Vec<(Instant, String)>>>);

impl Journal {
    pub(crate) fn record(&self, line: impl Into<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), line.into()));
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().map(|(_, line)| line.clone()).collect()
    }

    /// Returns the times at which lines equal to `text` were recorded.
    pub(crate) fn times(&self, text: &str) -> Vec<Instant> {
        self.0.lock().unwrap().iter().filter(|(_, line)| line == text).map(|(at, _)| *at).collect()
    }
}

/// Captured log of the current thread.
#[derive(Clone, Default)]
pub(crate) struct LogCapture(Arc<Mutex<Vec<u8>>>);

impl LogCapture {
    /// Captures log output until the guard is dropped.
    pub(crate) fn start() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(log.clone()).finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    pub(crate) fn contains(&self, text: &str) -> bool {
        self.count(text) > 0
    }

    /// Returns how often a text was logged.
    pub(crate) fn count(&self, text: &str) -> usize {
        String::from_utf8_lossy(&self.0.lock().unwrap()).matches(text).count()
    }
}

impl io::Write for LogCapture {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for LogCapture {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}
