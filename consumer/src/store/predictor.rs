//! The insert predictor: guesses which rows are new, so that they can be copied directly into the table. The table's key
//! corrects a wrong guess.

use shared::wire::{like::Like, partition::mix};

/// Number of keys in a bucket: one line of the processor's cache.
const ASSOCIATIVITY: usize = 16;

/// Memory for keys, four bytes each; a power of two.
const RECENT_BYTES: usize = 16 << 20;

/// Most batches that are staged after a wrong guess before the next guess.
const STAGED_AFTER_WRONG_MAX: u32 = 256;

/// Predicts from the keys that this consumer has written lately.
pub struct InsertPredictor {
    recent: RecentKeys,
    /// Number of batches without a prediction that are left.
    staged_left: u32,
    /// Number of batches that are staged after the next wrong guess.
    staged_after_wrong: u32,
}

/// The rows of a batch by prediction, each kind in the order of the table's key.
#[derive(Debug, PartialEq, Eq)]
pub struct Split {
    /// Rows that were not written lately.
    pub fresh: Vec<Like>,
    /// Rows that were written lately, or at least tried: in the table as a rule.
    pub known: Vec<Like>,
}

impl Default for InsertPredictor {
    fn default() -> Self {
        Self { recent: RecentKeys::new(RECENT_BYTES), staged_left: 0, staged_after_wrong: 1 }
    }
}

impl InsertPredictor {
    /// Returns a prediction, unless the last ones were too often wrong or no row is new. From now on all rows are known: a
    /// batch that is written again after a failure gets no second prediction.
    pub fn split(&mut self, rows: &[Like]) -> Option<Split> {
        let (known, fresh): (Vec<Like>, Vec<Like>) =
            rows.iter().partition(|like| self.recent.remember(**like));
        if self.staged_left > 0 {
            self.staged_left -= 1;
            return None;
        }
        (!fresh.is_empty()).then_some(Split { fresh, known })
    }

    /// Records that all fresh rows were new.
    pub fn hit(&mut self) {
        self.staged_after_wrong = (self.staged_after_wrong / 2).max(1);
    }

    /// Records that a row was not new, or that the table accepts no direct copy.
    pub fn miss(&mut self) {
        self.staged_left = self.staged_after_wrong;
        self.staged_after_wrong = (self.staged_after_wrong * 2).min(STAGED_AFTER_WRONG_MAX);
    }
}

/// The keys of the rows that were written last, as fingerprints: one key in some hundred million is mistaken for a known
/// one.
struct RecentKeys {
    /// The newest key of each comes first; 0 is empty.
    buckets: Box<[[u32; ASSOCIATIVITY]]>,
}

impl RecentKeys {
    fn new(bytes: usize) -> Self {
        Self {
            buckets: vec![[0; ASSOCIATIVITY]; bytes / size_of::<[u32; ASSOCIATIVITY]>()].into_boxed_slice(),
        }
    }

    /// Remembers the key of a like in place of the oldest one in its bucket. Returns whether it was known.
    #[expect(clippy::cast_possible_truncation, reason = "both halves of a hash")]
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
        // It comes back once the table has changed its mind.
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
    fn the_oldest_keys_are_forgotten() {
        let mut recent = RecentKeys::new(64 << 10);
        let capacity = (64 << 10) / 4;
        let all = likes(0..4 * capacity);
        assert!(all.iter().all(|like| !recent.remember(*like)));
        let (old, new) = (all[0], &all[all.len() - 1_000..]);
        assert!(new.iter().all(|like| recent.remember(*like)));
        assert!(!recent.remember(old));
    }
}
