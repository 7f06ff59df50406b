//! Quarantine of suspect entries by a partition reader. Redis has a record of each try while the process works on it, so that
//! other processes learn of its death. A process that survives, waits for Postgres, or shuts down removes its record.

use std::{sync::Arc, time::Duration};

use shared::{
    error_chain::one_line,
    wire::{
        dead_letter::{DeadLetter, Reason},
        partition::Partition,
    },
};
use tokio::{
    pin,
    time::{Instant, sleep, timeout},
};

use super::{PartitionReader, ReadContext, ReadError};
use crate::{
    entry::{Entry, EntryId, Position, RawEntry},
    in_flight::{ExclusivePermit, InFlightLimits},
    read::{
        pacing::POLL_MAX,
        quarantine::{Planned, Suspect},
    },
    stream::GroupStream,
};

/// Maximum time to wait until no other entry is in flight. All readers wait meanwhile.
const ALONE_TIMEOUT: Duration = Duration::from_secs(5);

impl<S: GroupStream> PartitionReader<S> {
    /// Ends the current try if it is over, and begins the next one. Does nothing while heartbeats fail: other processes must
    /// know this one before it begins a try.
    pub(super) async fn advance_quarantine(&mut self) -> Result<(), ReadError> {
        if !self.quarantine.is_busy() {
            return Ok(());
        }
        self.end_quarantine().await?;
        self.quarantine.release_settled(&self.context.in_flight);
        if self.ownership.borrow().contact.is_none() {
            return Ok(());
        }
        self.judge().await?;
        match self.quarantine.next() {
            None => Ok(()),
            Some(Planned::DeadLetter { suspect, deaths }) => self.discard(suspect, deaths),
            Some(Planned::Alone(suspect)) => self.try_alone(suspect).await,
            Some(Planned::Together(suspects)) => self.try_together(suspects).await,
        }
    }

    /// Waits until the quarantine may be able to advance.
    pub(super) async fn wait_for_quarantine(&self) {
        tokio::select! {
            () = self.quarantine.attention(&self.context.in_flight) => {}
            () = sleep(POLL_MAX) => {}
            () = self.context.shutdown.cancelled() => {}
        }
    }

    /// Removes the record of a try that is not over. The writer drains its entries, and if the process is killed meanwhile, they
    /// are not to blame.
    pub(super) async fn end_quarantine_at_shutdown(&mut self) {
        if let Err(ReadError::Redis(error)) = self.end_quarantine().await {
            tracing::debug!(error = one_line(&error), "cannot record the end of a quarantine");
        }
    }

    async fn end_quarantine(&mut self) -> Result<(), ReadError> {
        let ReadContext { streams, in_flight, shutdown, .. } = &*self.context;
        if self.quarantine.must_end(in_flight, shutdown.is_cancelled()) {
            streams.end_quarantine(self.partition).await?;
            self.quarantine.ended();
        }
        Ok(())
    }

    async fn judge(&mut self) -> Result<(), ReadError> {
        let ids = self.quarantine.to_judge(&self.ownership.borrow());
        if !ids.is_empty() {
            let records = self.context.streams.quarantines(self.partition, &ids).await?;
            self.quarantine.judge(records, &self.ownership.borrow());
        }
        Ok(())
    }

    /// Makes an entry a dead letter, without decoding it.
    fn discard(&self, Suspect { entry, deliveries }: Suspect, deaths: usize) -> Result<(), ReadError> {
        let ReadContext { in_flight, entries, .. } = &*self.context;
        let RawEntry { at, fields } = entry;
        tracing::warn!(partition = %at.partition, id = %at.id, deliveries, deaths, "entry crashes consumers, it becomes a dead letter");
        let detail =
            format!("delivered {deliveries} times; {deaths} processes died while they processed it alone");
        let dead_letter =
            DeadLetter::of_entry(Reason::MaxDeliveries, detail, fields.as_deref().unwrap_or_default());
        if in_flight.admit(at, 0) {
            let entry = Entry::discarded(at, dead_letter, Instant::now());
            entries.send(entry).map_err(|_| ReadError::WriterGone)?;
        }
        Ok(())
    }

    /// Sends entries to the writer like any others. Their record tells them from the others if the process dies.
    async fn try_together(&mut self, suspects: Vec<Suspect>) -> Result<(), ReadError> {
        let context = Arc::clone(&self.context);
        let permit = context.in_flight.read_permit(context.limits.in_flight);
        let Some(mut permit) = context.shutdown.run_until_cancelled(permit).await else { return Ok(()) };
        permit.reserve(suspects.iter().map(|suspect| suspect.entry.bytes()).sum());
        self.begin(suspects).await
    }

    /// Sends an entry to the writer when no other entry is in flight, and waits until it is settled.
    async fn try_alone(&mut self, suspect: Suspect) -> Result<(), ReadError> {
        let context = Arc::clone(&self.context);
        let Some(_permit) = self.exclusive_permit(&context).await else { return Ok(()) };
        self.begin(vec![suspect]).await?;
        context.shutdown.run_until_cancelled(self.quarantine.attention(&context.in_flight)).await;
        let ended = self.end_quarantine().await;
        context.shutdown.run_until_cancelled(context.in_flight.idle()).await;
        ended
    }

    /// Records a try and sends its entries to the writer.
    async fn begin(&mut self, suspects: Vec<Suspect>) -> Result<(), ReadError> {
        let entries: Vec<Position> = suspects.iter().map(|suspect| suspect.entry.at).collect();
        let ids: Vec<EntryId> = entries.iter().map(|at| at.id).collect();
        // Noted first: if the reply is lost, the try may be on record.
        self.quarantine.begin(entries);
        let begun = self.context.streams.begin_quarantine(self.partition, &ids, ids.len()).await;
        if let Err(error) = begun {
            self.quarantine.put_back(suspects);
            return Err(error.into());
        }
        log(self.partition, &suspects);
        let entries = suspects.into_iter().map(|suspect| suspect.entry).collect();
        // The try is on record, and a process that waits is not killed by its entries.
        self.send(entries, InFlightLimits::NONE).await.map(drop)
    }

    /// Waits until no other entry is in flight. Gives up if that takes long and writes do not fail: entries that wait in
    /// Postgres must not stop reading.
    async fn exclusive_permit<'a>(&mut self, context: &'a ReadContext<S>) -> Option<ExclusivePermit<'a>> {
        let permit = context.shutdown.run_until_cancelled(context.in_flight.exclusive_permit());
        pin!(permit);
        loop {
            if let Ok(permit) = timeout(ALONE_TIMEOUT, &mut permit).await {
                return permit;
            }
            if !context.in_flight.is_paused() {
                self.quarantine.give_up();
                return None;
            }
        }
    }
}

fn log(partition: Partition, suspects: &[Suspect]) {
    let deliveries = suspects.iter().map(|suspect| suspect.deliveries).max();
    let ids = suspects.iter().map(|suspect| suspect.entry.at.id);
    let (Some(first), Some(last)) = (ids.clone().min(), ids.max()) else { return };
    if first == last {
        tracing::warn!(
            %partition, id = %first, deliveries,
            "entry quarantined: delivered more than MAX_DELIVERIES times"
        );
    } else {
        tracing::warn!(
            %partition, entries = suspects.len(), %first, %last, deliveries,
            "entries quarantined: delivered more than MAX_DELIVERIES times"
        );
    }
}
