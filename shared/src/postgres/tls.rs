//! TLS to Postgres, with libpq's parameters in DATABASE_URL: `sslmode`, `sslrootcert`, `sslcert` and `sslkey`.
//!
//! Source: Postgres manual, "SSL Support" of libpq.

use std::path::Path;

use percent_encoding::percent_decode_str;
use tokio_postgres::{
    Config, Error,
    config::{Host, SslMode},
    error::SqlState,
};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::tls::{self, Identity, Trust};

/// ALPN protocol, by which a server or a proxy recognises Postgres.
const PROTOCOL: &[u8] = b"postgresql";

/// Encryption of connections.
#[derive(Clone)]
pub(super) enum Tls {
    Off,
    On(MakeRustlsConnect),
}

/// TLS parameters of a URL.
#[derive(Debug, Default)]
pub(super) struct Parameters {
    pub(super) mode: Option<String>,
    pub(super) root: Option<String>,
    pub(super) certificate: Option<String>,
    pub(super) key: Option<String>,
}

/// libpq's modes, except `allow`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl Parameters {
    /// Takes a parameter of a URL, unless it belongs to tokio-postgres.
    pub(super) fn takes(&mut self, parameter: &str) -> bool {
        let Some((name, value)) = parameter.split_once('=') else { return false };
        let place = match name {
            "sslmode" => &mut self.mode,
            "sslrootcert" => &mut self.root,
            "sslcert" => &mut self.certificate,
            "sslkey" => &mut self.key,
            _ => return false,
        };
        // libpq, too, ignores an empty value.
        let value = percent_decode_str(value).decode_utf8_lossy().into_owned();
        *place = Some(value).filter(|value| !value.is_empty());
        true
    }

    /// Reads the certificate files, and sets the mode of tokio-postgres.
    pub(super) fn apply(&self, config: &mut Config) -> Result<Tls, String> {
        let mode = self.mode(config)?;
        // Unix sockets have no TLS.
        let is_local = config.get_hosts().iter().all(|host| matches!(host, Host::Unix(_)));
        if mode == Mode::Disable || is_local {
            config.ssl_mode(SslMode::Disable);
            return Ok(Tls::Off);
        }
        config.ssl_mode(if mode == Mode::Prefer { SslMode::Prefer } else { SslMode::Require });
        let client = tls::client(self.trust(mode)?, self.identity()?);
        let mut client = client.map_err(|error| format!("cannot set up TLS: {error}"))?;
        client.alpn_protocols = vec![PROTOCOL.to_vec()];
        Ok(Tls::On(MakeRustlsConnect::new(client)))
    }

    fn mode(&self, config: &Config) -> Result<Mode, String> {
        let from_system = self.root.as_deref() == Some("system");
        let mode = match self.mode.as_deref() {
            None if from_system => Mode::VerifyFull,
            // A key-value connection string still contains the mode.
            None if config.get_ssl_mode() == SslMode::Require => Mode::Require,
            None if config.get_ssl_mode() == SslMode::Disable => Mode::Disable,
            None | Some("prefer") => Mode::Prefer,
            Some("disable") => Mode::Disable,
            Some("require") => Mode::Require,
            Some("verify-ca") => Mode::VerifyCa,
            Some("verify-full") => Mode::VerifyFull,
            Some(other) => {
                let expected = "disable, prefer, require, verify-ca or verify-full";
                // The end of a password can be here, after a question mark that was not escaped.
                let is_word = other.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
                let value = if is_word { format!(" '{other}'") } else { String::new() };
                return Err(format!("sslmode{value} is not valid; expected {expected}"));
            }
        };
        // A parameter that is silently ignored would give a false sense of security.
        let problem = if from_system && mode != Mode::VerifyFull {
            "sslrootcert=system is not safe with a weaker sslmode; expected sslmode=verify-full with it"
        } else if self.root.is_some() && matches!(mode, Mode::Disable | Mode::Prefer) {
            "sslrootcert has no effect with this sslmode; expected sslmode=require, verify-ca or verify-full with it"
        } else if mode == Mode::VerifyCa && self.root.is_none() {
            "sslmode=verify-ca requires a trusted authority; set sslrootcert to the path of a PEM file"
        } else if mode == Mode::Disable && (self.certificate.is_some() || self.key.is_some()) {
            "sslcert and sslkey have no effect with sslmode=disable; remove them or choose another sslmode"
        } else if self.certificate.is_some() != self.key.is_some() {
            "sslcert and sslkey require each other; set both or neither"
        } else {
            return Ok(mode);
        };
        Err(problem.to_owned())
    }

    fn trust(&self, mode: Mode) -> Result<Trust, String> {
        let roots = match self.root.as_deref().filter(|root| *root != "system") {
            Some(file) => {
                let roots = tls::roots_of_file("sslrootcert", Path::new(file));
                Some(roots.map_err(|error| format!("{}: {error}", error.setting))?)
            }
            None if mode == Mode::VerifyFull => {
                Some(tls::roots_of_system().map_err(|problem| format!("{problem}; set sslrootcert"))?)
            }
            None => None,
        };
        Ok(match roots {
            Some(roots) if mode == Mode::VerifyFull => Trust::ChainAndName(roots),
            Some(roots) => Trust::Chain(roots),
            None => Trust::Anything,
        })
    }

    fn identity(&self) -> Result<Option<Identity>, String> {
        let (Some(certificate), Some(key)) = (&self.certificate, &self.key) else { return Ok(None) };
        let read = Identity::of_files(("sslcert", Path::new(certificate)), ("sslkey", Path::new(key)));
        read.map(Some).map_err(|error| format!("{}: {error}", error.setting))
    }
}

/// Whether the server may accept the same connection without TLS.
pub(super) fn may_do_without(error: &Error) -> bool {
    error.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION) || tls::error_behind(error).is_some()
}

/// Whether TLS fails for a reason that a retry does not fix.
pub(super) fn is_refusal(error: &Error) -> bool {
    let has_none = || {
        let source = std::error::Error::source(error);
        // tokio-postgres has no type for this error.
        source.is_some_and(|source| source.to_string() == "server does not support TLS")
    };
    tls::error_behind(error).is_some_and(tls::is_refusal) || has_none()
}
