//! TLS to Redis: the settings, and what a failure means.

use std::path::{Path, PathBuf};

use fred::{
    prelude::{Error, ErrorKind},
    types::config::{TlsConfig, TlsConnector},
};

use crate::{
    settings::{SettingError, args::RedisArgs},
    tls::{self, BadFile, Identity, Trust},
};

const CA: &str = "REDIS_TLS_CA";
const CERT: &str = "REDIS_TLS_CERT";
const KEY: &str = "REDIS_TLS_KEY";

/// The files that settings name.
#[derive(Clone, Copy, Default)]
pub(super) struct Files<'a> {
    ca: Option<&'a PathBuf>,
    certificate: Option<&'a PathBuf>,
    key: Option<&'a PathBuf>,
}

impl<'a> Files<'a> {
    pub(super) fn of(args: &'a RedisArgs) -> Self {
        let RedisArgs { redis_tls_ca, redis_tls_cert, redis_tls_key, .. } = args;
        Self { ca: redis_tls_ca.as_ref(), certificate: redis_tls_cert.as_ref(), key: redis_tls_key.as_ref() }
    }

    /// Checks that no file is set, for a URL without TLS.
    ///
    /// # Errors
    /// When one is: it would be ignored, and the connection would not be encrypted.
    pub(super) fn unused(self) -> Result<(), SettingError> {
        let given = [(CA, self.ca), (CERT, self.certificate), (KEY, self.key)];
        let first = given.into_iter().find_map(|(setting, file)| Some((setting, file?)));
        first.map_or(Ok(()), |(setting, file)| {
            let allowed = "allowed is a REDIS_URL with TLS, like rediss://host:6379";
            Err(SettingError::new(setting, format!("'{}' is not heeded: {allowed}", file.display())))
        })
    }

    /// For a URL with TLS.
    pub(super) fn read(self) -> Result<TlsConfig, SettingError> {
        let bad = |file: BadFile<&'static str>| SettingError::new(file.setting, &file);
        let roots = match self.ca {
            Some(file) => tls::roots_of_file(CA, file).map_err(bad)?,
            None => tls::roots_of_system().map_err(|problem| {
                SettingError::new(CA, format!("allowed is a file in PEM, and needed: {problem}"))
            })?,
        };
        let identity = match (self.certificate, self.key) {
            (Some(certificate), Some(key)) => {
                Some(Identity::of_files((CERT, certificate), (KEY, key)).map_err(bad)?)
            }
            (None, None) => None,
            (Some(file), None) => return Err(alone(CERT, file, KEY)),
            (None, Some(file)) => return Err(alone(KEY, file, CERT)),
        };
        let config = tls::client(Trust::ChainAndName(roots), identity);
        let config =
            config.map_err(|error| SettingError::new("REDIS_URL", format!("TLS can't be used: {error}")))?;
        Ok(TlsConnector::from(config).into())
    }
}

fn alone(setting: &'static str, file: &Path, other: &str) -> SettingError {
    SettingError::new(
        setting,
        format!("'{}' is of no use without {other}: allowed are both or neither", file.display()),
    )
}

/// What is wrong, where a connection failed over TLS and waiting will not change it. fred keeps of an error no more than its
/// `Debug`, so these are names of rustls's.
const TROUBLES: [(&str, &str); 14] = [
    ("UnknownIssuer", "the authority of its certificate is not trusted, see REDIS_TLS_CA"),
    ("CaUsedAsEndEntity", "its certificate is that of an authority, not one for servers"),
    (
        "NotValidForName",
        "its certificate is for another name than that in REDIS_URL, or in what the cluster or the sentinels say",
    ),
    ("Expired", "its certificate has expired"),
    ("NotValidYet", "its certificate is not valid yet"),
    ("InvalidCertificate", "its certificate is not valid"),
    ("CertificateRequired", "it wants a client certificate, see REDIS_TLS_CERT"),
    // What OpenSSL up to TLS 1.2 says of the same.
    (
        "AlertReceived(HandshakeFailure)",
        "it agrees to nothing that we offer: it may want a client certificate, see REDIS_TLS_CERT",
    ),
    ("AlertReceived(UnknownCA)", "it doesn't trust the authority of our certificate, REDIS_TLS_CERT"),
    ("AlertReceived(CertificateExpired)", "our certificate has expired, REDIS_TLS_CERT"),
    ("AlertReceived(", "it doesn't take our certificate, or how we speak TLS"),
    ("PeerIncompatible", "it has no version of TLS that we have"),
    (
        "InvalidMessage(InvalidContentType)",
        "it does not speak TLS on this port: use redis:// or its port for TLS",
    ),
    ("InvalidDnsNameError", "REDIS_URL names it by what can't be in a certificate"),
];

/// The same error, in words for people if it is about TLS, which the connection was made with or without.
pub(super) fn explained(error: Error, with_tls: bool) -> Error {
    let details = error.details();
    if !with_tls {
        let broke_off = ["ConnectionReset", "BrokenPipe", "UnexpectedEof"];
        if !broke_off.iter().any(|name| details.contains(name)) {
            return error;
        }
        let hint = "a server that wants TLS breaks off like this, REDIS_URL is rediss:// for that";
        return Error::new(error.kind().clone(), format!("{details}: {hint}"));
    }
    if *error.kind() == ErrorKind::Timeout {
        let hint = "a server without TLS says nothing to it, REDIS_URL is redis:// for that";
        return Error::new(ErrorKind::Timeout, format!("{details}: {hint}"));
    }
    let trouble = TROUBLES.iter().find(|(name, _)| details.contains(name));
    match trouble {
        Some((_, words)) if !details.contains("CloseNotify") => Error::new(ErrorKind::Tls, *words),
        _ => error,
    }
}
