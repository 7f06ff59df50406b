//! The caller of a request once it is authenticated.

use shared::wire::like::Like;

/// Whose likes a caller may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Principal {
    /// Those of all users: a service, or any caller where authentication is off.
    Trusted,
    /// Those of one user, or of none where the token's subject is no user id.
    User(Option<i64>),
}

impl Principal {
    pub(crate) fn may_write(self, like: &Like) -> bool {
        match self {
            Self::Trusted => true,
            Self::User(user_id) => user_id == Some(like.user_id()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_writes_only_its_own_likes() {
        let like = Like::new(7, 42, 0).unwrap();
        assert!(Principal::Trusted.may_write(&like));
        assert!(Principal::User(Some(7)).may_write(&like));
        assert!(!Principal::User(Some(8)).may_write(&like));
        assert!(!Principal::User(None).may_write(&like));
    }
}
