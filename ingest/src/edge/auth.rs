//! Who may write whose likes.

mod api_keys;
mod jwks;
mod jwt;

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use clap::{Args, ValueEnum};
use shared::{settings::SettingError, wire::like::Like};
use thiserror::Error;

pub use crate::edge::auth::jwks::FetchError;
use crate::edge::auth::{
    api_keys::{ApiKeys, ApiKeysArgs},
    jwt::{JwtArgs, Tokens},
};
use crate::{IngestError, http::problem::Problem};

pub(crate) const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Who may write.
#[derive(Args, Debug)]
pub(crate) struct AccessArgs {
    /// Who may write: off (everybody; for loopback or behind a gateway), jwt (bearer tokens), api-key (services), or both,
    /// as jwt,api-key
    #[arg(long, env = "INGEST_AUTH", default_value = "off", value_name = "WAYS", value_delimiter = ',')]
    ingest_auth: Vec<Way>,

    #[command(flatten)]
    jwt: JwtArgs,

    #[command(flatten)]
    api_keys: ApiKeysArgs,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Off,
    Jwt,
    ApiKey,
}

impl AccessArgs {
    fn has(&self, way: Way) -> bool {
        self.ingest_auth.contains(&way)
    }

    /// Whether anybody may write.
    pub(crate) fn is_off(&self) -> bool {
        self.has(Way::Off)
    }

    pub(crate) fn check(&self) -> Result<(), SettingError> {
        if self.has(Way::Off) && self.ingest_auth.len() > 1 {
            return Err(SettingError::new("INGEST_AUTH", "off with another way: allowed is off alone"));
        }
        self.jwt.check(self.has(Way::Jwt))?;
        self.api_keys.check(self.has(Way::ApiKey))
    }
}

/// What lets callers in.
pub(crate) struct Access {
    tokens: Option<Tokens>,
    api_keys: Option<ApiKeys>,
}

/// What callers may show.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ways {
    pub(crate) token: bool,
    pub(crate) api_key: bool,
}

/// Whose likes a caller may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writer {
    /// Those of all users.
    OfAll,
    /// Those of one user, or of none, where the token's subject is no user id.
    Of(Option<i64>),
}

/// Why a credential is not good.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum BadCredential {
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

impl Access {
    /// Everybody may write.
    pub(crate) fn open() -> Self {
        Self { tokens: None, api_keys: None }
    }

    /// Reads, or fetches, the keys.
    pub(crate) async fn new(args: &AccessArgs) -> Result<Self, IngestError> {
        let tokens = if args.has(Way::Jwt) { Some(Tokens::new(&args.jwt).await?) } else { None };
        let api_keys = if args.has(Way::ApiKey) { Some(ApiKeys::load(&args.api_keys)?) } else { None };
        Ok(Self { tokens, api_keys })
    }

    fn ways(&self) -> Ways {
        Ways { token: self.tokens.is_some(), api_key: self.api_keys.is_some() }
    }

    /// Whose likes may be written with these headers.
    pub(crate) async fn admit(&self, headers: &HeaderMap) -> Result<Writer, Problem> {
        if self.tokens.is_none() && self.api_keys.is_none() {
            return Ok(Writer::OfAll);
        }
        let admitted = if let (Some(tokens), true) =
            (&self.tokens, headers.contains_key(header::AUTHORIZATION))
        {
            match bearer(headers) {
                Some(token) => tokens.admit(token).await,
                None => Err(BadCredential::Malformed),
            }
        } else if let (Some(api_keys), true) = (&self.api_keys, headers.contains_key(API_KEY)) {
            only(headers, &API_KEY).map_or(Err(BadCredential::ApiKey), |key| api_keys.admit(key.as_bytes()))
        } else {
            return Err(Problem::NoCredential { ways: self.ways() });
        };
        admitted.map_err(|bad| Problem::InvalidCredential { bad, ways: self.ways() })
    }
}

impl Writer {
    pub(crate) fn may_write(self, like: &Like) -> bool {
        match self {
            Self::OfAll => true,
            Self::Of(user_id) => user_id == Some(like.user_id()),
        }
    }
}

/// A header that is there once. Two are one too many: somebody on the way might have looked at the other one.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

/// The token of `Authorization: Bearer <token>` (RFC 6750, section 2.1).
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = only(headers, &header::AUTHORIZATION)?;
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("Bearer").then_some(token.trim())
}
