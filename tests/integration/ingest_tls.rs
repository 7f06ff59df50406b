//! TLS between clients and ingest.

use std::{fs, net::SocketAddr, path::PathBuf, sync::Arc};

use bytes::Bytes;
use devstack::{http_client::HttpClient, program::Program};
use http_body_util::Full;
use hyper::{
    Request, Version,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use nix::sys::signal::Signal;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::harness::{Setup, eventually, run};

/// Self-signed certificate for localhost and its key, as files.
struct Certificate {
    made: CertifiedKey<rcgen::KeyPair>,
    cert: PathBuf,
    key: PathBuf,
}

impl Certificate {
    fn new(setup: &Setup) -> Self {
        let made = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (cert, key) = (setup.folder().join("tls.crt"), setup.folder().join("tls.key"));
        let certificate = Self { made, cert, key };
        certificate.write();
        certificate
    }

    fn write(&self) {
        fs::write(&self.cert, self.made.cert.pem()).unwrap();
        fs::write(&self.key, self.made.signing_key.serialize_pem()).unwrap();
    }

    fn settings(&self) -> [(&str, &str); 2] {
        [("INGEST_TLS_CERT", self.cert.to_str().unwrap()), ("INGEST_TLS_KEY", self.key.to_str().unwrap())]
    }

    /// Connects as a client that trusts only this certificate.
    async fn connect(&self, address: SocketAddr, protocol: &[u8]) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.made.cert.der().clone()).unwrap();
        let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![protocol.to_vec()];
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    async fn is_seen_at(&self, ingest: &Program) -> bool {
        self.connect(ingest.listen(), b"http/1.1").await.is_ok()
    }
}

fn like(version: Version) -> Request<Full<Bytes>> {
    let body = Full::new(Bytes::from(r#"{"user_id": 7, "post_id": 42}"#));
    let request = Request::post("https://localhost/likes").version(version);
    request.header("host", "localhost").header("content-type", "application/json").body(body).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn http_1_and_2_are_served_over_tls_and_plain_http_is_refused() {
    let setup = Setup::without_schema(&[]).await;
    let certificate = Certificate::new(&setup);
    let ingest = setup.ingest(&certificate.settings());

    let stream = certificate.connect(ingest.listen(), b"http/1.1").await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    assert_eq!(sender.send_request(like(Version::HTTP_11)).await.unwrap().status(), 202);

    let stream = certificate.connect(ingest.listen(), b"h2").await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    assert_eq!(sender.send_request(like(Version::HTTP_2)).await.unwrap().status(), 202);

    assert!(HttpClient::new(ingest.listen()).post_like(7, 42).await.is_err(), "without TLS");
    let stranger = Certificate::new(&setup);
    assert!(!stranger.is_seen_at(&ingest).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_valid_certificate_is_reloaded_and_an_invalid_one_is_ignored() {
    let setup = Setup::without_schema(&[]).await;
    let old = Certificate::new(&setup);
    let ingest = setup.ingest(&old.settings());
    assert!(old.is_seen_at(&ingest).await);
    fs::write(&old.cert, "nonsense").unwrap();
    eventually("the invalid certificate is logged", async || {
        ingest.log_text().contains("keeping the old contents")
    })
    .await;
    assert!(old.is_seen_at(&ingest).await);
    let new = Certificate::new(&setup);
    eventually("the new certificate is served", async || new.is_seen_at(&ingest).await).await;
    assert!(!old.is_seen_at(&ingest).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_reloaded_on_sighup() {
    let setup = Setup::without_schema(&[]).await;
    let old = Certificate::new(&setup);
    let ingest = setup.ingest(&old.settings());
    fs::write(&old.cert, "nonsense").unwrap();
    let refusals = || ingest.log_text().matches("keeping the old contents").count();
    eventually("the invalid certificate is logged", async || refusals() == 1).await;
    ingest.signal(Signal::SIGHUP);
    eventually("the invalid certificate is logged again", async || refusals() == 2).await;
    assert!(old.is_seen_at(&ingest).await);
    let new = Certificate::new(&setup);
    ingest.signal(Signal::SIGHUP);
    eventually("the new certificate is served", async || new.is_seen_at(&ingest).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn incomplete_or_mismatched_certificates_are_refused() {
    let setup = Setup::without_schema(&[]).await;
    let certificate = Certificate::new(&setup);
    let other_key = setup.folder().join("other.key");
    fs::write(&other_key, rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let (cert, key) = (certificate.cert.to_str().unwrap(), certificate.key.to_str().unwrap());
    for (cert, key, setting) in [
        (Some(cert), None, "INGEST_TLS_KEY"),
        (None, Some(key), "INGEST_TLS_CERT"),
        (Some("nowhere"), Some(key), "INGEST_TLS_CERT"),
        (Some(cert), Some("nowhere"), "INGEST_TLS_KEY"),
        (Some(key), Some(key), "INGEST_TLS_CERT"),
        (Some(cert), Some(cert), "INGEST_TLS_KEY"),
        (Some(cert), other_key.to_str(), "INGEST_TLS_CERT"),
    ] {
        let listen = [("INGEST_LISTEN", "127.0.0.1:0"), ("INGEST_ADMIN_LISTEN", "127.0.0.1:0")];
        let files = [("INGEST_TLS_CERT", cert), ("INGEST_TLS_KEY", key)];
        let files = files.into_iter().filter_map(|(setting, file)| Some((setting, file?)));
        let ended = run("ingest", &[], &listen.into_iter().chain(files).collect::<Vec<_>>());
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        let last = ended.stderr.lines().last().unwrap();
        assert!(last.starts_with("error: ") && last.contains(setting), "{setting}: {last}");
        assert!(!ended.stderr.contains("PRIVATE KEY"), "{last}");
    }
}
