//! Dead letters: entries and likes that cannot be stored, with the reason.

use std::fmt::Display;

use bytes::Bytes;

use crate::wire::codec;

/// Maximum number of separate dead letters of one entry. A single script call appends all of them, and Redis limits its
/// arguments.
const MAX_SEPARATE: usize = 1_000;

/// Reason of a dead letter. The codes are stable, because operators filter by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The payload is malformed or missing.
    Undecodable,
    /// The payload has an unknown schema version.
    UnknownVersion,
    /// One like of a valid entry is invalid.
    InvalidLike,
    /// Postgres rejected the row.
    Rejected,
    /// The entry exceeded the number of deliveries, and two processes died while they processed it alone.
    MaxDeliveries,
    /// An operator dropped the pending entry, and imported it later from the exported file.
    Dropped,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Self; 6] = [
        Self::Undecodable,
        Self::UnknownVersion,
        Self::InvalidLike,
        Self::Rejected,
        Self::MaxDeliveries,
        Self::Dropped,
    ];

    /// Returns the reason with this code.
    pub fn from_code(code: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.code() == code)
    }

    /// Returns the stable code.
    pub fn code(self) -> &'static str {
        match self {
            Self::Undecodable => "undecodable",
            Self::UnknownVersion => "unknown_version",
            Self::InvalidLike => "invalid_like",
            Self::Rejected => "rejected",
            Self::MaxDeliveries => "max_deliveries",
            Self::Dropped => "dropped",
        }
    }
}

/// A dead letter to be appended.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    reason: Reason,
    detail: String,
    payload: Bytes,
    /// The packed fields of an entry without a payload field, so that no data is lost.
    original: Option<Bytes>,
}

/// One like of an entry, with the reason why it cannot be stored.
pub struct DeadLike<'a, W> {
    /// Index in the entry, from 0.
    pub index: usize,
    pub why: W,
    /// The original bytes.
    pub bytes: &'a [u8],
}

impl DeadLetter {
    pub fn new(reason: Reason, detail: String, payload: Bytes) -> Self {
        Self { reason, detail, payload, original: None }
    }

    /// Creates a dead letter of a whole entry, undecoded. Without a payload field it keeps the entry's fields.
    pub fn of_entry(reason: Reason, detail: String, fields: &[(Bytes, Bytes)]) -> Self {
        if let Some(payload) = codec::payload(fields) {
            return Self::new(reason, detail, payload);
        }
        let fields = fields.iter().map(|(name, value)| (&**name, &**value));
        let original = Some(codec::pack_fields(fields).into());
        Self { original, ..Self::new(reason, detail, Bytes::new()) }
    }

    /// Creates dead letters of the likes of one entry: one each for the first [`MAX_SEPARATE`], and one for all others, of
    /// which only the bytes are kept.
    pub fn of_likes<'a, W: Display>(
        reason: Reason,
        likes: impl IntoIterator<Item = DeadLike<'a, W>>,
    ) -> Vec<Self> {
        let mut likes = likes.into_iter();
        let separate = likes.by_ref().take(MAX_SEPARATE).map(|DeadLike { index, why, bytes }| {
            Self::new(reason, format!("like {index} of the entry: {why}"), codec::frame(1, bytes).into())
        });
        let mut dead_letters: Vec<Self> = separate.collect();
        if let Some(first) = likes.next() {
            let (mut count, mut last, mut bytes) = (1, first.index, first.bytes.to_vec());
            for like in likes {
                (count, last) = (count + 1, like.index);
                bytes.extend_from_slice(like.bytes);
            }
            let detail = format!("likes {} to {last} of the entry: {}", first.index, first.why);
            dead_letters.push(Self::new(reason, detail, codec::frame(count, &bytes).into()));
        }
        dead_letters
    }

    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// Returns the payload: the original bytes.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// Returns alternating names and values of the fields that are known before the append.
    pub fn fields(&self) -> Vec<Bytes> {
        let mut fields = vec![
            Bytes::from_static(codec::FIELD.as_bytes()),
            self.payload.clone(),
            Bytes::from_static(b"reason"),
            Bytes::from_static(self.reason.code().as_bytes()),
            Bytes::from_static(b"detail"),
            Bytes::from(self.detail.clone()),
        ];
        if let Some(original) = &self.original {
            fields.extend([Bytes::from_static(b"original"), original.clone()]);
        }
        fields
    }
}
