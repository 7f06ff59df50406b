//! The partition of a like, and the names of keys in Redis.

use std::{fmt, num::NonZeroU16, str::FromStr};

use thiserror::Error;

/// A partition, which is one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Partition(u16);

impl Partition {
    /// Returns its number, from 0.
    pub fn number(self) -> u16 {
        self.0
    }

    /// Returns its number as an index of a list with one element per partition.
    pub fn index(self) -> usize {
        self.0.into()
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Number of partitions: 1 … [`PartitionCount::MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PartitionCount(NonZeroU16);

/// The number of partitions is out of range.
#[derive(Debug, Error)]
#[error("expected an integer from 1 to {max}", max = PartitionCount::MAX)]
pub struct InvalidPartitionCount;

impl PartitionCount {
    /// Maximum number of partitions.
    pub const MAX: u16 = 1024;

    /// Count that is recorded where no program is configured with one.
    pub const DEFAULT: Self = Self(NonZeroU16::new(16).unwrap());

    /// # Errors
    /// When it is 0 or more than [`PartitionCount::MAX`].
    pub fn new(count: u16) -> Result<Self, InvalidPartitionCount> {
        NonZeroU16::new(count).filter(|count| count.get() <= Self::MAX).map(Self).ok_or(InvalidPartitionCount)
    }

    /// Returns the count as a number.
    pub fn get(self) -> u16 {
        self.0.get()
    }

    /// Returns all partitions in order.
    pub fn partitions(self) -> impl Iterator<Item = Partition> {
        (0..self.get()).map(Partition)
    }

    /// Returns the partition of all likes of a user: [`mix`] of the id, modulo the count. The function never changes, and is
    /// simple to implement in any language; `shared/vectors/partition.json` has test vectors.
    ///
    /// The key is the user and not the post: duplicates of one (user, post) are in the same partition, while the likes of a
    /// celebrity's post spread over all partitions.
    pub fn of_user(self, user_id: i64) -> Partition {
        #[expect(clippy::cast_possible_truncation, reason = "a remainder of a u16 fits into one")]
        Partition((mix(user_id.cast_unsigned()) % u64::from(self.get())) as u16)
    }
}

/// The output function of SplitMix64: a bijection that scatters neighbouring numbers.
///
/// Source: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
pub fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl FromStr for PartitionCount {
    type Err = InvalidPartitionCount;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map_err(|_| InvalidPartitionCount).and_then(Self::new)
    }
}

impl fmt::Display for PartitionCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Prefix of all keys in Redis, `likes` by default: `LIKES_STREAM`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPrefix(String);

/// The prefix is empty, too long, or has a character that key names cannot contain.
#[derive(Debug, Error)]
#[error("expected 1 to 128 of the characters a-z A-Z 0-9 . _ : -")]
pub struct InvalidKeyPrefix;

impl FromStr for KeyPrefix {
    type Err = InvalidKeyPrefix;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._:-".contains(&b);
        if (1..=128).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidKeyPrefix)
        }
    }
}

impl fmt::Display for KeyPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl KeyPrefix {
    /// Returns the stream of a partition, `likes:{7}`. The braces are a hash tag, so all keys of a partition share a slot in
    /// Redis Cluster.
    pub fn stream(&self, partition: Partition) -> String {
        format!("{self}:{{{partition}}}")
    }

    /// Returns the template of the streams of all partitions, `likes:{partition}`.
    pub fn stream_template(&self) -> String {
        format!("{self}:{{partition}}")
    }

    /// Returns the dead-letter stream of a partition, `likes:{7}:dead`.
    pub fn dead_letters(&self, partition: Partition) -> String {
        format!("{self}:{{{partition}}}:dead")
    }

    /// Returns the hash of quarantined entries of a partition, `likes:{7}:quarantine:likes-writers`: entry id → tries that
    /// have begun and not ended.
    pub fn quarantine(&self, partition: Partition, group: &str) -> String {
        format!("{self}:{{{partition}}}:quarantine:{group}")
    }

    /// Returns the hash of the members of a consumer group, `likes:members:likes-writers`: consumer → last heartbeat.
    pub fn members(&self, group: &str) -> String {
        format!("{self}:members:{group}")
    }

    /// Returns the hash of a group's last commits, `likes:commits:likes-writers`: partition → Unix milliseconds.
    pub fn commits(&self, group: &str) -> String {
        format!("{self}:commits:{group}")
    }

    /// Returns the hash of the database that a group writes to, `likes:database:likes-writers`.
    pub fn database(&self, group: &str) -> String {
        format!("{self}:database:{group}")
    }

    /// Returns the set of a group's paused partitions, `likes:paused:likes-writers`: their numbers, or `all`.
    pub fn paused(&self, group: &str) -> String {
        format!("{self}:paused:{group}")
    }

    /// Returns the audit stream of changes by `likesctl`, `likes:audit`.
    pub fn audit(&self) -> String {
        format!("{self}:audit")
    }

    /// Returns the hash of cluster settings, `likes:settings`.
    pub fn settings(&self) -> String {
        format!("{self}:settings")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Vector {
        user_id: String,
        partitions: u16,
        partition: u16,
    }

    /// `vectors/make.py` generates the vectors, independently of this code.
    #[test]
    fn partitions_match_the_vectors_of_another_implementation() {
        let vectors: Vec<Vector> =
            serde_json::from_str(include_str!("../../vectors/partition.json")).unwrap();
        assert!(vectors.len() >= 50);
        for Vector { user_id, partitions, partition } in vectors {
            let count = PartitionCount::new(partitions).unwrap();
            assert_eq!(count.of_user(user_id.parse().unwrap()).number(), partition, "{user_id}");
        }
    }

    #[test]
    fn consecutive_users_spread_evenly() {
        let count = PartitionCount::new(16).unwrap();
        let mut likes = [0_u32; 16];
        for user in 1..=160_000 {
            likes[count.of_user(user).index()] += 1;
        }
        assert!(likes.iter().all(|n| (9_500..10_500).contains(n)), "{likes:?}");
    }

    #[test]
    fn counts_and_prefixes_have_limits() {
        for bad in ["0", "1025", "-1", "x", ""] {
            assert!(bad.parse::<PartitionCount>().is_err(), "{bad}");
        }
        for bad in ["", "a{b", "a}b", "a b", &"a".repeat(129)] {
            assert!(bad.parse::<KeyPrefix>().is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_of_a_partition_share_its_hash_tag() {
        let prefix: KeyPrefix = "likes".parse().unwrap();
        let seven = PartitionCount::new(8).unwrap().partitions().last().unwrap();
        assert_eq!(prefix.stream(seven), "likes:{7}");
        assert_eq!(prefix.dead_letters(seven), "likes:{7}:dead");
        assert_eq!(prefix.quarantine(seven, "g"), "likes:{7}:quarantine:g");
    }

    proptest! {
        #[test]
        fn every_user_has_a_partition(user_id in 1..=i64::MAX, count in 1..=PartitionCount::MAX) {
            let count = PartitionCount::new(count).unwrap();
            prop_assert!(count.of_user(user_id).number() < count.get());
        }
    }
}
