//! Acknowledges what is stored.

use std::sync::Arc;

use shared::{
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
    stream::Streams,
    trace::BatchTracing,
};

/// Acknowledges batches.
#[derive(Clone)]
pub(crate) struct Acknowledger {
    pub(crate) streams: Streams,
    pub(crate) in_flight: Arc<InFlight>,
    pub(crate) commit_times: Arc<CommitTimes>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) tracing: BatchTracing,
    pub(crate) log_rates: Arc<LogRates>,
}

/// Of lines that every batch could bring.
#[derive(Default)]
pub(crate) struct LogRates {
    dead_letters: LogRate,
    unacknowledged: LogRate,
}

impl Acknowledger {
    /// Acknowledges what is stored. What Redis does not take now stays pending and comes again: after a while it is
    /// claimed, found stored already, and acknowledged then.
    pub(super) async fn ack(self, committed: Committed, span: Option<Span>) {
        let started = Instant::now();
        let acked = self.streams.ack(committed).await;
        let (took, error) = (started.elapsed(), acked.failed.as_ref().map(|(_, error)| error));
        self.metrics.redis_took(StreamOperation::Ack, took, error);
        self.tracing.acknowledged(span.as_ref(), took, error);
        self.commit_times.record(acked.entries.iter().map(|entry| entry.at.partition));
        self.metrics.acknowledged(acked.acknowledged);
        self.log_dead_letters(&acked.dead_letters, span.as_ref());
        if let Some((entries, error)) = acked.failed
            && let Some(entries) = self.log_rates.unacknowledged.record(entries)
        {
            let trace_id = spans::trace_id(span.as_ref());
            tracing::warn!(%error, entries, trace_id, "stored, but not acknowledged: they will be delivered again");
        }
        self.in_flight.release(acked.entries.iter().map(|entry| (entry.at, entry.likes)));
    }

    /// There may be very many.
    fn log_dead_letters(&self, letters: &[(Position, Reason)], span: Option<&Span>) {
        for (_, reason) in letters {
            self.metrics.dead_letter(*reason);
        }
        if let Some((last, reason)) = letters.last()
            && let Some(letters) = self.log_rates.dead_letters.record(letters.len())
        {
            let trace_id = spans::trace_id(span);
            tracing::warn!(
                letters, last_partition = %last.partition, last_id = %last.id, last_reason = reason.code(), trace_id,
                "dead letters"
            );
        }
    }
}
