//! Certificate authorities and their certificates, as files.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use devstack::{
    postgres_server::{PostgresOptions, PostgresServer},
    process::Lifetime,
    redis_server::{RedisOptions, RedisServer, RedisTls},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;

/// Names under which the servers of tests are reachable.
pub(crate) const HERE: [&str; 2] = ["localhost", "127.0.0.1"];

/// Certificate authority.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

/// A certificate with its key.
pub(crate) struct Issued {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Issued {
    pub(crate) fn certificate(&self) -> &str {
        text(&self.certificate)
    }

    pub(crate) fn key(&self) -> &str {
        text(&self.key)
    }

    /// Returns whether the text contains a part of the key.
    pub(crate) fn key_is_in(&self, text: &str) -> bool {
        let key = fs::read_to_string(&self.key).unwrap();
        key.lines().filter(|line| !line.starts_with("---")).any(|line| text.contains(line))
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut about = CertificateParams::new([]).unwrap();
        about.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        about.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(about, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, folder }
    }

    /// Certificate of the authority.
    pub(crate) fn file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Issues a certificate with a common name, for servers with these names.
    pub(crate) fn issue(&self, common_name: &str, names: &[&str]) -> Issued {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut about = CertificateParams::new(names).unwrap();
        about.distinguished_name.push(DnType::CommonName, common_name);
        let key = KeyPair::generate().unwrap();
        let signed = about.signed_by(&key, &self.issuer).unwrap();
        let file = |kind| self.folder.path().join(format!("{common_name}.{kind}"));
        let issued = Issued { certificate: file("pem"), key: file("key") };
        fs::write(&issued.certificate, signed.pem()).unwrap();
        fs::write(&issued.key, key.serialize_pem()).unwrap();
        issued
    }

    /// Acceptor of a server that requires client certificates of this authority.
    pub(crate) fn acceptor(&self, issued: &Issued) -> TlsAcceptor {
        let mut known = RootCertStore::empty();
        known.add(self.issuer.der().clone()).unwrap();
        let known = WebPkiClientVerifier::builder(Arc::new(known)).build().unwrap();
        let chain = CertificateDer::pem_file_iter(&issued.certificate).unwrap();
        let chain = chain.collect::<Result<_, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_file(&issued.key).unwrap();
        let config = ServerConfig::builder().with_client_cert_verifier(known);
        let mut config = config.with_single_cert(chain, key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }

    /// Starts a Redis that accepts only TLS.
    pub(crate) fn redis(
        &self,
        names: &[&str],
        require_client_certificates: bool,
        arguments: &[&str],
    ) -> RedisServer {
        self.redis_with(names, require_client_certificates, arguments, None)
    }

    /// Starts a Redis that accepts only TLS, with a writable configuration file.
    pub(crate) fn redis_with(
        &self,
        names: &[&str],
        require_client_certificates: bool,
        arguments: &[&str],
        config: Option<String>,
    ) -> RedisServer {
        let issued = self.issue("redis", names);
        let tls = RedisTls {
            ca: self.file(),
            certificate: issued.certificate,
            key: issued.key,
            require_client_certificates,
        };
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let options = RedisOptions { arguments, config, tls: Some(tls), ..RedisOptions::default() };
        RedisServer::start(options, Lifetime::Attached).unwrap()
    }

    /// Starts a Postgres with TLS and these lines of `pg_hba.conf` for the network.
    pub(crate) fn postgres(&self, names: &[&str], access_rules: &str) -> PostgresServer {
        let issued = self.issue("postgres", names);
        let read = |path: &Path| fs::read_to_string(path).unwrap();
        let files = [
            ("pg_hba.conf", format!("local all postgres trust\n{access_rules}\n")),
            ("ca.pem", read(&self.file())),
            ("server.pem", read(&issued.certificate)),
            ("server.key", read(&issued.key)),
        ];
        let settings = [
            ("fsync", "off"),
            ("ssl", "on"),
            ("ssl_ca_file", "ca.pem"),
            ("ssl_cert_file", "server.pem"),
            ("ssl_key_file", "server.key"),
        ];
        let options = PostgresOptions {
            settings: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            files: files.map(|(name, text)| (name.to_owned(), text)).into(),
            ..PostgresOptions::default()
        };
        PostgresServer::start(options, Lifetime::Attached).unwrap()
    }
}
