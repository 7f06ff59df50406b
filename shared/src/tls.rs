//! TLS clients: trusted authorities, and the client certificate. Files are read once, at start.

mod verifiers;

use std::{
    error::Error,
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    AlertDescription, ClientConfig, RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
};

use self::verifiers::ForAnyName;

/// Verification of the server certificate.
pub(crate) enum Trust {
    /// No verification: protects against eavesdropping only.
    Anything,
    /// Signed by a trusted authority, for any name.
    Chain(RootCertStore),
    /// Signed by a trusted authority, for the host name of the server.
    ChainAndName(RootCertStore),
}

/// Client certificate and its private key.
pub(crate) struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// A file that cannot be used, with the setting that names it.
#[derive(Debug)]
pub(crate) struct BadFile<S> {
    /// The setting that names the file.
    pub(crate) setting: S,
    path: PathBuf,
    problem: String,
}

impl<S> fmt::Display for BadFile<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot use {}: {}", self.path.display(), self.problem)
    }
}

/// Reads trusted authorities from a PEM file.
pub(crate) fn roots_of_file<S>(setting: S, path: &Path) -> Result<RootCertStore, BadFile<S>> {
    let certificates = match certificates(path) {
        Ok(certificates) => certificates,
        Err(problem) => return Err(BadFile { setting, path: path.to_owned(), problem }),
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        if roots.add(certificate).is_err() {
            let problem = "the file has an invalid certificate".to_owned();
            return Err(BadFile { setting, path: path.to_owned(), problem });
        }
    }
    Ok(roots)
}

/// Returns the trusted authorities of the system.
///
/// # Errors
/// When the system has none, with the reason.
pub(crate) fn roots_of_system() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map_or_else(String::new, |error| format!(": {error}"));
        return Err(format!("the system has no trusted certificate authorities{why}"));
    }
    Ok(roots)
}

impl Identity {
    /// Reads PEM files, and checks that the key belongs to the certificate. `of_chain` and `of_key` are the settings that
    /// name them.
    pub(crate) fn of_files<S>(
        (of_chain, chain): (S, &Path),
        (of_key, key): (S, &Path),
    ) -> Result<Self, BadFile<S>> {
        let bad = |setting, path: &Path, problem| BadFile { setting, path: path.to_owned(), problem };
        let found = match certificates(chain) {
            Ok(found) => found,
            Err(problem) => return Err(bad(of_chain, chain, problem)),
        };
        let found = match PrivateKeyDer::from_pem_file(key) {
            Ok(key) => Self { chain: found, key },
            Err(error) => return Err(bad(of_key, key, describe(&error, "private key"))),
        };
        let signs = aws_lc_rs::default_provider().key_provider.load_private_key(found.key.clone_key());
        let Ok(signs) = signs else {
            return Err(bad(of_key, key, "TLS does not support keys of this type".to_owned()));
        };
        if rustls::sign::CertifiedKey::new(found.chain.clone(), signs).keys_match().is_err() {
            return Err(bad(
                of_key,
                key,
                format!("the key does not belong to the certificate in {}", chain.display()),
            ));
        }
        Ok(found)
    }
}

/// Returns the configuration of a TLS client.
///
/// # Errors
/// When rustls rejects the authorities or the client certificate.
pub(crate) fn client(trust: Trust, identity: Option<Identity>) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = verifier(trust, &provider)?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    match identity {
        Some(Identity { chain, key }) => config.with_client_auth_cert(chain, key),
        None => Ok(config.with_no_client_auth()),
    }
}

fn verifier(
    trust: Trust,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, rustls::Error> {
    let algorithms = provider.signature_verification_algorithms;
    Ok(match trust {
        Trust::Anything => Arc::new(ForAnyName { roots: None, algorithms }),
        Trust::Chain(roots) => Arc::new(ForAnyName { roots: Some(roots), algorithms }),
        Trust::ChainAndName(roots) => {
            let built =
                WebPkiServerVerifier::builder_with_provider(roots.into(), Arc::clone(provider)).build();
            built.map_err(|error| rustls::Error::General(error.to_string()))?
        }
    })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(certificates) if certificates.is_empty() => {
            Err("the file has no certificate in PEM format".to_owned())
        }
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(describe(&error, "certificate")),
    }
}

/// Describes an error without quoting the contents of the file.
fn describe(error: &pem::Error, kind: &str) -> String {
    match error {
        pem::Error::Io(error) => error.to_string(),
        _ => format!("the file has no {kind} in PEM format"),
    }
}

/// Finds an error of rustls among the causes of another error.
pub(crate) fn error_behind<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // The source of an I/O error is the source of the error that it wraps, and not that error itself.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match wrapped {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    None
}

/// Whether an operator has to fix a certificate or a setting: a retry would fail again.
pub(crate) fn is_refusal(error: &rustls::Error) -> bool {
    match error {
        rustls::Error::InvalidCertificate(_)
        | rustls::Error::InvalidMessage(_)
        | rustls::Error::NoCertificatesPresented
        | rustls::Error::PeerIncompatible(_)
        | rustls::Error::UnsupportedNameType => true,
        rustls::Error::AlertReceived(alert) => !matches!(
            alert,
            AlertDescription::CloseNotify | AlertDescription::InternalError | AlertDescription::UserCanceled
        ),
        _ => false,
    }
}
