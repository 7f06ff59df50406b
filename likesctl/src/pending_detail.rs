//! A pending entry with its likes, for `pending show` and `top`.

use serde::Serialize;
use shared::wire::codec;

use crate::{
    context::Context,
    dead_letter_record::LikeRecord,
    exit::CliError,
    output::{Column, Row, age, printable, time},
    scan::{Item, Pending},
    selection::EntryRef,
};

/// A pending entry in a list.
#[derive(Serialize)]
pub(crate) struct PendingRow {
    entry: EntryRef,
    consumer: String,
    idle_ms: u64,
    deliveries: u64,
    age_ms: u64,
}

impl PendingRow {
    pub(crate) fn new(pending: &Pending, now_ms: u64) -> Self {
        Self {
            entry: pending.entry(),
            consumer: pending.entry.consumer.clone(),
            idle_ms: pending.entry.idle_ms,
            deliveries: pending.entry.deliveries,
            age_ms: now_ms.saturating_sub(pending.entry.id.ms),
        }
    }
}

impl Row for PendingRow {
    const COLUMNS: &'static [Column] = &[
        Column::whole("ENTRY"),
        Column::text("CONSUMER"),
        Column::number("IDLE"),
        Column::number("DELIVERIES"),
        Column::number("AGE"),
    ];

    fn cells(&self) -> Vec<String> {
        let Self { entry, consumer, idle_ms, deliveries, age_ms } = self;
        vec![entry.to_string(), consumer.clone(), age(*idle_ms), deliveries.to_string(), age(*age_ms)]
    }
}

/// Returns the error for an entry that is not pending.
pub(crate) fn not_pending(at: EntryRef) -> CliError {
    CliError::failed(format!(
        "{at} is not pending: it is not delivered yet, already acknowledged, or unknown"
    ))
}

#[derive(Serialize)]
pub(crate) struct PendingDetail {
    #[serde(flatten)]
    row: PendingRow,
    accepted_at: String,
    is_in_stream: bool,
    likes: Vec<LikeRecord>,
    /// Error of the first like that cannot be decoded, or of the whole entry.
    problem: Option<String>,
}

impl PendingDetail {
    /// Reads a pending entry.
    ///
    /// # Errors
    /// When the entry is not pending, or Redis fails.
    pub(crate) async fn read(context: &Context, at: EntryRef) -> Result<Self, CliError> {
        let partition = context.partition(at.partition)?;
        let found = context.streams.pending(partition, (at.id, at.id), None, 0, 1).await?;
        let Some(entry) = found.into_iter().next() else {
            return Err(not_pending(at));
        };
        let fields = context.streams.entry(partition, at.id).await?.and_then(|raw| raw.fields);
        Ok(Self::new(&Pending { partition, entry, fields }, context.now_ms().await?))
    }

    fn new(pending: &Pending, now_ms: u64) -> Self {
        let payload = pending.fields.as_deref().map(codec::payload);
        let decoded = payload.as_ref().map(|payload| payload.as_deref().map(codec::decode));
        let bad = payload.iter().flatten().flat_map(|payload| codec::bad_likes(payload)).next();
        let (likes, problem) = match decoded {
            None => (Vec::new(), Some("deleted from the stream: its likes are lost".to_owned())),
            Some(None) => (Vec::new(), Some(format!("it has no payload (field {})", codec::FIELD))),
            Some(Some(Err(error))) => (Vec::new(), Some(error.to_string())),
            Some(Some(Ok(decoded))) => {
                let likes = decoded.likes.iter().map(LikeRecord::from).collect();
                (likes, bad.map(|bad| format!("like {}: {}", bad.index, bad.why)))
            }
        };
        Self {
            row: PendingRow::new(pending, now_ms),
            accepted_at: time(pending.entry.id.ms),
            is_in_stream: pending.fields.is_some(),
            likes,
            problem,
        }
    }

    pub(crate) fn text(&self) -> String {
        let row = &self.row;
        let mut lines = vec![
            format!("entry       {}", row.entry),
            format!("accepted    {}, {} ago", self.accepted_at, age(row.age_ms)),
            format!("consumer    {}, idle for {}", printable(&row.consumer), age(row.idle_ms)),
            format!("deliveries  {}", row.deliveries),
        ];
        if let Some(problem) = &self.problem {
            lines.push(format!("problem     {}", printable(problem)));
        }
        lines.push(format!("likes       {}", self.likes.len()));
        lines.extend(self.likes.iter().map(|like| format!("  {like}")));
        lines.join("\n")
    }
}
