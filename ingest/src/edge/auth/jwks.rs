//! The keys that tokens may be signed with: one, or a JSON Web Key Set (RFC 7517).

use std::{
    fs,
    path::PathBuf,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, jwk};
use reqwest::{Certificate, Client, Url, redirect};
use serde::Deserialize;
use shared::{error_chain::one_line, runtime::service::wait_for, settings::SettingError};
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use crate::edge::auth::jwt::JwtArgs;
use crate::{IngestError, edge::hot_reload::Reloaded};

/// How long the server with the key set may take.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// How long it is waited for at start.
const FIRST_FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// Tokens that name unknown keys have the set fetched at most so often.
const FETCH_PAUSE: Duration = Duration::from_secs(10);

/// How long such a token waits for it.
const UNKNOWN_KEY_PATIENCE: Duration = Duration::from_secs(2);

/// How many such tokens may wait.
const MAX_WAITING: usize = 100;

const MAX_SET_BYTES: usize = 1 << 20;
const MAX_KEYS: usize = 1_000;

pub(super) fn is_hmac(algorithm: Algorithm) -> bool {
    algorithm.family() == AlgorithmFamily::Hmac
}

/// Whether a key set is to be fetched, and not read from a file.
pub(super) fn is_url(set: &str) -> bool {
    set.contains("://")
}

/// Where keys come from.
pub(super) enum KeySource {
    File(Reloaded<KeySet>),
    Url(Fetched),
}

impl KeySource {
    /// Reads the file, or waits for the URL.
    pub(super) async fn new(args: &JwtArgs) -> Result<Self, IngestError> {
        let algorithms = args.ingest_jwt_algorithms.clone();
        if let Some(file) = &args.ingest_jwt_key_file {
            let files = vec![("INGEST_JWT_KEY_FILE", file.clone())];
            let keys =
                Reloaded::load(files, move |contents| KeySet::of_one(&contents.concat(), &algorithms))?;
            return Ok(Self::File(keys));
        }
        let set = args.ingest_jwt_jwks.as_deref().unwrap_or_default();
        if is_url(set) {
            let client = http_client(args.ingest_jwt_jwks_ca.as_ref())?;
            let fetch = Fetch { client, url: trusted_url(set)?, algorithms };
            return Ok(Self::Url(Fetched::start(fetch, args.ingest_jwt_jwks_refresh).await?));
        }
        let files = vec![("INGEST_JWT_JWKS", PathBuf::from(set))];
        let keys = Reloaded::load(files, move |contents| KeySet::parse(&contents.concat(), &algorithms))?;
        Ok(Self::File(keys))
    }

    /// The key that a token with such a header should be signed with.
    pub(super) async fn find(&self, algorithm: Algorithm, id: Option<&str>) -> Option<DecodingKey> {
        match self {
            Self::File(keys) => keys.current().find(algorithm, id),
            Self::Url(fetched) => fetched.find(algorithm, id).await,
        }
    }
}

/// Keys with what they may be used for.
#[derive(Debug, Default)]
pub(super) struct KeySet(Vec<Key>);

#[derive(Debug)]
struct Key {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    decoding: DecodingKey,
}

impl KeySet {
    /// A public key in PEM or a secret, by what the algorithms, which are of one family, need.
    fn of_one(content: &[u8], algorithms: &[Algorithm]) -> Result<Self, String> {
        // The library would take it, and then no token.
        if content.windows(b"PRIVATE KEY".len()).any(|words| words == b"PRIVATE KEY") {
            return Err("the file has a private key: the public one is wanted".to_owned());
        }
        let family =
            algorithms.first().map(|algorithm| algorithm.family()).ok_or("no algorithm is allowed")?;
        let key = match family {
            AlgorithmFamily::Hmac => secret(content.trim_ascii(), algorithms)?,
            // The library's own error might quote a part of the file.
            AlgorithmFamily::Rsa => DecodingKey::from_rsa_pem(content)
                .map_err(|_| "the file has no RSA public key in PEM, as INGEST_JWT_ALGORITHMS wants")?,
            AlgorithmFamily::Ec => DecodingKey::from_ec_pem(content)
                .map_err(|_| "the file has no EC public key in PEM, as INGEST_JWT_ALGORITHMS wants")?,
            AlgorithmFamily::Ed => DecodingKey::from_ed_pem(content)
                .map_err(|_| "the file has no Ed25519 public key in PEM, as INGEST_JWT_ALGORITHMS wants")?,
        };
        Ok(Self(vec![Key { id: None, algorithms: algorithms.to_vec(), decoding: key }]))
    }

    /// What of a set can be used with these algorithms. Others' keys in it, for other purposes, are left out.
    fn parse(json: &[u8], algorithms: &[Algorithm]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<serde_json::Value>,
        }
        // What the library says of it might quote it.
        let set: Set = serde_json::from_slice(json).map_err(|_| "it is no JSON Web Key Set")?;
        let keys = set.keys.into_iter().filter_map(|key| usable(key, algorithms));
        let keys: Vec<Key> = keys.take(MAX_KEYS).collect();
        if keys.is_empty() {
            return Err("the key set has no key for the algorithms of INGEST_JWT_ALGORITHMS".to_owned());
        }
        Ok(Self(keys))
    }

    /// That of the token's `kid`. Where either has none, the only one that could be meant.
    fn find(&self, algorithm: Algorithm, id: Option<&str>) -> Option<DecodingKey> {
        let fitting = || self.0.iter().filter(|key| key.algorithms.contains(&algorithm));
        let named = id.and_then(|id| fitting().find(|key| key.id.as_deref() == Some(id)));
        let only = || {
            let mut anonymous = fitting().filter(|key| id.is_none() || key.id.is_none());
            anonymous.next().filter(|_| anonymous.next().is_none())
        };
        named.or_else(only).map(|key| key.decoding.clone())
    }
}

/// A shorter secret than the hash would be easier to guess than the signature. Source: RFC 7518, section 3.2.
fn secret(secret: &[u8], algorithms: &[Algorithm]) -> Result<DecodingKey, String> {
    let hash_bytes = algorithms.iter().map(|algorithm| match algorithm {
        Algorithm::HS512 => 64,
        Algorithm::HS384 => 48,
        _ => 32,
    });
    let at_least = hash_bytes.max().unwrap_or(64);
    if secret.len() < at_least {
        return Err(format!("the secret has {} bytes: allowed are {at_least} or more", secret.len()));
    }
    // Whoever gives a public key for a secret would let everybody sign.
    if secret.starts_with(b"-----BEGIN") {
        return Err("the file has a PEM, and INGEST_JWT_ALGORITHMS wants a secret".to_owned());
    }
    Ok(DecodingKey::from_secret(secret))
}

fn usable(key: serde_json::Value, algorithms: &[Algorithm]) -> Option<Key> {
    let jwk: jwk::Jwk = serde_json::from_value(key).ok()?;
    if matches!(jwk.algorithm, jwk::AlgorithmParameters::OctetKey(_)) {
        return None;
    }
    if jwk.common.public_key_use.as_ref().is_some_and(|of| *of != jwk::PublicKeyUse::Signature) {
        return None;
    }
    let decoding = DecodingKey::from_jwk(&jwk).ok()?;
    let own = jwk.common.key_algorithm.map(|algorithm| algorithm.to_string());
    let fits = |algorithm: &&Algorithm| {
        algorithm.family() == decoding.family()
            && own.as_ref().is_none_or(|own| own.parse() == Ok(**algorithm))
    };
    let algorithms: Vec<Algorithm> = algorithms.iter().filter(fits).copied().collect();
    (!algorithms.is_empty()).then_some(Key { id: jwk.common.key_id, algorithms, decoding })
}

/// Whoever can change the keys on their way can let anybody in.
fn trusted_url(url: &str) -> Result<Url, SettingError> {
    let refused = || {
        SettingError::new(
            "INGEST_JWT_JWKS",
            "allowed is an https URL, an http URL of this machine, or a file",
        )
    };
    let url: Url = url.parse().map_err(|_| refused())?;
    let is_here = url.host_str().is_some_and(|host| ["localhost", "127.0.0.1", "[::1]"].contains(&host));
    // Settings show it in full.
    if !url.username().is_empty() || url.password().is_some() {
        return Err(SettingError::new(
            "INGEST_JWT_JWKS",
            "has a user or a password: allowed is a URL without",
        ));
    }
    if url.scheme() == "https" || (url.scheme() == "http" && is_here) { Ok(url) } else { Err(refused()) }
}

fn http_client(ca: Option<&PathBuf>) -> Result<Client, SettingError> {
    let refused = |why: String| SettingError::new("INGEST_JWT_JWKS_CA", why);
    let mut client = Client::builder().timeout(FETCH_TIMEOUT).no_proxy().redirect(redirect::Policy::none());
    if let Some(ca) = ca {
        let pem = fs::read(ca).map_err(|e| refused(format!("'{}' can't be read: {e}", ca.display())))?;
        let certificates = Certificate::from_pem_bundle(&pem).ok().filter(|found| !found.is_empty());
        let none = || refused(format!("'{}' has no certificates in PEM", ca.display()));
        client = client.tls_certs_only(certificates.ok_or_else(none)?);
    }
    client.build().map_err(|error| refused(one_line(&error)))
}

/// How a set is fetched.
struct Fetch {
    client: Client,
    url: Url,
    algorithms: Vec<Algorithm>,
}

/// Why a set could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The server can't be reached, or its answer was no.
    #[error("it can't be fetched")]
    Http(#[from] reqwest::Error),
    /// It is no key set of use.
    #[error("{0}")]
    Content(String),
}

impl Fetch {
    async fn fetch(&self) -> Result<KeySet, FetchError> {
        let answer =
            self.client.get(self.url.clone()).send().await.and_then(reqwest::Response::error_for_status);
        // The URL is in the log line already.
        let mut answer = answer.map_err(reqwest::Error::without_url)?;
        let mut json = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(reqwest::Error::without_url)? {
            json.extend_from_slice(&chunk);
            if json.len() > MAX_SET_BYTES {
                return Err(FetchError::Content(format!("it has more than {MAX_SET_BYTES} bytes")));
            }
        }
        KeySet::parse(&json, &self.algorithms).map_err(FetchError::Content)
    }

    /// For people.
    fn address(&self) -> String {
        format!("{}{}", self.url.host_str().unwrap_or_default(), self.url.path())
    }
}

/// Between those who need a key and the one who fetches.
struct Signals {
    wanted: Notify,
    /// Whether the set would be fetched at once.
    may_fetch: AtomicBool,
    /// A try has ended, well or not.
    tried: Notify,
    /// Tokens that nobody has signed must not make everybody wait.
    may_wait: Semaphore,
}

/// A set as it was when it could last be fetched.
pub(super) struct Fetched {
    keys: watch::Receiver<KeySet>,
    signals: Arc<Signals>,
    _refreshing: AbortOnDropHandle<()>,
}

impl Fetched {
    async fn start(fetch: Fetch, refresh_every: Duration) -> Result<Self, IngestError> {
        let server = format!("the key set at {}", fetch.address());
        let first =
            wait_for(&server, "INGEST_JWT_JWKS", FIRST_FETCH_TIMEOUT, |_| false, || fetch.fetch()).await?;
        let (sender, keys) = watch::channel(first);
        let signals = Arc::new(Signals {
            wanted: Notify::new(),
            may_fetch: AtomicBool::new(false),
            tried: Notify::new(),
            may_wait: Semaphore::new(MAX_WAITING),
        });
        let refreshing = refresh(fetch, sender, Arc::clone(&signals), refresh_every);
        let refreshing = AbortOnDropHandle::new(tokio::spawn(refreshing));
        Ok(Self { keys, signals, _refreshing: refreshing })
    }

    async fn find(&self, algorithm: Algorithm, id: Option<&str>) -> Option<DecodingKey> {
        let known = self.keys.borrow().find(algorithm, id);
        if known.is_some() || !self.signals.may_fetch.load(Ordering::Relaxed) {
            return known;
        }
        let _waiting = self.signals.may_wait.try_acquire().ok()?;
        let mut tried = pin!(self.signals.tried.notified());
        tried.as_mut().enable();
        // It may have come before that, and is there then: see where this is stored.
        if self.signals.may_fetch.load(Ordering::Acquire) {
            self.signals.wanted.notify_one();
            let _ = timeout(UNKNOWN_KEY_PATIENCE, tried).await;
        }
        self.keys.borrow().find(algorithm, id)
    }
}

async fn refresh(fetch: Fetch, keys: watch::Sender<KeySet>, signals: Arc<Signals>, every: Duration) {
    let pause = FETCH_PAUSE.min(every);
    loop {
        sleep(pause).await;
        signals.may_fetch.store(true, Ordering::Relaxed);
        let _ = timeout(every.saturating_sub(pause), signals.wanted.notified()).await;
        match fetch.fetch().await {
            Ok(set) => drop(keys.send_replace(set)),
            Err(error) => {
                let why = one_line(&error);
                tracing::warn!(set = fetch.address(), why, "the key set can't be had: the old one is kept");
            }
        }
        signals.may_fetch.store(false, Ordering::Release);
        signals.tried.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED_KEY: &str =
        r#"{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo""#;

    fn set(keys: &[&str]) -> Result<KeySet, String> {
        KeySet::parse(format!("{{\"keys\": [{}]}}", keys.join(",")).as_bytes(), &[Algorithm::EdDSA])
    }

    #[test]
    fn keys_are_found_by_name_or_where_only_one_can_be_meant() {
        let (a, b) = (format!("{ED_KEY}, \"kid\": \"a\"}}"), format!("{ED_KEY}, \"kid\": \"b\"}}"));
        let found = |set: &KeySet, id| set.find(Algorithm::EdDSA, id).is_some();
        let two = set(&[&a, &b]).unwrap();
        assert!(found(&two, Some("a")) && found(&two, Some("b")));
        assert!(!found(&two, Some("c")) && !found(&two, None));
        assert!(found(&set(&[&a]).unwrap(), None));
        assert!(!found(&set(&[&a]).unwrap(), Some("b")), "it has another name");
        assert!(found(&set(&[&format!("{ED_KEY}}}")]).unwrap(), Some("b")), "it has no name");
        assert!(two.find(Algorithm::RS256, Some("a")).is_none(), "not for this algorithm");
    }

    #[test]
    fn keys_for_other_purposes_are_left_out() {
        let secret = r#"{"kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"}"#;
        let for_encryption = format!("{ED_KEY}, \"use\": \"enc\"}}");
        let for_another = format!("{ED_KEY}, \"alg\": \"RS256\"}}");
        for other in [secret, &for_encryption, &for_another, "{\"kty\": \"new\"}", "7"] {
            assert!(set(&[other]).is_err(), "{other}");
            assert_eq!(set(&[other, &format!("{ED_KEY}}}")]).unwrap().0.len(), 1);
        }
        assert!(KeySet::parse(b"{}", &[Algorithm::EdDSA]).is_err());
    }

    #[test]
    fn a_secret_is_long_enough_and_not_a_public_key() {
        let hmac = |content: &[u8], algorithm| KeySet::of_one(content, &[algorithm]);
        assert!(hmac(&[b'x'; 32], Algorithm::HS256).is_ok());
        assert!(hmac(&[b'x'; 31], Algorithm::HS256).is_err() && hmac(&[b'x'; 32], Algorithm::HS512).is_err());
        let pem = b"-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n";
        assert!(hmac(pem, Algorithm::HS256).is_err());
        assert!(hmac(b"-----BEGIN PRIVATE KEY-----", Algorithm::RS256).unwrap_err().contains("private"));
        assert!(hmac(pem, Algorithm::EdDSA).is_ok() && hmac(pem, Algorithm::RS256).is_err());
    }

    #[test]
    fn keys_come_by_https_or_from_this_machine() {
        for url in ["https://id.example.org/jwks", "http://127.0.0.1:8080/jwks", "http://[::1]/jwks"] {
            assert!(trusted_url(url).is_ok(), "{url}");
        }
        for url in [
            "http://id.example.org/jwks",
            "ftp://127.0.0.1/jwks",
            "https://",
            "http://127.0.0.1.evil.org/",
            "https://me:hunter2@id.example.org/",
        ] {
            assert!(trusted_url(url).is_err(), "{url}");
        }
    }
}
