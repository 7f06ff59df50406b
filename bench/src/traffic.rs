//! Deterministic likes, identical in every run.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use shared::wire::{
    codec,
    like::Like,
    partition::{Partition, PartitionCount, mix},
};

/// Prime number of user ids. The user of a like is its index times a factor, modulo the prime, so only duplicates have
/// the same user.
const USERS: u64 = 1_099_511_627_689;
const USER_FACTOR: u64 = 190_359_128_657;

/// Number of recent posts, and likes between one new post and the next.
const RECENT_POSTS: u64 = 100_000;
const LIKES_PER_POST: u64 = 200;

/// Likes of a packed entry, as ingest groups them under high load on 16 partitions.
pub(crate) const PACKED: usize = 32;

/// Sequence of likes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Traffic {
    /// Index of the first like. Earlier likes were sent before.
    pub(crate) first: u64,
    pub(crate) likes: u64,
    /// Percentage of likes that repeat an earlier one of this sequence.
    pub(crate) duplicate_percent: u64,
    pub(crate) posts: Posts,
}

/// Distribution of the liked posts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Posts {
    /// Recent posts, newer ones more often: half of the likes are for the newest 300 of 100,000 posts, and a new post
    /// appears every 200 likes.
    Recent,
    /// A single post.
    One,
}

impl Traffic {
    /// Likes for recent posts without earlier ones and without duplicates.
    pub(crate) fn new(likes: u64) -> Self {
        Self { first: 0, likes, duplicate_percent: 0, posts: Posts::Recent }
    }

    pub(crate) fn likes(self) -> Vec<Like> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        let now = i128::try_from(now).unwrap_or_default();
        let likes = self.first..self.first + self.likes;
        likes.filter_map(|index| self.like(self.first_of_pair(index), now).ok()).collect()
    }

    /// Likes without the duplicates.
    pub(crate) fn distinct_likes(self) -> Vec<Like> {
        let likes = (self.first..).zip(self.likes());
        likes.filter(|(index, _)| self.first_of_pair(*index) == *index).map(|(_, like)| like).collect()
    }

    /// Index of the first like with the same pair: the like itself, unless it is a duplicate. At 100 % all likes
    /// duplicate likes of an earlier sequence.
    fn first_of_pair(self, mut index: u64) -> u64 {
        if self.duplicate_percent == 100 {
            return index - self.first;
        }
        while index > self.first && mix(index) % 100 < self.duplicate_percent {
            index = self.first + mix(!index) % (index - self.first);
        }
        index
    }

    fn like(self, index: u64, at_us: i128) -> Result<Like, shared::wire::like::InvalidLike> {
        let user = 1 + index.wrapping_mul(USER_FACTOR) % USERS;
        let post = match self.posts {
            Posts::Recent => {
                let uniform = mix(index ^ (1 << 63)) as f64 / u64::MAX as f64;
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to 100,000")]
                let age = (RECENT_POSTS as f64).powf(uniform) as u64;
                RECENT_POSTS + 1 + index / LIKES_PER_POST - age
            }
            Posts::One => 1,
        };
        Like::new(user.into(), post.into(), at_us)
    }
}

/// SQL query that generates the rows of a range of likes for [`Posts::Recent`]. The post is drawn by the random
/// generator of Postgres.
pub(crate) fn rows_in_sql(from: u64, to: u64) -> String {
    format!(
        "SELECT 1 + (i * {USER_FACTOR}) % {USERS},
                {RECENT_POSTS} + 1 + i / {LIKES_PER_POST} - floor(power({RECENT_POSTS}.0, random()))::bigint,
                now()
         FROM generate_series({from}::bigint, {to} - 1) AS i"
    )
}

/// Groups likes into payloads of entries, as ingest does.
pub(crate) fn entries(likes: &[Like], per_entry: usize) -> Vec<(Partition, Bytes)> {
    let partitions = PartitionCount::DEFAULT;
    let mut groups: Vec<Vec<Like>> = vec![Vec::new(); usize::from(partitions.get())];
    let mut entries = Vec::with_capacity(likes.len() / per_entry + groups.len());
    for like in likes {
        let partition = partitions.of_user(like.user_id());
        let Some(group) = groups.get_mut(partition.index()) else { continue };
        group.push(*like);
        if group.len() == per_entry {
            entries.push((partition, codec::encode(group).into()));
            group.clear();
        }
    }
    let rest = partitions.partitions().zip(groups).filter(|(_, group)| !group.is_empty());
    entries.extend(rest.map(|(partition, group)| (partition, codec::encode(&group).into())));
    entries
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn pairs(traffic: Traffic) -> HashSet<(i64, i64)> {
        traffic.likes().iter().map(|like| (like.user_id(), like.post_id())).collect()
    }

    #[test]
    fn likes_repeat_in_the_requested_proportion() {
        for duplicate_percent in [0, 5, 50] {
            let traffic = Traffic { duplicate_percent, first: 1_000_000, ..Traffic::new(20_000) };
            assert_eq!(traffic.likes().len(), 20_000);
            let distinct = traffic.distinct_likes().len() as u64;
            assert_eq!(pairs(traffic).len() as u64, distinct);
            let duplicates = (20_000 - distinct) * 100 / 20_000;
            assert!(duplicates.abs_diff(duplicate_percent) <= 1, "{duplicates} for {duplicate_percent}");
        }
        let before = Traffic::new(1_000);
        let all_again = Traffic { first: 1_000, duplicate_percent: 100, ..before };
        assert_eq!(pairs(all_again), pairs(before));
        assert!(all_again.distinct_likes().is_empty());
    }

    #[test]
    fn entries_contain_every_like() {
        let likes = Traffic::new(1_000).likes();
        let entries = entries(&likes, 7);
        let found: usize =
            entries.iter().map(|(_, payload)| codec::decode(payload).unwrap().likes.len()).sum();
        assert_eq!(found, 1_000);
    }
}
