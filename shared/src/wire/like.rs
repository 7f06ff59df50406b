//! The like: the value that passes through the whole pipeline.

use thiserror::Error;

/// Largest `created_at` in microseconds since the Unix epoch: the end of the year 9999, the limit of RFC 3339.
pub const MAX_CREATED_AT_US: i64 = 253_402_300_799_999_999;

/// One user likes one post. Every value of this type is storable: [`Like::new`] is its only constructor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Like {
    user_id: i64,
    post_id: i64,
    created_at_us: i64,
}

/// Reason why three integers are not a like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InvalidLike {
    /// An id outside of 1 … 2^63−1, with the field's name.
    #[error("{field} must be an integer from 1 to 9223372036854775807, not {value}")]
    Id {
        /// `user_id` or `post_id`.
        field: &'static str,
        /// The invalid value.
        value: i128,
    },
    /// A time before the Unix epoch or after the year 9999.
    #[error(
        "created_at must lie between 1970-01-01 and 9999-12-31, not {0} microseconds from the Unix epoch"
    )]
    CreatedAt(i128),
}

impl Like {
    /// Validates ids from 1 to 2^63−1, and a time in microseconds since the Unix epoch from 0 to [`MAX_CREATED_AT_US`]. The
    /// parameters are wider than the fields, so that the error can show any integer of JSON or MessagePack.
    pub fn new(user_id: i128, post_id: i128, created_at_us: i128) -> Result<Self, InvalidLike> {
        Ok(Self {
            user_id: id("user_id", user_id)?,
            post_id: id("post_id", post_id)?,
            created_at_us: i64::try_from(created_at_us)
                .ok()
                .filter(|us| (0..=MAX_CREATED_AT_US).contains(us))
                .ok_or(InvalidLike::CreatedAt(created_at_us))?,
        })
    }

    /// Returns the id of the user who likes: 1 … 2^63−1.
    pub fn user_id(&self) -> i64 {
        self.user_id
    }

    /// Returns the id of the liked post: 1 … 2^63−1.
    pub fn post_id(&self) -> i64 {
        self.post_id
    }

    /// Returns the time in microseconds since the Unix epoch: 0 … [`MAX_CREATED_AT_US`].
    pub fn created_at_us(&self) -> i64 {
        self.created_at_us
    }
}

fn id(field: &'static str, value: i128) -> Result<i64, InvalidLike> {
    i64::try_from(value).ok().filter(|id| *id >= 1).ok_or(InvalidLike::Id { field, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_range_from_one_to_the_largest_bigint() {
        for good in [1, 2, i128::from(i64::MAX)] {
            assert!(Like::new(good, good, 0).is_ok(), "{good}");
        }
        for bad in [0, -1, i128::from(i64::MAX) + 1, i128::from(u64::MAX)] {
            let user = Like::new(bad, 1, 0).unwrap_err();
            assert_eq!(user, InvalidLike::Id { field: "user_id", value: bad });
            let post = Like::new(1, bad, 0).unwrap_err();
            assert_eq!(post, InvalidLike::Id { field: "post_id", value: bad });
        }
    }

    #[test]
    fn times_range_from_the_epoch_to_the_end_of_9999() {
        for good in [0, i128::from(MAX_CREATED_AT_US)] {
            assert!(Like::new(1, 1, good).is_ok(), "{good}");
        }
        for bad in [-1, i128::from(MAX_CREATED_AT_US) + 1] {
            assert_eq!(Like::new(1, 1, bad), Err(InvalidLike::CreatedAt(bad)));
        }
    }
}
