//! Authentication and authorisation: the principal of a request, and the likes that it may write.
//!
//! Purpose: read the credential of a request with the methods of `INGEST_AUTH`, and return the principal. `jwt` verifies
//! tokens with the keys of `key_source`; `api_keys` compares hashes. May depend on `edge::hot_reload` and `shared`. Must
//! not know HTTP responses: `http::problem` turns the errors of this module into problems.

mod api_keys;
mod errors;
mod jwks;
mod jwt;
mod key_set;
mod key_source;
mod principal;
mod shared_secret;

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use clap::{Args, ValueEnum};
use shared::{runtime::reload::ReloadRequests, settings::SettingError};

use self::{
    api_keys::{ApiKeys, ApiKeysArgs},
    jwt::{JwtArgs, TokenVerifier},
};
pub(crate) use self::{
    errors::{AuthError, InvalidCredential, Methods, SetupError},
    principal::Principal,
};

pub(crate) const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Settings of authentication.
#[derive(Args, Debug)]
pub(crate) struct AuthArgs {
    /// Authentication methods: off, jwt, api-key, or jwt,api-key
    ///
    /// off: no authentication, only for loopback or behind a gateway. jwt: bearer tokens. api-key: keys of services.
    #[arg(long, env = "INGEST_AUTH", default_value = "off", value_name = "METHODS", value_delimiter = ',')]
    ingest_auth: Vec<Method>,

    #[command(flatten)]
    jwt: JwtArgs,

    #[command(flatten)]
    api_keys: ApiKeysArgs,
}

/// An authentication method.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    Off,
    Jwt,
    ApiKey,
}

impl AuthArgs {
    fn has(&self, method: Method) -> bool {
        self.ingest_auth.contains(&method)
    }

    /// Returns whether authentication is off, so that every client may write any like.
    pub(crate) fn is_off(&self) -> bool {
        self.has(Method::Off)
    }

    pub(crate) fn check(&self) -> Result<(), SettingError> {
        if self.has(Method::Off) && self.ingest_auth.len() > 1 {
            return Err(SettingError::new(
                "INGEST_AUTH",
                "off cannot be combined with other methods; expected off, or one or both of jwt and api-key",
            ));
        }
        self.jwt.check(self.has(Method::Jwt))?;
        self.api_keys.check(self.has(Method::ApiKey))
    }
}

/// Authenticates requests with the configured methods.
pub(crate) struct Authenticator {
    tokens: Option<TokenVerifier>,
    api_keys: Option<ApiKeys>,
}

impl Authenticator {
    /// Accepts every request.
    pub(crate) fn off() -> Self {
        Self { tokens: None, api_keys: None }
    }

    /// Reads the keys from files, or fetches the key set.
    pub(crate) async fn new(args: &AuthArgs, reload: &ReloadRequests) -> Result<Self, SetupError> {
        let tokens =
            if args.has(Method::Jwt) { Some(TokenVerifier::new(&args.jwt, reload).await?) } else { None };
        let api_keys =
            if args.has(Method::ApiKey) { Some(ApiKeys::load(&args.api_keys, reload)?) } else { None };
        Ok(Self { tokens, api_keys })
    }

    fn methods(&self) -> Methods {
        Methods { token: self.tokens.is_some(), api_key: self.api_keys.is_some() }
    }

    /// Returns the principal of the credential in the headers.
    pub(crate) async fn authenticate(&self, headers: &HeaderMap) -> Result<Principal, AuthError> {
        let verified = match (&self.tokens, &self.api_keys) {
            (None, None) => return Ok(Principal::Trusted),
            (Some(tokens), _) if headers.contains_key(header::AUTHORIZATION) => match bearer(headers) {
                Some(token) => tokens.verify(token).await,
                None => Err(InvalidCredential::Malformed),
            },
            (_, Some(api_keys)) if headers.contains_key(API_KEY) => single(headers, &API_KEY)
                .map_or(Err(InvalidCredential::ApiKey), |key| api_keys.verify(key.as_bytes())),
            _ => return Err(AuthError::NoCredential { methods: self.methods() }),
        };
        verified.map_err(|error| AuthError::InvalidCredential { error, methods: self.methods() })
    }
}

/// Returns the value of a header that occurs exactly once. With two, a proxy might have checked the other one.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

/// Returns the token of `Authorization: Bearer <token>` (RFC 6750, section 2.1).
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = single(headers, &header::AUTHORIZATION)?;
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("Bearer").then_some(token.trim())
}
