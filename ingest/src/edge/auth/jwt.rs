//! Bearer tokens: JSON Web Tokens (RFC 7519) signed by somebody whose keys we know.

use std::{path::PathBuf, time::Duration};

use clap::{Args, builder::NonEmptyStringValueParser};
use jsonwebtoken::{Algorithm, Validation, decode, decode_header, errors::ErrorKind};
use serde::Deserialize;
use shared::settings::{SettingError, args::duration};

use crate::IngestError;
use crate::edge::auth::{
    BadCredential, Writer,
    jwks::{KeySource, is_hmac, is_url},
};

/// No token that is meant seriously is longer.
const MAX_TOKEN_BYTES: usize = 8 << 10;

/// Clocks that are further apart should be mended.
const MAX_LEEWAY: Duration = Duration::from_mins(10);

#[derive(Args, Debug)]
#[expect(clippy::struct_field_names, reason = "fields are named as their settings are")]
pub(super) struct JwtArgs {
    /// For jwt: the file with the key that tokens are signed with: a public one as PEM, or the secret where the algorithm is
    /// HS256, HS384 or HS512. It is read again when it changes
    #[arg(long, env = "INGEST_JWT_KEY_FILE", value_name = "FILE")]
    pub(super) ingest_jwt_key_file: Option<PathBuf>,

    /// For jwt, in place of one key: a JSON Web Key Set, as an https URL or a file. It is read again every
    /// INGEST_JWT_JWKS_REFRESH, and when a token names a key that it doesn't have
    #[arg(long, env = "INGEST_JWT_JWKS", value_name = "URL|FILE")]
    pub(super) ingest_jwt_jwks: Option<String>,

    /// A PEM file with the authorities that the certificate of that URL may be from, in place of the system's
    #[arg(long, env = "INGEST_JWT_JWKS_CA", value_name = "FILE")]
    pub(super) ingest_jwt_jwks_ca: Option<PathBuf>,

    /// How often that URL is asked
    #[arg(long, env = "INGEST_JWT_JWKS_REFRESH", default_value = "5m", value_name = "DURATION",
          value_parser = shared::settings::args::positive_duration)]
    pub(super) ingest_jwt_jwks_refresh: Duration,

    /// The algorithms that tokens may be signed with, and no others
    #[arg(long, env = "INGEST_JWT_ALGORITHMS", default_value = "RS256", value_name = "NAMES", value_delimiter = ',',
          value_parser = algorithm)]
    pub(super) ingest_jwt_algorithms: Vec<Algorithm>,

    /// For jwt: what the iss of a token must be
    #[arg(long, env = "INGEST_JWT_ISSUER", value_name = "ISSUER",
          value_parser = NonEmptyStringValueParser::new())]
    ingest_jwt_issuer: Option<String>,

    /// For jwt: what the aud of a token must name
    #[arg(long, env = "INGEST_JWT_AUDIENCE", value_name = "AUDIENCE",
          value_parser = NonEmptyStringValueParser::new())]
    ingest_jwt_audience: Option<String>,

    /// How far the clocks of those who make tokens and ours may be apart
    #[arg(long, env = "INGEST_JWT_LEEWAY", default_value = "30s", value_name = "DURATION", value_parser = leeway)]
    ingest_jwt_leeway: Duration,

    /// The scope with which a token may write likes of all users; without it only those of its sub
    #[arg(long, env = "INGEST_JWT_SERVICE_SCOPE", default_value = "likes:write-all", value_name = "SCOPE",
          value_parser = scope)]
    ingest_jwt_service_scope: String,
}

#[derive(Debug, thiserror::Error)]
#[error("allowed are RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA, HS256, HS384, HS512")]
struct UnknownAlgorithm;

#[derive(Debug, thiserror::Error)]
#[error("allowed is a time like 30s, up to 10 minutes")]
struct NotALeeway;

fn leeway(text: &str) -> Result<Duration, NotALeeway> {
    duration(text).ok().filter(|leeway| *leeway <= MAX_LEEWAY).ok_or(NotALeeway)
}

#[derive(Debug, thiserror::Error)]
#[error("allowed is one scope, a word without spaces")]
struct NotAScope;

/// An empty one would be had by whoever has none.
fn scope(text: &str) -> Result<String, NotAScope> {
    let is_one = !text.is_empty() && !text.contains(char::is_whitespace);
    if is_one { Ok(text.to_owned()) } else { Err(NotAScope) }
}

fn algorithm(name: &str) -> Result<Algorithm, UnknownAlgorithm> {
    name.parse().map_err(|_| UnknownAlgorithm)
}

impl JwtArgs {
    pub(super) fn check(&self, wanted: bool) -> Result<(), SettingError> {
        let given = [
            ("INGEST_JWT_KEY_FILE", self.ingest_jwt_key_file.is_some()),
            ("INGEST_JWT_JWKS", self.ingest_jwt_jwks.is_some()),
            ("INGEST_JWT_JWKS_CA", self.ingest_jwt_jwks_ca.is_some()),
            ("INGEST_JWT_ISSUER", self.ingest_jwt_issuer.is_some()),
            ("INGEST_JWT_AUDIENCE", self.ingest_jwt_audience.is_some()),
        ];
        if !wanted {
            return given.iter().find(|(_, given)| *given).map_or(Ok(()), |(setting, _)| {
                Err(SettingError::new(*setting, "is set, and INGEST_AUTH has no jwt"))
            });
        }
        if self.ingest_jwt_key_file.is_some() == self.ingest_jwt_jwks.is_some() {
            return Err(SettingError::new(
                "INGEST_JWT_KEY_FILE",
                "INGEST_AUTH has jwt: set either this or INGEST_JWT_JWKS",
            ));
        }
        let is_url = self.ingest_jwt_jwks.as_ref().is_some_and(|set| is_url(set));
        if self.ingest_jwt_jwks_ca.is_some() && !is_url {
            let problem = "is not heeded: allowed is an INGEST_JWT_JWKS that is an https URL";
            return Err(SettingError::new("INGEST_JWT_JWKS_CA", problem));
        }
        for (setting, given) in &given[3..] {
            if !given {
                return Err(SettingError::new(*setting, "is missing: INGEST_AUTH has jwt"));
            }
        }
        let first = self.ingest_jwt_algorithms.first().map(|algorithm| algorithm.family());
        let one_family = self.ingest_jwt_algorithms.iter().all(|other| Some(other.family()) == first);
        if self.ingest_jwt_key_file.is_some() && !one_family {
            let problem = "one key can't be for all of these: allowed are algorithms of one family";
            return Err(SettingError::new("INGEST_JWT_ALGORITHMS", problem));
        }
        if self.ingest_jwt_jwks.is_some() && self.ingest_jwt_algorithms.iter().any(|a| is_hmac(*a)) {
            let problem = "HS256, HS384 and HS512 need INGEST_JWT_KEY_FILE: a key set is public";
            return Err(SettingError::new("INGEST_JWT_ALGORITHMS", problem));
        }
        Ok(())
    }
}

/// Says whose likes may be written with a token.
pub(super) struct Tokens {
    keys: KeySource,
    /// One for each algorithm that is accepted.
    validations: Vec<(Algorithm, Validation)>,
    service_scope: String,
}

#[derive(Deserialize)]
struct Claims {
    sub: Option<String>,
    /// RFC 9068, section 2.2.3.
    scope: Option<Scopes>,
    /// What others call it.
    scp: Option<Scopes>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Scopes {
    SpaceSeparated(String),
    List(Vec<String>),
}

impl Scopes {
    fn has(&self, wanted: &str) -> bool {
        match self {
            Self::SpaceSeparated(scopes) => scopes.split(' ').any(|scope| scope == wanted),
            Self::List(scopes) => scopes.iter().any(|scope| scope == wanted),
        }
    }
}

impl Tokens {
    pub(super) async fn new(args: &JwtArgs) -> Result<Self, IngestError> {
        let validation = |algorithm: &Algorithm| {
            let mut validation = Validation::new(*algorithm);
            validation.leeway =
                args.ingest_jwt_leeway.as_secs() + u64::from(args.ingest_jwt_leeway.subsec_nanos() > 0);
            validation.validate_nbf = true;
            validation.set_required_spec_claims(&["exp", "iss", "aud"]);
            // One that is not set is none that a token could have: `check` has seen to it that both are.
            validation.set_issuer(args.ingest_jwt_issuer.as_slice());
            validation.set_audience(args.ingest_jwt_audience.as_slice());
            (*algorithm, validation)
        };
        Ok(Self {
            keys: KeySource::new(args).await?,
            validations: args.ingest_jwt_algorithms.iter().map(validation).collect(),
            service_scope: args.ingest_jwt_service_scope.clone(),
        })
    }

    pub(super) async fn admit(&self, token: &str) -> Result<Writer, BadCredential> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(BadCredential::NoToken);
        }
        let header = decode_header(token).map_err(|error| bad_credential(error.into_kind()))?;
        // Source: RFC 7515, section 4.1.11: what is critical and not understood makes a token invalid.
        if header.crit.is_some() {
            return Err(BadCredential::Signature);
        }
        let validation = self.validations.iter().find(|(algorithm, _)| *algorithm == header.alg);
        let (_, validation) = validation.ok_or(BadCredential::Signature)?;
        let key = self.keys.find(header.alg, header.kid.as_deref()).await.ok_or(BadCredential::Signature)?;
        let decoded = decode::<Claims>(token, &key, validation);
        let claims = decoded
            .map_err(|error| match error.into_kind() {
                // Its signature was good, so it is a token.
                ErrorKind::Json(_) => BadCredential::Claim("sub, scope or scp".to_owned()),
                other => bad_credential(other),
            })?
            .claims;
        let is_service =
            [&claims.scope, &claims.scp].into_iter().flatten().any(|s| s.has(&self.service_scope));
        Ok(if is_service { Writer::OfAll } else { Writer::Of(claims.sub.as_deref().and_then(user_id)) })
    }
}

/// A subject that is a user id, written as we would write it: `7`, and neither `+7` nor `007`, which might be other
/// subjects' names.
fn user_id(sub: &str) -> Option<i64> {
    sub.parse().ok().filter(|id: &i64| id.to_string() == sub)
}

fn bad_credential(error: ErrorKind) -> BadCredential {
    match error {
        ErrorKind::ExpiredSignature => BadCredential::Expired,
        ErrorKind::ImmatureSignature => BadCredential::NotYetValid,
        ErrorKind::InvalidIssuer => BadCredential::Issuer,
        ErrorKind::InvalidAudience => BadCredential::Audience,
        ErrorKind::MissingRequiredClaim(claim) | ErrorKind::InvalidClaimFormat(claim) => {
            BadCredential::Claim(claim)
        }
        ErrorKind::InvalidToken
        | ErrorKind::Base64(_)
        | ErrorKind::Json(_)
        | ErrorKind::Utf8(_)
        // An algorithm that there isn't, such as "none", is no algorithm that a header could be read with.
        | ErrorKind::InvalidAlgorithmName => BadCredential::NoToken,
        _ => BadCredential::Signature,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_a_user_only_as_we_would_write_it() {
        assert_eq!(user_id("7"), Some(7));
        for sub in ["", "+7", "007", " 7", "7 ", "-", "seven", "9223372036854775808", "7.0"] {
            assert_eq!(user_id(sub), None, "{sub}");
        }
    }

    #[test]
    fn scopes_are_compared_whole() {
        let scopes = |json: &str| serde_json::from_str::<Scopes>(json).unwrap();
        assert!(scopes("\"openid likes:write-all\"").has("likes:write-all"));
        assert!(scopes("[\"likes:write-all\"]").has("likes:write-all"));
        assert!(!scopes("\"likes:write-all-of-it\"").has("likes:write-all"));
        assert!(!scopes("[\"openid likes:write-all\"]").has("likes:write-all"));
    }
}
