//! JSON Web Key Set (JWKS) at a URL. Fetched at start, periodically, and when a token names an unknown key.

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

use jsonwebtoken::{Algorithm, DecodingKey};
use reqwest::{Certificate, Client, Url, redirect};
use shared::{
    error_chain::one_line,
    runtime::{reload::ReloadRequests, service::wait_for},
    settings::SettingError,
};
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    errors::{FetchError, SetupError},
    key_set::KeySet,
};

/// Timeout of one fetch.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// Time for which the first fetch is retried at start.
const FIRST_FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// Minimum interval between fetches triggered by tokens with unknown keys.
const MIN_FETCH_INTERVAL: Duration = Duration::from_secs(10);

/// Time that a token with an unknown key waits for the fetch.
const UNKNOWN_KEY_TIMEOUT: Duration = Duration::from_secs(2);

/// Maximum number of tokens that wait for a fetch at the same time.
const MAX_WAITING: usize = 100;

const MAX_SET_BYTES: usize = 1 << 20;

struct Fetch {
    client: Client,
    url: Url,
    algorithms: Vec<Algorithm>,
}

impl Fetch {
    async fn fetch(&self) -> Result<KeySet, FetchError> {
        let answer =
            self.client.get(self.url.clone()).send().await.and_then(reqwest::Response::error_for_status);
        // The log line already contains the URL.
        let mut answer = answer.map_err(reqwest::Error::without_url)?;
        let mut json = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(reqwest::Error::without_url)? {
            json.extend_from_slice(&chunk);
            if json.len() > MAX_SET_BYTES {
                return Err(FetchError::Content(format!("the key set has more than {MAX_SET_BYTES} bytes")));
            }
        }
        KeySet::parse(&json, &self.algorithms).map_err(FetchError::Content)
    }

    /// Returns host and path of the URL, for logs.
    fn address(&self) -> String {
        format!("{}{}", self.url.host_str().unwrap_or_default(), self.url.path())
    }
}

/// Signals between requests that need a key and the task that fetches.
struct Signals {
    wanted: Notify,
    /// Whether a token with an unknown key may trigger a fetch now.
    may_fetch: AtomicBool,
    /// A fetch has ended, successfully or not.
    fetched: Notify,
    /// Bounds the waiting tokens, so that many forged tokens cannot block all requests.
    waiting: Semaphore,
}

/// Key set of the latest successful fetch.
pub(super) struct RemoteKeySet {
    keys: watch::Receiver<KeySet>,
    signals: Arc<Signals>,
    _refreshing: AbortOnDropHandle<()>,
}

impl RemoteKeySet {
    /// Waits for the first fetch.
    pub(super) async fn new(
        url: &str,
        ca: Option<&PathBuf>,
        algorithms: Vec<Algorithm>,
        refresh_every: Duration,
        reload: &ReloadRequests,
    ) -> Result<Self, SetupError> {
        let client = http_client(ca)?;
        let url = trusted_url(url)?;
        let fetch = Fetch { client, url, algorithms };
        let server = format!("the key set at {}", fetch.address());
        let first =
            wait_for(&server, "INGEST_JWT_JWKS", FIRST_FETCH_TIMEOUT, |_| false, || fetch.fetch()).await?;
        let (sender, keys) = watch::channel(first);
        let signals = Arc::new(Signals {
            wanted: Notify::new(),
            may_fetch: AtomicBool::new(false),
            fetched: Notify::new(),
            waiting: Semaphore::new(MAX_WAITING),
        });
        let refreshing = refresh(fetch, sender, Arc::clone(&signals), refresh_every, reload.clone());
        let refreshing = AbortOnDropHandle::new(tokio::spawn(refreshing));
        Ok(Self { keys, signals, _refreshing: refreshing })
    }

    pub(super) async fn find(&self, algorithm: Algorithm, id: Option<&str>) -> Option<DecodingKey> {
        let known = self.keys.borrow().find(algorithm, id);
        if known.is_some() || !self.signals.may_fetch.load(Ordering::Relaxed) {
            return known;
        }
        let _waiting = self.signals.waiting.try_acquire().ok()?;
        let mut fetched = pin!(self.signals.fetched.notified());
        fetched.as_mut().enable();
        // A fetch that ended before `enable` has cleared the flag, and its key set is in place.
        if self.signals.may_fetch.load(Ordering::Acquire) {
            self.signals.wanted.notify_one();
            let _ = timeout(UNKNOWN_KEY_TIMEOUT, fetched).await;
        }
        self.keys.borrow().find(algorithm, id)
    }
}

async fn refresh(
    fetch: Fetch,
    keys: watch::Sender<KeySet>,
    signals: Arc<Signals>,
    every: Duration,
    mut reload: ReloadRequests,
) {
    let pause = MIN_FETCH_INTERVAL.min(every);
    loop {
        let due = async {
            sleep(pause).await;
            signals.may_fetch.store(true, Ordering::Relaxed);
            let _ = timeout(every.saturating_sub(pause), signals.wanted.notified()).await;
        };
        let is_requested = tokio::select! {
            () = due => false,
            () = reload.requested() => true,
        };
        match fetch.fetch().await {
            Ok(set) => {
                keys.send_replace(set);
                if is_requested {
                    tracing::info!(set = fetch.address(), "key set reloaded");
                }
            }
            Err(error) => {
                let error = one_line(&error);
                tracing::warn!(set = fetch.address(), error, "key set refresh failed, keeping the old keys");
            }
        }
        signals.may_fetch.store(false, Ordering::Release);
        signals.fetched.notify_waiters();
    }
}

/// Accepts only URLs whose response cannot be changed in transit: an attacker with a key in the set could sign tokens.
fn trusted_url(url: &str) -> Result<Url, SettingError> {
    let refused = || {
        SettingError::new(
            "INGEST_JWT_JWKS",
            "not an accepted URL; expected an https URL, an http URL of localhost, or the path of a file",
        )
    };
    let url: Url = url.parse().map_err(|_| refused())?;
    let is_here = url.host_str().is_some_and(|host| ["localhost", "127.0.0.1", "[::1]"].contains(&host));
    // Settings are shown in full, so a password would leak.
    if !url.username().is_empty() || url.password().is_some() {
        return Err(SettingError::new(
            "INGEST_JWT_JWKS",
            "the URL contains a user or a password; expected a URL without them",
        ));
    }
    if url.scheme() == "https" || (url.scheme() == "http" && is_here) { Ok(url) } else { Err(refused()) }
}

fn http_client(ca: Option<&PathBuf>) -> Result<Client, SettingError> {
    let refused = |why: String| SettingError::new("INGEST_JWT_JWKS_CA", why);
    let mut client = Client::builder().timeout(FETCH_TIMEOUT).no_proxy().redirect(redirect::Policy::none());
    if let Some(ca) = ca {
        let pem = fs::read(ca).map_err(|e| refused(format!("cannot read {}: {e}", ca.display())))?;
        let certificates = Certificate::from_pem_bundle(&pem).ok().filter(|found| !found.is_empty());
        let none = || refused(format!("{} has no certificates in PEM format", ca.display()));
        client = client.tls_certs_only(certificates.ok_or_else(none)?);
    }
    client.build().map_err(|error| refused(one_line(&error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_sets_are_fetched_only_over_https_or_loopback() {
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
