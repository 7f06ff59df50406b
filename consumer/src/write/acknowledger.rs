//! Acknowledges stored entries.

use std::sync::Arc;

use shared::{
    error_chain::one_line,
    telemetry::{
        log_rate::LogRate,
        spans::{self, Span},
    },
    wire::dead_letter::Reason,
};
use tokio::time::Instant;

use crate::{
    entry::Position,
    group::control::CommitTimes,
    in_flight::InFlight,
    metrics::{Metrics, StreamOperation},
    store::proof::Committed,
    stream::GroupStream,
    trace::BatchTracing,
};

/// Acknowledges committed batches and releases their entries from the in-flight set.
#[derive(Clone)]
pub(crate) struct Acknowledger<S> {
    pub(crate) streams: S,
    pub(crate) in_flight: Arc<InFlight>,
    pub(crate) commit_times: Arc<CommitTimes>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) tracing: BatchTracing,
    pub(crate) log_rates: Arc<LogRates>,
}

/// Rate limits of log lines that every batch could cause.
#[derive(Default)]
pub(crate) struct LogRates {
    dead_letters: LogRate,
    unacknowledged: LogRate,
    pub(super) discarded: LogRate,
}

impl<S: GroupStream> Acknowledger<S> {
    /// Acknowledges a committed batch. If the acknowledgement of an entry fails, the entry stays pending. It is claimed after
    /// `CLAIM_MIN_IDLE`, written again without effect on the table, and acknowledged then. After a replacement of the Redis
    /// server, the partition reader recovers it without that wait.
    pub(super) async fn ack(self, committed: Committed, span: Option<Span>) {
        let started = Instant::now();
        let acked = self.streams.ack(committed).await;
        let took = started.elapsed();
        let error = acked.failed.as_ref().map(|(_, error)| error);
        self.metrics.redis_took(StreamOperation::Ack, took, error);
        self.tracing.acknowledged(span.as_ref(), took, error);
        self.commit_times.record(acked.entries.iter().map(|entry| entry.at.partition));
        self.metrics.acknowledged(acked.acknowledged);
        self.log_dead_letters(&acked.dead_letters, span.as_ref());
        if acked.failed.is_some() {
            // Some of them are acknowledged, which does no harm. Dead letters of others may not have been appended.
            let stored = acked.entries.iter().filter(|entry| entry.dead_letters.is_empty());
            self.in_flight.stored(stored.map(|entry| entry.at));
        }
        if let Some((entries, error)) = acked.failed
            && let Some(entries) = self.log_rates.unacknowledged.record(entries)
        {
            let trace_id = spans::trace_id(span.as_ref());
            tracing::warn!(
                error = one_line(&error),
                entries,
                trace_id,
                "entries stored but not acknowledged, they will be redelivered"
            );
        }
        self.in_flight.release(acked.entries.iter().map(|entry| entry.at));
        self.in_flight.redeliver(acked.replaced);
    }

    /// Counts dead letters and logs one rate-limited line with the last of them.
    fn log_dead_letters(&self, dead_letters: &[(Position, Reason)], span: Option<&Span>) {
        for (_, reason) in dead_letters {
            self.metrics.dead_letter(*reason);
        }
        if let Some((last, reason)) = dead_letters.last()
            && let Some(count) = self.log_rates.dead_letters.record(dead_letters.len())
        {
            let trace_id = spans::trace_id(span);
            tracing::warn!(
                dead_letters = count, last_partition = %last.partition, last_id = %last.id, last_reason = reason.code(), trace_id,
                "dead letters written"
            );
        }
    }
}
