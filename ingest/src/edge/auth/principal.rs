//! The principal of an authenticated request.

use shared::wire::like::Like;

/// An authenticated caller, and the likes that it may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Principal {
    /// May write likes of all users: a service, or any caller if authentication is off.
    Trusted,
    /// May write likes of one user, or of none if the subject of the token is not a user id.
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
