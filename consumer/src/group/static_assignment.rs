//! Static assignment: fixed partitions per process, from `CONSUMER_PARTITIONS`.

use std::{fmt, str::FromStr};

use shared::wire::partition::{Partition, PartitionCount};
use thiserror::Error;

/// Static assignment. `0-3,8` are ranges of partitions; `2/4` is every fourth partition, starting with partition 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StaticAssignment {
    Ranges(Vec<(u16, u16)>),
    Share { index: u16, of: u16 },
}

/// Error: the text is not a static assignment.
#[derive(Debug, Error)]
#[error("expected partitions from 0 to {max}, such as 0-3,8, or a share counted from 0, such as 2/4", max = PartitionCount::MAX - 1)]
pub struct InvalidStaticAssignment;

impl StaticAssignment {
    /// Returns the largest partition number in the ranges; `None` for a share.
    pub fn largest(&self) -> Option<u16> {
        match self {
            Self::Ranges(ranges) => ranges.iter().map(|(_, last)| *last).max(),
            Self::Share { .. } => None,
        }
    }

    /// Returns the assigned partitions that exist, in order.
    pub fn of(&self, partitions: PartitionCount) -> Vec<Partition> {
        let is_assigned = |partition: &Partition| match self {
            Self::Ranges(ranges) => {
                ranges.iter().any(|(first, last)| (first..=last).contains(&&partition.number()))
            }
            Self::Share { index, of } => partition.number() % of == *index,
        };
        partitions.partitions().filter(is_assigned).collect()
    }
}

impl FromStr for StaticAssignment {
    type Err = InvalidStaticAssignment;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |text: &str| {
            let number: Option<u16> = text.parse().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
            number.filter(|number| *number < PartitionCount::MAX).ok_or(InvalidStaticAssignment)
        };
        if let Some((index, of)) = text.split_once('/') {
            let index = number(index)?;
            let of = number(of)?;
            return if index < of { Ok(Self::Share { index, of }) } else { Err(InvalidStaticAssignment) };
        }
        let range = |text: &str| {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let first = number(first)?;
            let last = number(last)?;
            if first <= last { Ok((first, last)) } else { Err(InvalidStaticAssignment) }
        };
        text.split(',').map(range).collect::<Result<_, _>>().map(Self::Ranges)
    }
}

impl fmt::Display for StaticAssignment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ranges(ranges) => {
                for (i, (first, last)) in ranges.iter().enumerate() {
                    let comma = if i == 0 { "" } else { "," };
                    if first == last {
                        write!(f, "{comma}{first}")?;
                    } else {
                        write!(f, "{comma}{first}-{last}")?;
                    }
                }
                Ok(())
            }
            Self::Share { index, of } => write!(f, "{index}/{of}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, partitions: u16) -> Vec<u16> {
        let assignment: StaticAssignment = text.parse().unwrap();
        assert_eq!(assignment.to_string(), text);
        assignment.of(PartitionCount::new(partitions).unwrap()).iter().map(|p| p.number()).collect()
    }

    #[test]
    fn ranges_and_shares_are_parsed() {
        assert_eq!(of("0-3,8", 16), [0, 1, 2, 3, 8]);
        assert_eq!(of("7", 16), [7]);
        assert_eq!(of("2/4", 16), [2, 6, 10, 14]);
        assert_eq!(of("20-30", 16), [0; 0]);
        for bad in ["", "3-1", "x", "1,", "4/4", "1/0", "-1", "0-1024", "+1", "1-2-3", "1/2/3"] {
            assert!(bad.parse::<StaticAssignment>().is_err(), "{bad}");
        }
    }

    #[test]
    fn all_shares_together_cover_every_partition_once() {
        let mut all: Vec<u16> = (0..3).flat_map(|index| of(&format!("{index}/3"), 16)).collect();
        all.sort_unstable();
        assert_eq!(all, (0..16).collect::<Vec<_>>());
    }
}
