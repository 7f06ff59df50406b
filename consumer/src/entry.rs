//! Stream entries: ids, positions, and decoding into likes.

use std::{fmt, num::ParseIntError, str::FromStr};

use bytes::Bytes;
use opentelemetry::trace::SpanContext;
use shared::{
    redis::Incarnation,
    wire::{
        codec::{self, BadLike, DecodeError},
        dead_letter::{DeadLetter, DeadLike, Reason},
        like::Like,
        partition::Partition,
    },
};
use tokio::time::Instant;

/// Entry id, assigned by Redis: milliseconds since the Unix epoch by Redis's clock, and a sequence number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryId {
    pub ms: u64,
    pub seq: u64,
}

impl EntryId {
    /// Largest possible id.
    pub const MAX: Self = Self { ms: u64::MAX, seq: u64::MAX };

    /// Returns the smallest id after this one; `None` after [`EntryId::MAX`].
    pub fn after(self) -> Option<Self> {
        match self.seq.checked_add(1) {
            Some(seq) => Some(Self { seq, ..self }),
            None => self.ms.checked_add(1).map(|ms| Self { ms, seq: 0 }),
        }
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

impl FromStr for EntryId {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (ms, seq) = text.split_once('-').unwrap_or((text, "0"));
        Ok(Self { ms: ms.parse()?, seq: seq.parse()? })
    }
}

/// Position of an entry: partition and id, in one incarnation of the Redis server. After a failover the same id may belong
/// to another entry, which must be neither taken for this one nor acknowledged in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position {
    pub partition: Partition,
    pub id: EntryId,
    pub incarnation: Incarnation,
}

/// Undecoded entry as Redis delivers it.
#[derive(Debug, PartialEq, Eq)]
pub struct RawEntry {
    pub at: Position,
    /// `None` if the entry was deleted from the stream while it was pending.
    pub fields: Option<Vec<(Bytes, Bytes)>>,
}

impl RawEntry {
    /// Returns the number of bytes of its fields.
    pub fn bytes(&self) -> usize {
        self.fields.iter().flatten().map(|(name, value)| name.len() + value.len()).sum()
    }
}

/// Decoded entry. It stays pending until each of its likes is stored or written as a dead letter.
#[derive(Debug)]
pub struct Entry {
    pub at: Position,
    pub likes: Vec<Like>,
    pub dead_letters: Vec<DeadLetter>,
    /// Encoded likes. A like that the table rejects becomes a dead letter with its original bytes.
    pub payload: Bytes,
    pub read_at: Instant,
    /// Context of the producer span, if it is sampled.
    pub producer: Option<Box<SpanContext>>,
}

impl Entry {
    /// Decodes the payload. Never fails: an undecodable entry becomes one dead letter, an invalid like becomes a dead letter
    /// and leaves the other likes of its entry unaffected.
    pub fn decode(at: Position, fields: &[(Bytes, Bytes)], read_at: Instant) -> Self {
        let mut entry = Self {
            at,
            likes: Vec::new(),
            dead_letters: Vec::new(),
            payload: Bytes::new(),
            read_at,
            producer: None,
        };
        let Some(payload) = codec::payload(fields) else {
            let detail = format!("the entry has no field '{}'", codec::FIELD);
            entry.dead_letters.push(DeadLetter::of_entry(Reason::Undecodable, detail, fields));
            return entry;
        };
        entry.payload = payload.clone();
        match codec::decode(&payload) {
            Ok(decoded) => {
                if decoded.bad > 0 {
                    let bad = codec::bad_likes(&payload).map(|BadLike { index, bytes, why }| DeadLike {
                        index,
                        why,
                        bytes: payload.get(bytes).unwrap_or_default(),
                    });
                    entry.dead_letters = DeadLetter::of_likes(Reason::InvalidLike, bad);
                }
                entry.likes = decoded.likes;
            }
            Err(error) => {
                let reason = match error {
                    DecodeError::Malformed(_) => Reason::Undecodable,
                    DecodeError::UnknownVersion(_) => Reason::UnknownVersion,
                };
                entry.dead_letters.push(DeadLetter::new(reason, error.to_string(), payload));
            }
        }
        entry
    }

    /// Creates an entry that becomes a dead letter without being decoded.
    pub fn discarded(at: Position, dead_letter: DeadLetter, read_at: Instant) -> Self {
        Self {
            at,
            likes: Vec::new(),
            dead_letters: vec![dead_letter],
            payload: Bytes::new(),
            read_at,
            producer: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use shared::wire::partition::PartitionCount;

    use super::*;

    fn decode(fields: &[(&'static str, &[u8])]) -> Entry {
        let partition = PartitionCount::new(1).unwrap().of_user(1);
        let fields = fields.iter().map(|(name, value)| (Bytes::from(*name), Bytes::copy_from_slice(value)));
        let fields: Vec<_> = fields.collect();
        let at = Position { partition, id: EntryId::default(), incarnation: Incarnation::default() };
        Entry::decode(at, &fields, Instant::now())
    }

    #[test]
    fn entry_ids_parse_and_format_as_in_redis() {
        let id: EntryId = "1700000000000-7".parse().unwrap();
        assert_eq!(id, EntryId { ms: 1_700_000_000_000, seq: 7 });
        assert_eq!(id.to_string(), "1700000000000-7");
        assert!("x-1".parse::<EntryId>().is_err());
        assert_eq!(id.after(), Some(EntryId { seq: 8, ..id }));
        assert_eq!(EntryId { ms: 1, seq: u64::MAX }.after(), Some(EntryId { ms: 2, seq: 0 }));
        assert_eq!(EntryId::MAX.after(), None);
    }

    #[test]
    fn an_undecodable_entry_becomes_a_dead_letter_with_its_bytes() {
        let garbage = decode(&[("l", b"\xc1garbage")]);
        assert_eq!(garbage.dead_letters[0].reason(), Reason::Undecodable);
        assert_eq!(garbage.dead_letters[0].payload(), &b"\xc1garbage"[..]);

        let future = decode(&[("l", &[0x92, 9, 0x93, 1, 2, 3])]);
        assert_eq!(future.dead_letters[0].reason(), Reason::UnknownVersion);

        let foreign = decode(&[("user", b"7")]);
        assert_eq!(foreign.dead_letters[0].reason(), Reason::Undecodable);
        assert!(garbage.likes.is_empty() && future.likes.is_empty() && foreign.likes.is_empty());
    }

    #[test]
    fn bad_likes_beyond_the_limit_share_the_last_dead_letter() {
        let payload: Vec<u8> = [0xdc, 0x07, 0xd1, 1].into_iter().chain([0xc0; 2_000]).collect();
        let fields = vec![(Bytes::from_static(b"l"), Bytes::from(payload))];
        let partition = PartitionCount::new(1).unwrap().of_user(1);
        let at = Position { partition, id: EntryId::default(), incarnation: Incarnation::default() };
        let dead_letters = Entry::decode(at, &fields, Instant::now()).dead_letters;
        assert_eq!(dead_letters.len(), 1_001);
        let likes: usize = dead_letters.iter().map(|dead| codec::decode(dead.payload()).unwrap().bad).sum();
        assert_eq!(likes, 2_000);
    }

    #[test]
    fn a_bad_like_becomes_a_dead_letter_and_its_neighbours_are_kept() {
        let entry = decode(&[("traceparent", b"x"), ("l", &[0x93, 1, 0x93, 1, 2, 3, 0x93, 0, 5, 6])]);
        assert_eq!(entry.likes, [Like::new(1, 2, 3).unwrap()]);
        assert_eq!(entry.dead_letters.len(), 1);
        assert_eq!(entry.dead_letters[0].reason(), Reason::InvalidLike);
        assert_eq!(entry.dead_letters[0].payload(), &[0x92, 1, 0x93, 0, 5, 6][..]);
    }
}
