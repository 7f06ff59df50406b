//! Insert predictor: predicts which rows are new, so that they can be copied directly into the table. A wrong prediction is
//! safe: the table's primary key rejects the direct copy.

use shared::wire::{like::Like, partition::mix};

/// Number of keys per bucket: a bucket fills one CPU cache line.
const ASSOCIATIVITY: usize = 16;

/// Memory for keys, four bytes each. Must be a power of two.
const RECENT_BYTES: usize = 16 << 20;

/// Maximum number of batches staged without a prediction after a wrong prediction.
const STAGED_AFTER_WRONG_MAX: u32 = 256;

/// Predicts from the keys that this consumer wrote recently: a key that is not among them is predicted to be new.
pub struct InsertPredictor {
    recent: RecentKeys,
    /// Number of batches still to be staged without a prediction.
    staged_left: u32,
    /// Number of batches to stage after the next wrong prediction.
    staged_after_wrong: u32,
}

/// Rows of a batch by prediction, both in the order of the table's primary key.
#[derive(Debug, PartialEq, Eq)]
pub struct Split {
    /// Rows predicted to be new.
    pub fresh: Vec<Like>,
    /// Rows that were written or attempted recently: usually in the table.
    pub known: Vec<Like>,
}

impl Default for InsertPredictor {
    fn default() -> Self {
        Self { recent: RecentKeys::new(RECENT_BYTES), staged_left: 0, staged_after_wrong: 1 }
    }
}

impl InsertPredictor {
    /// Returns a prediction, or `None` if recent predictions were wrong too often or no row is new. All rows are known
    /// afterwards, so a batch that is retried after a failure gets no second prediction.
    pub fn split(&mut self, rows: &[Like]) -> Option<Split> {
        let (known, fresh): (Vec<Like>, Vec<Like>) =
            rows.iter().partition(|like| self.recent.remember(**like));
        if self.staged_left > 0 {
            self.staged_left -= 1;
            return None;
        }
        (!fresh.is_empty()).then_some(Split { fresh, known })
    }

    /// Records a correct prediction.
    pub fn hit(&mut self) {
        self.staged_after_wrong = (self.staged_after_wrong / 2).max(1);
    }

    /// Records a wrong prediction, or a table that rejects the direct copy.
    pub fn miss(&mut self) {
        self.staged_left = self.staged_after_wrong;
        self.staged_after_wrong = (self.staged_after_wrong * 2).min(STAGED_AFTER_WRONG_MAX);
    }
}

/// Fingerprints of the keys written most recently. About one new key in a hundred million is mistaken for a known key.
struct RecentKeys {
    /// Newest key first; 0 marks an empty slot.
    buckets: Box<[[u32; ASSOCIATIVITY]]>,
}

impl RecentKeys {
    fn new(bytes: usize) -> Self {
        Self {
            buckets: vec![[0; ASSOCIATIVITY]; bytes / size_of::<[u32; ASSOCIATIVITY]>()].into_boxed_slice(),
        }
    }

    /// Stores the key of a like and evicts the oldest key of its bucket. Returns whether the key was already known.
    #[expect(clippy::cast_possible_truncation, reason = "each half of the hash is used separately")]
    fn remember(&mut self, like: Like) -> bool {
        let hash = mix(like.user_id().cast_unsigned() ^ mix(like.post_id().cast_unsigned()));
        let at = (hash >> 32) as usize & (self.buckets.len() - 1);
        let fingerprint = (hash as u32).max(1);
        let Some(bucket) = self.buckets.get_mut(at) else { return false };
        let known = bucket.contains(&fingerprint);
        if !known {
            bucket.copy_within(..ASSOCIATIVITY - 1, 1);
            bucket[0] = fingerprint;
        }
        known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn likes(users: std::ops::Range<i64>) -> Vec<Like> {
        users.map(|user| Like::new((user + 1).into(), 42, 0).unwrap()).collect()
    }

    #[test]
    fn rows_are_predicted_to_be_new_once() {
        let mut predictor = InsertPredictor::default();
        let first = predictor.split(&likes(0..1_000)).unwrap();
        assert_eq!((first.fresh.len(), first.known.len()), (1_000, 0));
        assert_eq!(predictor.split(&likes(0..1_000)), None, "nothing is new");
        let Split { fresh, known } = predictor.split(&likes(900..1_100)).unwrap();
        assert_eq!((fresh, known), (likes(1_000..1_100), likes(900..1_000)));
    }

    #[test]
    fn wrong_predictions_make_predictions_rarer() {
        let mut predictor = InsertPredictor::default();
        let (mut guesses, mut user) = (0, 0);
        for _ in 0..10_000 {
            user += 1;
            if predictor.split(&likes(user..user + 1)).is_some() {
                guesses += 1;
                predictor.miss();
            }
        }
        assert!((40..60).contains(&guesses), "{guesses}");
        // Correct predictions make predictions frequent again.
        for _ in 0..1_000 {
            user += 1;
            if predictor.split(&likes(user..user + 1)).is_some() {
                predictor.hit();
            }
        }
        predictor.miss();
        assert_eq!(predictor.staged_left, 1);
    }

    #[test]
    fn the_oldest_keys_are_evicted() {
        let mut recent = RecentKeys::new(64 << 10);
        let capacity = (64 << 10) / 4;
        let all = likes(0..4 * capacity);
        assert!(all.iter().all(|like| !recent.remember(*like)));
        let (old, new) = (all[0], &all[all.len() - 1_000..]);
        assert!(new.iter().all(|like| recent.remember(*like)));
        assert!(!recent.remember(old));
    }
}
