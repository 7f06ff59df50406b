//! TLS to Redis: settings, and readable causes of failed handshakes.

use std::path::{Path, PathBuf};

use fred::{
    prelude::{Error, ErrorKind},
    types::config::{TlsConfig, TlsConnector},
};

use super::errors::readable;
use crate::{
    settings::{SettingError, args::RedisArgs},
    tls::{self, BadFile, Identity, Trust},
};

const CA: &str = "REDIS_TLS_CA";
const CERT: &str = "REDIS_TLS_CERT";
const KEY: &str = "REDIS_TLS_KEY";

/// Paths of the PEM files.
#[derive(Clone, Default)]
pub(super) struct Files {
    ca: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

impl Files {
    pub(super) fn of(args: &RedisArgs) -> Self {
        let RedisArgs { redis_tls_ca, redis_tls_cert, redis_tls_key, .. } = args;
        Self { ca: redis_tls_ca.clone(), certificate: redis_tls_cert.clone(), key: redis_tls_key.clone() }
    }

    /// Checks that no file is set where the URL has no TLS.
    ///
    /// # Errors
    /// When a file is set: it would be ignored, and the connection would not be encrypted.
    pub(super) fn unused(&self) -> Result<(), SettingError> {
        let given = [(CA, &self.ca), (CERT, &self.certificate), (KEY, &self.key)];
        let first = given.into_iter().find_map(|(setting, file)| Some((setting, file.as_ref()?)));
        first.map_or(Ok(()), |(setting, file)| {
            let problem =
                "has no effect because REDIS_URL is without TLS; expected a URL such as rediss://host:6379";
            Err(SettingError::new(setting, format!("'{}' {problem}", file.display())))
        })
    }

    /// Reads the files where the URL has TLS.
    pub(super) fn read(&self) -> Result<TlsConfig, SettingError> {
        let bad = |file: BadFile<&'static str>| SettingError::new(file.setting, &file);
        let roots = match &self.ca {
            Some(file) => tls::roots_of_file(CA, file).map_err(bad)?,
            None => tls::roots_of_system().map_err(|problem| {
                SettingError::new(CA, format!("{problem}; set it to the path of a PEM file"))
            })?,
        };
        let identity = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => {
                Some(Identity::of_files((CERT, certificate), (KEY, key)).map_err(bad)?)
            }
            (None, None) => None,
            (Some(file), None) => return Err(alone(CERT, file, KEY)),
            (None, Some(file)) => return Err(alone(KEY, file, CERT)),
        };
        let config = tls::client(Trust::ChainAndName(roots), identity);
        let config =
            config.map_err(|error| SettingError::new("REDIS_URL", format!("cannot set up TLS: {error}")))?;
        Ok(TlsConnector::from(config).into())
    }
}

fn alone(setting: &'static str, file: &Path, other: &str) -> SettingError {
    SettingError::new(setting, format!("'{}' requires {other}; set both or neither", file.display()))
}

/// Causes of failed handshakes that a retry does not fix, by the name that rustls has for them: fred keeps only the `Debug`
/// text of an error. The first match counts.
const CAUSES: [(&str, &str); 14] = [
    ("UnknownIssuer", "the server certificate is not signed by a trusted authority (see REDIS_TLS_CA)"),
    ("CaUsedAsEndEntity", "the server certificate is a CA certificate"),
    (
        "NotValidForName",
        "the server certificate is not valid for the host in REDIS_URL, or in the addresses of the cluster or the sentinels",
    ),
    ("InvalidCertificate(Expired", "the server certificate has expired"),
    ("InvalidCertificate(NotValidYet", "the server certificate is not valid yet"),
    ("InvalidCertificate", "the server certificate is not valid"),
    ("CertificateRequired", "the server requires a client certificate (see REDIS_TLS_CERT)"),
    // OpenSSL up to TLS 1.2 sends this alert for a missing client certificate.
    (
        "AlertReceived(HandshakeFailure)",
        "the server rejected the TLS handshake: it may require a client certificate (see REDIS_TLS_CERT)",
    ),
    (
        "AlertReceived(UnknownCA)",
        "the server does not trust the authority of the client certificate (see REDIS_TLS_CERT)",
    ),
    ("AlertReceived(CertificateExpired)", "the client certificate has expired (see REDIS_TLS_CERT)"),
    ("AlertReceived(", "the server rejected the client certificate or the TLS parameters"),
    ("PeerIncompatible", "the server has no TLS version in common with this program"),
    (
        "InvalidMessage(InvalidContentType)",
        "the server does not use TLS on this port (redis:// is without TLS)",
    ),
    ("InvalidDnsNameError", "the host in REDIS_URL can't be the name in a certificate"),
];

/// Returns the error of a failed connection, with or without TLS, with a readable text.
pub(super) fn explained(error: &Error, with_tls: bool) -> Error {
    let details = error.details();
    let hint = if with_tls {
        let cause = CAUSES.iter().find(|(name, _)| details.contains(name));
        if let Some((_, cause)) = cause.filter(|_| !details.contains("CloseNotify")) {
            return Error::new(ErrorKind::Tls, *cause);
        }
        // A server without TLS waits for the rest of a command.
        (*error.kind() == ErrorKind::Timeout)
            .then_some("the server may not use TLS (redis:// is without TLS)")
    } else {
        let lost =
            ["ConnectionReset", "BrokenPipe", "UnexpectedEof"].iter().any(|name| details.contains(name));
        lost.then_some("the server may require TLS (rediss:// is with TLS)")
    };
    let error = readable(error);
    match hint {
        Some(hint) => Error::new(error.kind().clone(), format!("{}: {hint}", error.details())),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use rustls::{AlertDescription, CertificateError};

    use super::*;

    fn text(error: io::Error, with_tls: bool) -> String {
        explained(&Error::from(error), with_tls).details().to_owned()
    }

    #[test]
    fn failed_handshakes_have_readable_causes() {
        let tls = |error: rustls::Error| text(io::Error::new(io::ErrorKind::InvalidData, error), true);
        assert_eq!(
            tls(CertificateError::UnknownIssuer.into()),
            "the server certificate is not signed by a trusted authority (see REDIS_TLS_CA)"
        );
        assert_eq!(
            tls(rustls::Error::AlertReceived(AlertDescription::CertificateRequired)),
            "the server requires a client certificate (see REDIS_TLS_CERT)"
        );
        assert_eq!(
            tls(rustls::Error::AlertReceived(AlertDescription::CertificateExpired)),
            "the client certificate has expired (see REDIS_TLS_CERT)"
        );
        assert_eq!(tls(CertificateError::Expired.into()), "the server certificate has expired");
    }

    #[test]
    fn a_lost_connection_without_tls_hints_at_tls() {
        assert_eq!(
            text(io::Error::from_raw_os_error(104), false),
            "Connection reset by peer (os error 104): the server may require TLS (rediss:// is with TLS)"
        );
        assert_eq!(text(io::Error::from_raw_os_error(111), false), "Connection refused (os error 111)");
        let silent = explained(&Error::new(ErrorKind::Timeout, "Request timed out."), true);
        assert_eq!(
            silent.details(),
            "no reply within the time limit (REDIS_TIMEOUT): the server may not use TLS (redis:// is without TLS)"
        );
    }
}
