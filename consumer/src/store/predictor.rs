//! Which rows are surely new, so that they can go straight into the table: a guess that the table's key corrects.

use shared::wire::{like::Like, partition::mix};

/// How many pairs of a bucket are remembered: a line of the processor's cache.
const ASSOCIATIVITY: usize = 16;

/// Memory for pairs, four bytes each; a power of two.
const RECENT_BYTES: usize = 16 << 20;

/// After a wrong guess so many batches at most are staged before the next guess.
const STAGED_AFTER_WRONG_MAX: u32 = 256;

/// Guesses from what this consumer has written lately.
pub struct InsertPredictor {
    recent: RecentKeys,
    /// No guess is made for so many batches.
    staged_left: u32,
    /// How many batches are staged after the next wrong guess.
    staged_after_wrong: u32,
}

/// Rows of a batch, each kind in the order of the table's key.
#[derive(Debug, PartialEq, Eq)]
pub struct Split {
    /// Not written lately.
    pub fresh: Vec<Like>,
    /// Written lately, or at least tried: in the table as a rule.
    pub known: Vec<Like>,
}

impl Default for InsertPredictor {
    fn default() -> Self {
        Self { recent: RecentKeys::new(RECENT_BYTES), staged_left: 0, staged_after_wrong: 1 }
    }
}

impl InsertPredictor {
    /// A guess, unless the last ones were too often wrong or there is nothing new. From now on all rows are known: a
    /// batch that comes again after a failure is not guessed about again.
    pub fn split(&mut self, rows: &[Like]) -> Option<Split> {
        let (known, fresh): (Vec<Like>, Vec<Like>) =
            rows.iter().partition(|like| self.recent.remember(**like));
        if self.staged_left > 0 {
            self.staged_left -= 1;
            return None;
        }
        (!fresh.is_empty()).then_some(Split { fresh, known })
    }

    /// All fresh rows were new.
    pub fn hit(&mut self) {
        self.staged_after_wrong = (self.staged_after_wrong / 2).max(1);
    }

    /// One was not, or the table can't be written straight.
    pub fn miss(&mut self) {
        self.staged_left = self.staged_after_wrong;
        self.staged_after_wrong = (self.staged_after_wrong * 2).min(STAGED_AFTER_WRONG_MAX);
    }
}

/// The pairs of user and post that were remembered last, as fingerprints: one in some hundred million is taken for known
/// when it isn't.
struct RecentKeys {
    /// The newest of each comes first; nothing is 0.
    buckets: Box<[[u32; ASSOCIATIVITY]]>,
}

impl RecentKeys {
    fn new(bytes: usize) -> Self {
        Self {
            buckets: vec![[0; ASSOCIATIVITY]; bytes / size_of::<[u32; ASSOCIATIVITY]>()].into_boxed_slice(),
        }
    }

    /// Remembers the pair of a like, for which the oldest in its bucket is forgotten. Tells whether it was known.
    #[expect(clippy::cast_possible_truncation, reason = "both halves of a hash")]
    fn remember(&mut self, like: Like) -> bool {
        let hash = mix(like.user_id().cast_unsigned() ^ mix(like.post_id().cast_unsigned()));
        let (at, fingerprint) = ((hash >> 32) as usize & (self.buckets.len() - 1), (hash as u32).max(1));
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
    fn rows_are_new_once() {
        let mut predictor = InsertPredictor::default();
        let first = predictor.split(&likes(0..1_000)).unwrap();
        assert_eq!((first.fresh.len(), first.known.len()), (1_000, 0));
        assert_eq!(predictor.split(&likes(0..1_000)), None, "nothing is new");
        let Split { fresh, known } = predictor.split(&likes(900..1_100)).unwrap();
        assert_eq!((fresh, known), (likes(1_000..1_100), likes(900..1_000)));
    }

    #[test]
    fn who_is_wrong_too_often_guesses_less() {
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
    fn the_oldest_pairs_are_forgotten() {
        let mut recent = RecentKeys::new(64 << 10);
        let room = (64 << 10) / 4;
        let all = likes(0..4 * room);
        assert!(all.iter().all(|like| !recent.remember(*like)));
        let (old, new) = (all[0], &all[all.len() - 1_000..]);
        assert!(new.iter().all(|like| recent.remember(*like)));
        assert!(!recent.remember(old));
    }
}
