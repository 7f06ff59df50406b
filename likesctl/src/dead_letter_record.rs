//! Dead letters as lines of JSON: written by `dead export`, `dead purge` and `pending drop`, read by `dead import`.

use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use shared::wire::{
    codec,
    dead_letter::{DeadLetter, Reason},
    like::Like,
};

use crate::{
    context::Context,
    output::time,
    scan::{self, DeadLetterEntry, Item, Pending},
    selection::{EntryRef, InvalidEntryRef},
};

/// A like, as printed.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct LikeRecord {
    user_id: i64,
    post_id: i64,
    created_at: String,
}

impl From<&Like> for LikeRecord {
    fn from(like: &Like) -> Self {
        let created_at_ms = u64::try_from(like.created_at_us() / 1_000).unwrap_or(0);
        Self { user_id: like.user_id(), post_id: like.post_id(), created_at: time(created_at_ms) }
    }
}

impl fmt::Display for LikeRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "user {}  post {}  {}", self.user_id, self.post_id, self.created_at)
    }
}

/// A dead letter, complete enough to be imported again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct DeadLetterRecord {
    /// Id of the dead letter, or of the dropped entry.
    pub(crate) entry: String,
    pub(crate) reason: String,
    pub(crate) detail: String,
    /// Stream and id of the original entry.
    pub(crate) origin: String,
    pub(crate) deliveries: u64,
    pub(crate) consumer: String,
    /// Unix milliseconds.
    pub(crate) dead_at: u64,
    /// Valid likes, for operators. An import ignores them and reads the payload.
    #[serde(skip_deserializing)]
    pub(crate) likes: Vec<LikeRecord>,
    /// Payload in base64.
    pub(crate) l: String,
    /// Fields of an entry without a payload, in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) original: Option<String>,
}

impl From<&DeadLetterEntry> for DeadLetterRecord {
    fn from(dead_letter: &DeadLetterEntry) -> Self {
        let bytes = |name: &str| {
            let found = dead_letter.fields.iter().find(|(field, _)| field == name.as_bytes());
            found.map(|(_, value)| BASE64_STANDARD.encode(value))
        };
        Self {
            entry: dead_letter.entry().to_string(),
            reason: dead_letter.text("reason"),
            detail: dead_letter.text("detail"),
            origin: dead_letter.text("origin"),
            deliveries: dead_letter.number("deliveries").unwrap_or(0),
            consumer: dead_letter.text("consumer"),
            dead_at: dead_letter.number("dead_at").unwrap_or(dead_letter.id.ms),
            likes: scan::likes(&dead_letter.fields).iter().map(LikeRecord::from).collect(),
            l: bytes(codec::FIELD).unwrap_or_default(),
            original: bytes("original"),
        }
    }
}

/// Returns a dropped pending entry as a dead letter that can be imported.
pub(crate) fn dropped(context: &Context, pending: &Pending) -> DeadLetterRecord {
    let fields = pending.fields.as_deref().unwrap_or_default();
    let detail = "dropped by likesctl pending drop".to_owned();
    let dead_letter = DeadLetter::of_entry(Reason::Dropped, detail, fields).fields();
    let mut dead_letter: Vec<(Bytes, Bytes)> = dead_letter
        .chunks_exact(2)
        .filter_map(|pair| Some((pair.first()?.clone(), pair.last()?.clone())))
        .collect();
    let origin = format!("{}/{}", context.keys.stream(pending.partition), pending.entry.id);
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let more = [
        ("origin", origin),
        ("deliveries", pending.entry.deliveries.to_string()),
        ("consumer", pending.entry.consumer.clone()),
        ("dead_at", now_ms.to_string()),
    ];
    dead_letter.extend(more.map(|(name, value)| (Bytes::from_static(name.as_bytes()), Bytes::from(value))));
    DeadLetterRecord::from(&DeadLetterEntry {
        partition: pending.partition,
        id: pending.entry.id,
        fields: dead_letter,
    })
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum InvalidRecord {
    #[error("not a dead letter in JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("field {0} is not valid base64")]
    Base64(&'static str),
    #[error("field entry: {0}")]
    Entry(#[from] InvalidEntryRef),
}

impl DeadLetterRecord {
    /// Parses a line into the entry and the fields of its dead letter.
    pub(crate) fn parse(line: &str) -> Result<(EntryRef, Vec<(Bytes, Bytes)>), InvalidRecord> {
        let record: Self = serde_json::from_str(line)?;
        let bytes = |name, text: &str| {
            BASE64_STANDARD.decode(text).map(Bytes::from).map_err(|_| InvalidRecord::Base64(name))
        };
        let entry = record.entry.parse()?;
        let mut fields = vec![
            ("origin", record.origin.into()),
            ("deliveries", record.deliveries.to_string().into()),
            ("consumer", record.consumer.into()),
            ("dead_at", record.dead_at.to_string().into()),
            (codec::FIELD, bytes("l", &record.l)?),
            ("reason", record.reason.into()),
            ("detail", record.detail.into()),
        ];
        if let Some(original) = &record.original {
            fields.push(("original", bytes("original", original)?));
        }
        Ok((
            entry,
            fields.into_iter().map(|(name, value)| (Bytes::from_static(name.as_bytes()), value)).collect(),
        ))
    }
}
