//! What can't be stored, and why: the contents of a dead-letter stream.

use bytes::Bytes;

use crate::wire::codec;

/// At most this many likes of one entry become separate dead letters: one call of a script appends them all, and Redis
/// bounds its arguments.
const MAX_SEPARATE: usize = 1_000;

/// Why something is a dead letter. The codes are stable: people filter by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The payload is not what it should be, or missing.
    Undecodable,
    /// The payload's schema version is not known.
    UnknownVersion,
    /// One like of a good entry is not a like.
    InvalidLike,
    /// The database will never take this like.
    Rejected,
    /// It was delivered too often, and the processes that quarantined it did not survive it.
    MaxDeliveries,
    /// An operator dropped it while it was pending, and imported it from the exported file.
    Dropped,
}

impl Reason {
    /// All there are.
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

/// One entry of a dead-letter stream to be.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    reason: Reason,
    detail: String,
    payload: Bytes,
    /// The fields of an entry that has no payload field, packed, so that nothing of it is lost.
    original: Option<Bytes>,
}

/// One like of an entry that can't be stored.
pub struct DeadLike<'a> {
    /// Which one of its entry, from 0.
    pub index: usize,
    pub why: String,
    /// As they are.
    pub bytes: &'a [u8],
}

impl DeadLetter {
    pub fn new(reason: Reason, detail: String, payload: Bytes) -> Self {
        Self { reason, detail, payload, original: None }
    }

    /// Of a whole entry, undecoded. One that has no payload field keeps the fields that it has.
    pub fn of_entry(reason: Reason, detail: String, fields: &[(Bytes, Bytes)]) -> Self {
        if let Some(payload) = codec::payload(fields) {
            return Self::new(reason, detail, payload);
        }
        let fields = fields.iter().map(|(name, value)| (&**name, &**value));
        let original = Some(codec::pack_fields(fields).into());
        Self { original, ..Self::new(reason, detail, Bytes::new()) }
    }

    /// Of likes of one entry: a letter each, and beyond [`MAX_SEPARATE`] one for all the rest.
    pub fn of_likes(reason: Reason, mut likes: Vec<DeadLike<'_>>) -> Vec<Self> {
        let rest = likes.split_off(likes.len().min(MAX_SEPARATE));
        let alone = likes.iter().map(|DeadLike { index, why, bytes }| {
            Self::new(reason, format!("like {index} of the entry: {why}"), codec::frame(&[bytes]).into())
        });
        let mut letters: Vec<Self> = alone.collect();
        if let [first, .., last] | [first @ last] = &rest[..] {
            let detail = format!("likes {} to {} of the entry: {}", first.index, last.index, first.why);
            let bytes: Vec<&[u8]> = rest.iter().map(|like| like.bytes).collect();
            letters.push(Self::new(reason, detail, codec::frame(&bytes).into()));
        }
        letters
    }

    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// Returns the payload: the original bytes.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// The fields that are known before it is appended, name after value after name.
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
