//! Errors of authentication, of a request and at start.

use shared::{
    runtime::service::{Failure, Unreachable},
    settings::SettingError,
};
use thiserror::Error;

/// The authentication methods that a caller can choose from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Methods {
    pub(crate) token: bool,
    pub(crate) api_key: bool,
}

/// A request without a good credential, with the methods that would be accepted.
#[derive(Clone, Debug)]
pub(crate) enum AuthError {
    NoCredential { methods: Methods },
    InvalidCredential { error: InvalidCredential, methods: Methods },
}

/// Why a credential is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum InvalidCredential {
    #[error("The header Authorization is not Bearer and a token, once.")]
    Malformed,
    #[error("This is not a JSON Web Token with an algorithm that is known here.")]
    NoToken,
    #[error("The token is not signed with an algorithm and a key that are accepted here.")]
    Signature,
    #[error("The token has expired: get a new one.")]
    Expired,
    #[error("The token is not valid yet.")]
    NotYetValid,
    #[error("The token's iss is not one that is accepted here.")]
    Issuer,
    #[error("The token's aud does not name this service.")]
    Audience,
    #[error("The token has no usable {0}.")]
    Claim(String),
    #[error("The API key is not known here, or there is more than one header X-Api-Key.")]
    ApiKey,
}

/// Why authentication could not be set up.
#[derive(Debug, Error)]
pub(crate) enum SetupError {
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// The key set could not be fetched in time.
    #[error(transparent)]
    Keys(#[from] Unreachable<FetchError>),
}

impl Failure for SetupError {
    fn is_over_a_setting(&self) -> bool {
        matches!(self, Self::Setting(_))
    }
}

/// Why a key set could not be fetched.
#[derive(Debug, Error)]
pub(crate) enum FetchError {
    /// The server can't be reached, or answered with an error.
    #[error("it can't be fetched")]
    Http(#[from] reqwest::Error),
    /// The answer is not a usable key set.
    #[error("{0}")]
    Content(String),
}
