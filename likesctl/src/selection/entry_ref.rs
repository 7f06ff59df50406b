//! References to entries on the command line.

use std::{fmt, str::FromStr};

use consumer::entry::{EntryId, Position};
use serde::{Serialize, Serializer};

/// Reference to an entry: `7/1700000000000-0`, or `likes:{7}/1700000000000-0` as in a dead letter's origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EntryRef {
    pub(crate) partition: u16,
    pub(crate) id: EntryId,
}

#[derive(Debug, thiserror::Error)]
#[error("expected PARTITION/ID, such as 7/1700000000000-0")]
pub(crate) struct InvalidEntryRef;

impl FromStr for EntryRef {
    type Err = InvalidEntryRef;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (partition, id) = text.rsplit_once('/').ok_or(InvalidEntryRef)?;
        let partition = match partition.rsplit_once('{') {
            Some((_, tagged)) => tagged.strip_suffix('}').ok_or(InvalidEntryRef)?,
            None => partition,
        };
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b'-');
        if !digits(id) || !digits(partition) {
            return Err(InvalidEntryRef);
        }
        let partition = partition.parse().map_err(|_| InvalidEntryRef)?;
        Ok(Self { partition, id: id.parse().map_err(|_| InvalidEntryRef)? })
    }
}

impl fmt::Display for EntryRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.partition, self.id)
    }
}

impl Serialize for EntryRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl From<Position> for EntryRef {
    fn from(at: Position) -> Self {
        Self { partition: at.partition.number(), id: at.id }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_references_have_a_partition_and_an_id() {
        let entry: EntryRef = "7/1700000000000-3".parse().unwrap();
        assert_eq!(entry, EntryRef { partition: 7, id: EntryId { ms: 1_700_000_000_000, seq: 3 } });
        assert_eq!("likes:{7}/1700000000000-3".parse::<EntryRef>().unwrap(), entry);
        assert_eq!(entry.to_string(), "7/1700000000000-3");
        for bad in
            ["", "7", "7/", "/1-0", "x/1-0", "7/x", "likes:{7/1-0", "7/1-0-0", "7/+1", "7/-1", "-1/1-0"]
        {
            assert!(bad.parse::<EntryRef>().is_err(), "{bad}");
        }
    }
}
