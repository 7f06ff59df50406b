//! What can't be stored, and why: the contents of a dead-letter stream.

use bytes::Bytes;
use shared::codec;

/// Why something is a dead letter. The codes are stable: people filter by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The payload is not what it should be, or missing.
    Undecodable,
    /// The payload's schema version is not known.
    UnknownVersion,
    /// One like of a good entry is not a like.
    InvalidLike,
}

impl Reason {
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::Undecodable => "undecodable",
            Self::UnknownVersion => "unknown_version",
            Self::InvalidLike => "invalid_like",
        }
    }
}

/// One entry of a dead-letter stream to be.
#[derive(Clone, Debug)]
pub(crate) struct DeadLetter {
    reason: Reason,
    detail: String,
    payload: Bytes,
    /// The fields of an entry that has no payload field, so that nothing of it is lost.
    other_fields: Vec<(Bytes, Bytes)>,
}

impl DeadLetter {
    pub(crate) fn new(reason: Reason, detail: String, payload: Bytes) -> Self {
        Self { reason, detail, payload, other_fields: Vec::new() }
    }

    pub(crate) fn without_payload(fields: Vec<(Bytes, Bytes)>) -> Self {
        let detail = format!("the entry has no field {}", codec::FIELD);
        Self { other_fields: fields, ..Self::new(Reason::Undecodable, detail, Bytes::new()) }
    }

    pub(crate) fn reason(&self) -> Reason {
        self.reason
    }

    #[cfg(test)]
    pub(crate) fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// The fields that are known before it is appended, name after value after name. Fields of a foreign entry
    /// get a prefix, so that they can't pass for ours.
    pub(crate) fn fields(&self) -> Vec<Bytes> {
        let mut fields = vec![
            Bytes::from_static(codec::FIELD.as_bytes()),
            self.payload.clone(),
            Bytes::from_static(b"reason"),
            Bytes::from_static(self.reason.code().as_bytes()),
            Bytes::from_static(b"detail"),
            Bytes::from(self.detail.clone()),
        ];
        for (name, value) in &self.other_fields {
            fields.push([b"original:", name.as_ref()].concat().into());
            fields.push(value.clone());
        }
        fields
    }
}
