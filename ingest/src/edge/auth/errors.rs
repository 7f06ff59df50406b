//! Errors of authentication: of a request, and at start.

use shared::{
    runtime::service::{Failure, Unreachable},
    settings::SettingError,
};
use thiserror::Error;

/// Authentication methods that the server accepts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Methods {
    pub(crate) token: bool,
    pub(crate) api_key: bool,
}

/// Error of a request without a valid credential, with the methods that would be accepted.
#[derive(Clone, Debug)]
pub(crate) enum AuthError {
    NoCredential { methods: Methods },
    InvalidCredential { error: InvalidCredential, methods: Methods },
}

/// Error of an invalid credential. Its text becomes the detail of the problem.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum InvalidCredential {
    #[error("The Authorization header must occur once, with the value Bearer <token>.")]
    Malformed,
    #[error("The token is not a JSON Web Token (JWT) with a supported algorithm.")]
    NoToken,
    #[error("The token is not signed with an accepted algorithm and key.")]
    Signature,
    #[error("The token has expired. Get a new token.")]
    Expired,
    #[error("The token is not valid yet (claim nbf).")]
    NotYetValid,
    #[error("The token's iss is not accepted.")]
    Issuer,
    #[error("The token's aud does not name this service.")]
    Audience,
    #[error("The token's {0} is missing or malformed.")]
    Claim(String),
    #[error("The API key is unknown, or the request has more than one X-Api-Key header.")]
    ApiKey,
}

/// Error of setting up authentication.
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

/// Error of fetching a key set.
#[derive(Debug, Error)]
pub(crate) enum FetchError {
    /// The server is not reachable, or its response is an error.
    #[error("request failed")]
    Http(#[from] reqwest::Error),
    /// The response is not a usable key set.
    #[error("{0}")]
    Content(String),
}
