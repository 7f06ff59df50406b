//! Sources of token keys: a file with one key, a file with a key set, or the URL of a key set.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};
use shared::{
    runtime::reload::ReloadRequests,
    settings::{
        SettingError,
        args::{positive_duration, trimmed},
    },
};
use thiserror::Error;

use super::{errors::SetupError, jwks::RemoteKeySet, key_set::KeySet};
use crate::edge::hot_reload::HotReload;

#[derive(Args, Debug)]
#[expect(clippy::struct_field_names, reason = "fields are named as their settings are")]
pub(super) struct KeyArgs {
    /// Path of a file with the key that verifies tokens; for jwt, instead of INGEST_JWT_JWKS
    ///
    /// A public key in PEM format, or a secret for HS256, HS384 and HS512. Reloaded when it changes.
    #[arg(long, env = "INGEST_JWT_KEY_FILE", value_name = "FILE")]
    ingest_jwt_key_file: Option<PathBuf>,

    /// URL (https) or path of the JSON Web Key Set that verifies tokens; for jwt, instead of INGEST_JWT_KEY_FILE
    ///
    /// Fetched again every INGEST_JWT_JWKS_REFRESH, and when a token names an unknown key. A file is reloaded when it
    /// changes.
    #[arg(long, env = "INGEST_JWT_JWKS", value_name = "URL|FILE", value_parser = trimmed)]
    ingest_jwt_jwks: Option<String>,

    /// Path of a PEM file with the certificate authorities trusted for the URL of INGEST_JWT_JWKS [default: those of the system]
    #[arg(long, env = "INGEST_JWT_JWKS_CA", value_name = "FILE")]
    ingest_jwt_jwks_ca: Option<PathBuf>,

    /// Interval between fetches of the URL of INGEST_JWT_JWKS
    #[arg(long, env = "INGEST_JWT_JWKS_REFRESH", default_value = "5m", value_name = "DURATION",
          value_parser = positive_duration)]
    ingest_jwt_jwks_refresh: Duration,

    /// Signature algorithms accepted in tokens
    #[arg(long, env = "INGEST_JWT_ALGORITHMS", default_value = "RS256", value_name = "NAMES", value_delimiter = ',',
          value_parser = algorithm)]
    pub(super) ingest_jwt_algorithms: Vec<Algorithm>,
}

#[derive(Debug, Error)]
#[error("expected one of RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA, HS256, HS384, HS512")]
struct UnknownAlgorithm;

fn algorithm(name: &str) -> Result<Algorithm, UnknownAlgorithm> {
    name.parse().map_err(|_| UnknownAlgorithm)
}

fn is_hmac(algorithm: Algorithm) -> bool {
    algorithm.family() == AlgorithmFamily::Hmac
}

/// Returns whether the key set is at a URL, not in a file.
fn is_url(set: &str) -> bool {
    set.contains("://")
}

impl KeyArgs {
    /// Returns the settings that have no effect without `INGEST_AUTH=jwt`, each with whether it is set.
    pub(super) fn given(&self) -> [(&'static str, bool); 3] {
        [
            ("INGEST_JWT_KEY_FILE", self.ingest_jwt_key_file.is_some()),
            ("INGEST_JWT_JWKS", self.ingest_jwt_jwks.is_some()),
            ("INGEST_JWT_JWKS_CA", self.ingest_jwt_jwks_ca.is_some()),
        ]
    }

    pub(super) fn check(&self) -> Result<(), SettingError> {
        if self.ingest_jwt_key_file.is_some() == self.ingest_jwt_jwks.is_some() {
            return Err(SettingError::new(
                "INGEST_JWT_KEY_FILE",
                "INGEST_AUTH=jwt requires one source of keys; set either this or INGEST_JWT_JWKS",
            ));
        }
        let is_url = self.ingest_jwt_jwks.as_ref().is_some_and(|set| is_url(set));
        if self.ingest_jwt_jwks_ca.is_some() && !is_url {
            let problem = "has no effect without an https URL in INGEST_JWT_JWKS; unset it";
            return Err(SettingError::new("INGEST_JWT_JWKS_CA", problem));
        }
        let first = self.ingest_jwt_algorithms.first().map(|algorithm| algorithm.family());
        let one_family = self.ingest_jwt_algorithms.iter().all(|other| Some(other.family()) == first);
        if self.ingest_jwt_key_file.is_some() && !one_family {
            let problem = "the algorithms of one key must be of one family; set only RS and PS, only ES, only HS, or EdDSA";
            return Err(SettingError::new("INGEST_JWT_ALGORITHMS", problem));
        }
        if self.ingest_jwt_jwks.is_some() && self.ingest_jwt_algorithms.iter().any(|a| is_hmac(*a)) {
            let problem =
                "HS256, HS384 and HS512 need a secret, and a key set is public; set INGEST_JWT_KEY_FILE";
            return Err(SettingError::new("INGEST_JWT_ALGORITHMS", problem));
        }
        Ok(())
    }
}

pub(super) enum KeySource {
    File(HotReload<KeySet>),
    Url(RemoteKeySet),
}

impl KeySource {
    /// Reads the file, or waits for the first fetch from the URL.
    pub(super) async fn new(args: &KeyArgs, reload: &ReloadRequests) -> Result<Self, SetupError> {
        let algorithms = args.ingest_jwt_algorithms.clone();
        if let Some(file) = &args.ingest_jwt_key_file {
            let files = vec![("INGEST_JWT_KEY_FILE", file.clone())];
            let parse = move |contents: &[Vec<u8>]| KeySet::single(&contents.concat(), &algorithms);
            let keys = HotReload::load(files, reload, parse)?;
            return Ok(Self::File(keys));
        }
        let set = args.ingest_jwt_jwks.as_deref().unwrap_or_default();
        if is_url(set) {
            let ca = args.ingest_jwt_jwks_ca.as_ref();
            let refresh_every = args.ingest_jwt_jwks_refresh;
            return Ok(Self::Url(RemoteKeySet::new(set, ca, algorithms, refresh_every, reload).await?));
        }
        let files = vec![("INGEST_JWT_JWKS", PathBuf::from(set))];
        let parse = move |contents: &[Vec<u8>]| KeySet::parse(&contents.concat(), &algorithms);
        let keys = HotReload::load(files, reload, parse)?;
        Ok(Self::File(keys))
    }

    /// Returns the key that verifies a token with this header.
    pub(super) async fn find(&self, algorithm: Algorithm, id: Option<&str>) -> Option<DecodingKey> {
        match self {
            Self::File(keys) => keys.current().find(algorithm, id),
            Self::Url(remote) => remote.find(algorithm, id).await,
        }
    }
}
