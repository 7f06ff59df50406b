//! TLS of client connections.

use std::path::PathBuf;

use clap::Args;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use shared::{error_chain::one_line, runtime::reload::ReloadRequests, settings::SettingError};
use tokio_rustls::TlsAcceptor;

use crate::edge::hot_reload::HotReload;

/// Settings of the TLS server.
#[derive(Args, Debug)]
pub(crate) struct TlsArgs {
    /// Path of a PEM file with the certificate chain of the server; enables TLS
    ///
    /// Reloaded when it changes.
    #[arg(long, env = "INGEST_TLS_CERT", value_name = "FILE")]
    ingest_tls_cert: Option<PathBuf>,

    /// Path of a PEM file with the private key of the certificate
    ///
    /// Reloaded when it changes.
    #[arg(long, env = "INGEST_TLS_KEY", value_name = "FILE")]
    ingest_tls_key: Option<PathBuf>,
}

impl TlsArgs {
    pub(crate) fn check(&self) -> Result<(), SettingError> {
        match (&self.ingest_tls_cert, &self.ingest_tls_key) {
            (Some(_), None) => {
                Err(SettingError::new("INGEST_TLS_KEY", "required with INGEST_TLS_CERT; set both or neither"))
            }
            (None, Some(_)) => {
                Err(SettingError::new("INGEST_TLS_CERT", "required with INGEST_TLS_KEY; set both or neither"))
            }
            _ => Ok(()),
        }
    }
}

/// Certificate and key for new connections.
pub(crate) struct Tls(HotReload<ServerConfig>);

impl Tls {
    /// Loads the certificate and key. Returns `None` if no certificate is set.
    pub(crate) fn load(args: &TlsArgs, reload: &ReloadRequests) -> Result<Option<Self>, SettingError> {
        let (Some(cert), Some(key)) = (&args.ingest_tls_cert, &args.ingest_tls_key) else { return Ok(None) };
        let files = vec![("INGEST_TLS_CERT", cert.clone()), ("INGEST_TLS_KEY", key.clone())];
        let config = HotReload::load(files, reload, |contents| match contents {
            [cert, key] => server_config(cert, key),
            _ => Err("expected a certificate and a key".to_owned()),
        })?;
        Ok(Some(Self(config)))
    }

    /// Returns an acceptor with the current certificate.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.0.current())
    }
}

fn server_config(cert: &[u8], key: &[u8]) -> Result<ServerConfig, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(cert).collect();
    let certificates = certificates.ok().filter(|found| !found.is_empty());
    let certificates = certificates.ok_or("the file has no certificates in PEM format")?;
    // The error of the library might quote a part of the file.
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|_| "the file of INGEST_TLS_KEY has no private key in PEM format")?;
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(certificates, key);
    let mut config =
        config.map_err(|error| format!("cannot use the certificate and key: {}", one_line(&error)))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
