//! Bearer tokens: JSON Web Tokens (RFC 7519).

use std::time::Duration;

use clap::{Args, builder::NonEmptyStringValueParser};
use jsonwebtoken::{Algorithm, Validation, decode, decode_header, errors::ErrorKind};
use serde::Deserialize;
use shared::{
    runtime::reload::ReloadRequests,
    settings::{SettingError, args::duration},
};

use super::{
    errors::{InvalidCredential, SetupError},
    key_source::{KeyArgs, KeySource},
    principal::Principal,
};

/// Maximum size of a token. Longer tokens are refused without parsing.
const MAX_TOKEN_BYTES: usize = 8 << 10;

/// Maximum clock skew. Clocks that differ more should be fixed.
const MAX_LEEWAY: Duration = Duration::from_mins(10);

#[derive(Args, Debug)]
pub(super) struct JwtArgs {
    #[command(flatten)]
    keys: KeyArgs,

    /// Issuer (iss) that tokens must have; required for jwt
    #[arg(long, env = "INGEST_JWT_ISSUER", value_name = "ISSUER",
          value_parser = NonEmptyStringValueParser::new())]
    ingest_jwt_issuer: Option<String>,

    /// Audience (aud) that tokens must have; required for jwt
    #[arg(long, env = "INGEST_JWT_AUDIENCE", value_name = "AUDIENCE",
          value_parser = NonEmptyStringValueParser::new())]
    ingest_jwt_audience: Option<String>,

    /// Maximum clock skew between the token issuer and this host, up to 10m
    #[arg(long, env = "INGEST_JWT_LEEWAY", default_value = "30s", value_name = "DURATION", value_parser = leeway)]
    ingest_jwt_leeway: Duration,

    /// Scope of tokens that may write likes of all users
    ///
    /// Other tokens may write only likes of the user in sub.
    #[arg(long, env = "INGEST_JWT_SERVICE_SCOPE", default_value = "likes:write-all", value_name = "SCOPE",
          value_parser = scope)]
    ingest_jwt_service_scope: String,
}

#[derive(Debug, thiserror::Error)]
#[error("expected a duration up to 10 minutes, such as 30s")]
struct NotALeeway;

fn leeway(text: &str) -> Result<Duration, NotALeeway> {
    duration(text).ok().filter(|leeway| *leeway <= MAX_LEEWAY).ok_or(NotALeeway)
}

#[derive(Debug, thiserror::Error)]
#[error("expected one scope without spaces")]
struct NotAScope;

/// Parses the scope of services. It must not be empty: tokens without a scope would match.
fn scope(text: &str) -> Result<String, NotAScope> {
    let is_one = !text.is_empty() && !text.contains(char::is_whitespace);
    if is_one { Ok(text.to_owned()) } else { Err(NotAScope) }
}

impl JwtArgs {
    pub(super) fn check(&self, wanted: bool) -> Result<(), SettingError> {
        let required = [
            ("INGEST_JWT_ISSUER", self.ingest_jwt_issuer.is_some()),
            ("INGEST_JWT_AUDIENCE", self.ingest_jwt_audience.is_some()),
        ];
        if !wanted {
            let mut given = self.keys.given().into_iter().chain(required);
            return given.find(|(_, given)| *given).map_or(Ok(()), |(setting, _)| {
                Err(SettingError::new(
                    setting,
                    "has no effect without INGEST_AUTH=jwt; unset it or add jwt to INGEST_AUTH",
                ))
            });
        }
        self.keys.check()?;
        required.iter().find(|(_, given)| !given).map_or(Ok(()), |(setting, _)| {
            Err(SettingError::new(
                *setting,
                "required with INGEST_AUTH=jwt; set it to the value that tokens must have",
            ))
        })
    }
}

/// Verifies tokens and returns their principals.
pub(super) struct TokenVerifier {
    keys: KeySource,
    /// One validation per accepted algorithm.
    validations: Vec<(Algorithm, Validation)>,
    service_scope: String,
}

#[derive(Deserialize)]
struct Claims {
    sub: Option<String>,
    /// RFC 9068, section 2.2.3.
    scope: Option<Scopes>,
    /// Another common name of the same claim.
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

impl TokenVerifier {
    pub(super) async fn new(args: &JwtArgs, reload: &ReloadRequests) -> Result<Self, SetupError> {
        let validation = |algorithm: &Algorithm| {
            let mut validation = Validation::new(*algorithm);
            validation.leeway =
                args.ingest_jwt_leeway.as_secs() + u64::from(args.ingest_jwt_leeway.subsec_nanos() > 0);
            validation.validate_nbf = true;
            validation.set_required_spec_claims(&["exp", "iss", "aud"]);
            // `check` ensures that both are set. An unset one would match no token.
            validation.set_issuer(args.ingest_jwt_issuer.as_slice());
            validation.set_audience(args.ingest_jwt_audience.as_slice());
            (*algorithm, validation)
        };
        Ok(Self {
            keys: KeySource::new(&args.keys, reload).await?,
            validations: args.keys.ingest_jwt_algorithms.iter().map(validation).collect(),
            service_scope: args.ingest_jwt_service_scope.clone(),
        })
    }

    pub(super) async fn verify(&self, token: &str) -> Result<Principal, InvalidCredential> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(InvalidCredential::NoToken);
        }
        let header = decode_header(token).map_err(|error| invalid_credential(error.into_kind()))?;
        // Source: RFC 7515, section 4.1.11: critical extensions that are not understood make a token invalid.
        if header.crit.is_some() {
            return Err(InvalidCredential::Signature);
        }
        let validation = self.validations.iter().find(|(algorithm, _)| *algorithm == header.alg);
        let (_, validation) = validation.ok_or(InvalidCredential::Signature)?;
        let key =
            self.keys.find(header.alg, header.kid.as_deref()).await.ok_or(InvalidCredential::Signature)?;
        let decoded = decode::<Claims>(token, &key, validation);
        let claims = decoded
            .map_err(|error| match error.into_kind() {
                // The signature is valid, so only the claims can be malformed.
                ErrorKind::Json(_) => InvalidCredential::Claim("sub, scope or scp".to_owned()),
                other => invalid_credential(other),
            })?
            .claims;
        let is_service =
            [&claims.scope, &claims.scp].into_iter().flatten().any(|s| s.has(&self.service_scope));
        Ok(if is_service {
            Principal::Trusted
        } else {
            Principal::User(claims.sub.as_deref().and_then(user_id))
        })
    }
}

/// Parses a subject that is a user id in canonical form: `7`, but not `+7` or `007`, which could be other subjects.
fn user_id(sub: &str) -> Option<i64> {
    sub.parse().ok().filter(|id: &i64| id.to_string() == sub)
}

fn invalid_credential(error: ErrorKind) -> InvalidCredential {
    match error {
        ErrorKind::ExpiredSignature => InvalidCredential::Expired,
        ErrorKind::ImmatureSignature => InvalidCredential::NotYetValid,
        ErrorKind::InvalidIssuer => InvalidCredential::Issuer,
        ErrorKind::InvalidAudience => InvalidCredential::Audience,
        ErrorKind::MissingRequiredClaim(claim) | ErrorKind::InvalidClaimFormat(claim) => {
            InvalidCredential::Claim(claim)
        }
        ErrorKind::InvalidToken
        | ErrorKind::Base64(_)
        | ErrorKind::Json(_)
        | ErrorKind::Utf8(_)
        // A header with an unknown algorithm, such as "none", does not parse.
        | ErrorKind::InvalidAlgorithmName => InvalidCredential::NoToken,
        _ => InvalidCredential::Signature,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_canonical_subject_is_a_user_id() {
        assert_eq!(user_id("7"), Some(7));
        for sub in ["", "+7", "007", " 7", "7 ", "-", "seven", "9223372036854775808", "7.0"] {
            assert_eq!(user_id(sub), None, "{sub}");
        }
    }

    #[test]
    fn scopes_match_as_whole_words() {
        let scopes = |json: &str| serde_json::from_str::<Scopes>(json).unwrap();
        assert!(scopes("\"openid likes:write-all\"").has("likes:write-all"));
        assert!(scopes("[\"likes:write-all\"]").has("likes:write-all"));
        assert!(!scopes("\"likes:write-all-of-it\"").has("likes:write-all"));
        assert!(!scopes("[\"openid likes:write-all\"]").has("likes:write-all"));
    }
}
