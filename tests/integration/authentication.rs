//! Authentication and authorization: valid and invalid tokens and API keys.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use devstack::{
    http_client::{HttpClient, Response},
    program::Program,
};
use http_body_util::{BodyExt, Full};
use hyper::{Request, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use nix::sys::signal::Signal;
use rcgen::{
    CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PKCS_RSA_SHA256, PublicKeyData,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::task::AbortOnDropHandle;

use crate::harness::{Setup, entries, eventually, problem, run};

const ISSUER: &str = "https://id.example.org/";
const AUDIENCE: &str = "likes";
const LIKE: &str = r#"{"user_id": 7, "post_id": 42}"#;

/// Issuer of tokens.
struct Signer {
    algorithm: Algorithm,
    key: KeyPair,
    id: Option<&'static str>,
}

impl Signer {
    fn new(algorithm: Algorithm) -> Self {
        let kind = match algorithm {
            Algorithm::ES256 => &PKCS_ECDSA_P256_SHA256,
            Algorithm::EdDSA => &PKCS_ED25519,
            _ => &PKCS_RSA_SHA256,
        };
        Self { algorithm, key: KeyPair::generate_for(kind).unwrap(), id: None }
    }

    fn named(id: &'static str) -> Self {
        Self { id: Some(id), ..Self::new(Algorithm::EdDSA) }
    }

    fn sign(&self, claims: &Value) -> String {
        let pem = self.key.serialize_pem();
        let key = match self.algorithm {
            Algorithm::ES256 => EncodingKey::from_ec_pem(pem.as_bytes()),
            Algorithm::EdDSA => EncodingKey::from_ed_pem(pem.as_bytes()),
            _ => EncodingKey::from_rsa_pem(pem.as_bytes()),
        };
        let mut header = Header::new(self.algorithm);
        header.kid = self.id.map(str::to_owned);
        encode(&header, claims, &key.unwrap()).unwrap()
    }

    /// Public key as a JSON Web Key. Only for Ed25519.
    fn jwk(&self) -> Value {
        json!({"kty": "OKP", "crv": "Ed25519", "use": "sig", "kid": self.id, "x": base64url(self.key.der_bytes())})
    }

    /// Writes the public key into a file.
    fn public_key_file(&self, folder: &Path) -> String {
        let file = folder.join(format!("{:?}.pem", self.algorithm));
        fs::write(&file, self.key.public_key_pem()).unwrap();
        file.to_str().unwrap().to_owned()
    }
}

fn base64url(bytes: &[u8]) -> String {
    let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let bits: Vec<u8> = bytes.iter().flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1)).collect();
    let letter = |six: &[u8]| {
        let value = six.iter().fold(0, |value, bit| value << 1 | usize::from(*bit));
        char::from(letters[value << (6 - six.len())])
    };
    bits.chunks(6).map(letter).collect()
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Valid claims of a user with changes. A null removes a claim.
fn claims(sub: &str, changes: &Value) -> Value {
    let mut claims = json!({"sub": sub, "iss": ISSUER, "aud": AUDIENCE, "exp": now_s() + 600});
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        } else {
            claims[name] = value.clone();
        }
    }
    claims
}

fn ingest_with_jwt(setup: &Setup, settings: &[(&str, &str)]) -> Program {
    let all = [("INGEST_AUTH", "jwt"), ("INGEST_JWT_ISSUER", ISSUER), ("INGEST_JWT_AUDIENCE", AUDIENCE)];
    setup.ingest(&all.iter().chain(settings).copied().collect::<Vec<_>>())
}

async fn send(ingest: &Program, path: &str, headers: &[(&str, &str)], body: &str) -> Response {
    let mut request = Request::post(path).header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::from(body.to_owned()))).unwrap();
    HttpClient::new(ingest.listen()).send(request).await.unwrap()
}

async fn like_with(ingest: &Program, token: &str) -> Response {
    send(ingest, "/likes", &[("authorization", &format!("Bearer {token}"))], LIKE).await
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_tokens_get_401_with_the_reason() {
    let setup = Setup::without_schema(&[]).await;
    let signer = Signer::new(Algorithm::RS256);
    let key_file = signer.public_key_file(setup.folder());
    let ingest = ingest_with_jwt(&setup, &[("INGEST_JWT_KEY_FILE", &key_file)]);
    let good = signer.sign(&claims("7", &json!({})));
    assert_eq!(like_with(&ingest, &good).await.status, 202);

    let with = |changes: Value| signer.sign(&claims("7", &changes));
    let (head, signature) = good.rsplit_once('.').unwrap();
    let (_, payload) = head.split_once('.').unwrap();
    let unsigned = |header: &str| format!("{}.{payload}.", base64url(header.as_bytes()));
    // A verifier that accepts the public key as an HMAC secret lets every client sign tokens.
    let public_key = EncodingKey::from_secret(signer.key.public_key_pem().as_bytes());
    let confused = encode(&Header::new(Algorithm::HS256), &claims("7", &json!({})), &public_key).unwrap();
    let other_payload = base64url(claims("8", &json!({})).to_string().as_bytes());
    for (what, token, why) in [
        ("expired", with(json!({"exp": now_s() - 31})), "expired"),
        ("of tomorrow", with(json!({"nbf": now_s() + 60})), "not valid yet"),
        ("for others", with(json!({"aud": "payments"})), "aud"),
        ("of others", with(json!({"iss": "https://evil.example.org/"})), "iss"),
        ("for ever", with(json!({"exp": null})), "exp"),
        ("for anybody", with(json!({"aud": null})), "aud"),
        ("from nobody", with(json!({"iss": null})), "iss"),
        ("unsigned", unsigned(r#"{"alg":"none","typ":"JWT"}"#), "not a JSON Web Token"),
        ("unsigned RS256", unsigned(r#"{"alg":"RS256","typ":"JWT"}"#), "not signed"),
        ("confused", confused, "not signed"),
        ("of another key", Signer::new(Algorithm::RS256).sign(&claims("7", &json!({}))), "not signed"),
        ("of another algorithm", Signer::new(Algorithm::ES256).sign(&claims("7", &json!({}))), "not signed"),
        ("changed", good.replacen(payload, &other_payload, 1), "not signed"),
        ("cut off", format!("{head}.{}", &signature[..signature.len() - 4]), "oken"),
        ("no token", "hunter2".to_owned(), "not a JSON Web Token"),
        ("too long", "x".repeat(9_000), "not a JSON Web Token"),
        ("empty", String::new(), "The Authorization header must"),
    ] {
        let response = like_with(&ingest, &token).await;
        assert_eq!(
            (response.status.as_u16(), problem(&response).as_str()),
            (401, "invalid-credential"),
            "{what}"
        );
        assert_eq!(response.headers["www-authenticate"], "Bearer error=\"invalid_token\"");
        let detail = String::from_utf8_lossy(&response.body).into_owned();
        assert!(detail.contains(why), "{what}: {detail}");
    }
    let bearer = format!("Bearer {good}");
    for headers in [
        &[("authorization", "Basic dTpw")][..],
        &[("authorization", good.as_str())],
        &[("authorization", &bearer), ("authorization", &bearer)],
    ] {
        let response = send(&ingest, "/likes", headers, LIKE).await;
        assert_eq!((response.status.as_u16(), problem(&response).as_str()), (401, "invalid-credential"));
    }
    let mut header = Header::new(Algorithm::RS256);
    header.crit = Some(vec!["b64".to_owned()]);
    let pem = signer.key.serialize_pem();
    let critical =
        encode(&header, &claims("7", &json!({})), &EncodingKey::from_rsa_pem(pem.as_bytes()).unwrap());
    assert_eq!(like_with(&ingest, &critical.unwrap()).await.status, 401, "critical header parameter");
    let odd = like_with(&ingest, &with(json!({"sub": 7}))).await;
    assert!(
        String::from_utf8_lossy(&odd.body).contains("sub, scope or scp is missing or malformed"),
        "{odd:?}"
    );
    for path in ["/likes", "/likes/batch"] {
        let response = send(&ingest, path, &[("x-api-key", &good)], "not read").await;
        assert_eq!((response.status.as_u16(), problem(&response).as_str()), (401, "no-credential"));
        assert_eq!(response.headers["www-authenticate"], "Bearer");
    }
    assert_eq!(entries(&setup.redis_client().await).await, 1, "only the valid like");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_token_writes_only_that_users_likes() {
    let setup = Setup::without_schema(&[]).await;
    let signer = Signer::new(Algorithm::ES256);
    let key_file = signer.public_key_file(setup.folder());
    let settings = [("INGEST_JWT_KEY_FILE", key_file.as_str()), ("INGEST_JWT_ALGORITHMS", "ES256")];
    let ingest = ingest_with_jwt(&setup, &settings);
    let batch = r#"[{"user_id": 7, "post_id": 1}, 8, {"user_id": "8", "post_id": 2}]"#;
    let own_batch = r#"[{"user_id": 7, "post_id": 1}, {"userId": "7", "post_id": 2}]"#;
    for (sub, scope, one, own, mixed) in [
        ("7", json!({}), 202, 202, 403),
        ("8", json!({}), 403, 403, 403),
        ("8", json!({"scope": "likes:write"}), 403, 403, 403),
        ("+7", json!({}), 403, 403, 403),
        ("007", json!({}), 403, 403, 403),
        ("7", json!({"sub": null}), 403, 403, 403),
        ("shop", json!({"scope": "openid likes:write-all"}), 202, 202, 202),
        ("shop", json!({"scp": ["likes:write-all"]}), 202, 202, 202),
    ] {
        let bearer = format!("bearer {}", signer.sign(&claims(sub, &scope)));
        let headers = [("authorization", bearer.as_str())];
        for (path, body, status) in
            [("/likes", LIKE, one), ("/likes/batch", own_batch, own), ("/likes/batch", batch, mixed)]
        {
            let response = send(&ingest, path, &headers, body).await;
            assert_eq!(response.status, status, "{sub} {scope} {body}");
            if status == 403 {
                assert_eq!(problem(&response), "other-user");
            }
        }
    }
    let response = send(
        &ingest,
        "/likes/batch",
        &[("authorization", &format!("Bearer {}", signer.sign(&claims("7", &json!({})))))],
        batch,
    )
    .await;
    let problem: Value = serde_json::from_slice(&response.body).unwrap();
    assert!(problem["detail"].as_str().unwrap().contains("Element at index 2"), "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn api_keys_are_reloaded_without_a_restart() {
    let setup = Setup::without_schema(&[]).await;
    let file = setup.folder().join("api-keys");
    // The SHA-256 of "abc", and of "hello".
    let abc = "shop ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n";
    let hello = "# new\nshop 2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824\n";
    fs::write(&file, abc).unwrap();
    let settings = [("INGEST_AUTH", "api-key"), ("INGEST_API_KEYS_FILE", file.to_str().unwrap())];
    let ingest = setup.ingest(&settings);
    let status = async |key: &str| send(&ingest, "/likes", &[("x-api-key", key)], LIKE).await.status.as_u16();
    assert_eq!(status("abc").await, 202);
    for wrong in ["abd", "ab", "", "abcc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"]
    {
        let response = send(&ingest, "/likes", &[("x-api-key", wrong)], LIKE).await;
        assert_eq!((response.status.as_u16(), problem(&response).as_str()), (401, "invalid-credential"));
    }
    let two = send(&ingest, "/likes", &[("x-api-key", "abc"), ("x-api-key", "abc")], LIKE).await;
    assert_eq!((two.status.as_u16(), two.headers["www-authenticate"].to_str().unwrap()), (401, "ApiKey"));
    let bearer = send(&ingest, "/likes", &[("authorization", "Bearer abc")], LIKE).await;
    assert_eq!(problem(&bearer), "no-credential", "tokens are not enabled");
    assert!(!String::from_utf8_lossy(&bearer.body).contains("Bearer"));

    fs::write(&file, "nonsense\n").unwrap();
    eventually("the invalid file is logged", async || ingest.log_text().contains("keeping the old contents"))
        .await;
    assert_eq!(status("abc").await, 202, "the old keys are kept");
    fs::write(&file, hello).unwrap();
    eventually("the new key is accepted", async || status("hello").await == 202).await;
    assert_eq!(status("abc").await, 401);
}

/// HTTP server of a key set.
struct KeyServer {
    address: SocketAddr,
    set: Arc<Mutex<String>>,
    _serving: AbortOnDropHandle<()>,
}

impl KeyServer {
    async fn start(keys: &[&Signer]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let set = Arc::new(Mutex::new(key_set(keys)));
        let served = Arc::clone(&set);
        let serving = async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let body = served.lock().unwrap().clone();
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let head =
                    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
                let _ = stream.write_all((head + &body).as_bytes()).await;
            }
        };
        Self { address, set, _serving: AbortOnDropHandle::new(tokio::spawn(serving)) }
    }

    fn url(&self) -> String {
        format!("http://{}/jwks.json", self.address)
    }

    fn serve(&self, keys: &[&Signer]) {
        *self.set.lock().unwrap() = key_set(keys);
    }
}

fn key_set(keys: &[&Signer]) -> String {
    json!({"keys": keys.iter().map(|signer| signer.jwk()).collect::<Vec<_>>()}).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_set_is_refetched_for_a_new_key_id_and_kept_if_that_fails() {
    let setup = Setup::without_schema(&[]).await;
    let (old, new) = (Signer::named("old"), Signer::named("new"));
    let server = KeyServer::start(&[&old]).await;
    let url = server.url();
    let settings = [
        ("INGEST_JWT_JWKS", url.as_str()),
        ("INGEST_JWT_ALGORITHMS", "RS256,EdDSA"),
        ("INGEST_JWT_JWKS_REFRESH", "1h"),
    ];
    let ingest = ingest_with_jwt(&setup, &settings);
    let status =
        async |signer: &Signer| like_with(&ingest, &signer.sign(&claims("7", &json!({})))).await.status;
    assert_eq!(status(&old).await, 202);
    assert_eq!(status(&new).await, 401);
    // The key set as an HMAC secret, and a different key with the same id.
    let set = EncodingKey::from_secret(key_set(&[&old]).as_bytes());
    let confused = encode(&Header::new(Algorithm::HS256), &claims("7", &json!({})), &set).unwrap();
    assert_eq!(like_with(&ingest, &confused).await.status, 401);
    assert_eq!(status(&Signer::named("old")).await, 401);

    server.serve(&[&new]);
    eventually("the new key is fetched", async || status(&new).await == 202).await;
    assert_eq!(status(&old).await, 401, "the key was revoked");
    *server.set.lock().unwrap() = "{}".to_owned();
    eventually("the failed fetch is logged", async || {
        let _ = status(&old).await;
        ingest.log_text().contains("keeping the old keys")
    })
    .await;
    assert_eq!(status(&new).await, 202);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_set_is_refetched_on_sighup() {
    let setup = Setup::without_schema(&[]).await;
    let (old, new) = (Signer::named("old"), Signer::named("new"));
    let server = KeyServer::start(&[&old]).await;
    let url = server.url();
    let settings = [
        ("INGEST_JWT_JWKS", url.as_str()),
        ("INGEST_JWT_ALGORITHMS", "EdDSA"),
        ("INGEST_JWT_JWKS_REFRESH", "1h"),
    ];
    let ingest = ingest_with_jwt(&setup, &settings);
    let status =
        async |signer: &Signer| like_with(&ingest, &signer.sign(&claims("7", &json!({})))).await.status;
    assert_eq!(status(&old).await, 202);
    server.serve(&[&new]);
    // A token of a known key triggers no fetch.
    assert_eq!(status(&old).await, 202);
    ingest.signal(Signal::SIGHUP);
    eventually("the old key is revoked", async || status(&old).await == 401).await;
    assert_eq!(status(&new).await, 202);
    eventually("the outcome is logged", async || ingest.log_text().contains("key set reloaded")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn key_set_files_and_shared_secrets_are_supported() {
    let setup = Setup::without_schema(&[]).await;
    let (set, secret) = (setup.folder().join("set.json"), setup.folder().join("secret"));
    let (one, other) = (Signer::named("one"), Signer::named("other"));
    fs::write(&set, key_set(&[&one, &other])).unwrap();
    let secret_text = "not-to-be-guessed-by-anybody-at-all";
    fs::write(&secret, format!("{secret_text}\n")).unwrap();
    let set = [("INGEST_JWT_JWKS", set.to_str().unwrap()), ("INGEST_JWT_ALGORITHMS", "EdDSA")];
    let with_set = ingest_with_jwt(&setup, &set);
    for signer in [&one, &other] {
        assert_eq!(like_with(&with_set, &signer.sign(&claims("7", &json!({})))).await.status, 202);
    }
    let secret = [("INGEST_JWT_KEY_FILE", secret.to_str().unwrap()), ("INGEST_JWT_ALGORITHMS", "HS256")];
    let with_secret = ingest_with_jwt(&setup, &secret);
    let key = EncodingKey::from_secret(secret_text.as_bytes());
    let token = encode(&Header::new(Algorithm::HS256), &claims("7", &json!({})), &key).unwrap();
    assert_eq!(like_with(&with_secret, &token).await.status, 202);
    let weaker = encode(&Header::new(Algorithm::HS384), &claims("7", &json!({})), &key).unwrap();
    assert_eq!(like_with(&with_secret, &weaker).await.status, 401, "another algorithm");
}

/// Otherwise everyone who has the public key could sign tokens.
#[tokio::test(flavor = "multi_thread")]
async fn public_key_material_is_refused_as_a_shared_secret() {
    let setup = Setup::without_schema(&[]).await;
    let file = setup.folder().join("secret");
    let signer = Signer::new(Algorithm::RS256);
    let certificate =
        CertificateParams::new(vec!["id".to_owned()]).unwrap().self_signed(&signer.key).unwrap();
    let with_text = format!("subject=CN = id\n\n{}", certificate.pem());
    let key = signer.key.subject_public_key_info();
    let settings = [
        ("INGEST_AUTH", "jwt"),
        ("INGEST_JWT_ISSUER", ISSUER),
        ("INGEST_JWT_AUDIENCE", AUDIENCE),
        ("INGEST_JWT_KEY_FILE", file.to_str().unwrap()),
        ("INGEST_JWT_ALGORITHMS", "HS256"),
    ];
    let jwk = Signer::named("one").jwk().to_string();
    for content in [with_text.as_bytes(), signer.key.public_key_pem().as_bytes(), &key, jwk.as_bytes()] {
        fs::write(&file, content).unwrap();
        let ended = run("ingest", &[], &settings);
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        assert!(
            ended.stderr.starts_with("error: INGEST_JWT_KEY_FILE: the file contains a key"),
            "{}",
            ended.stderr
        );
    }

    fs::write(&file, "not-to-be-guessed-by-anybody-at-all").unwrap();
    let ingest = ingest_with_jwt(&setup, &settings[3..]);
    fs::write(&file, &with_text).unwrap();
    eventually("the certificate is refused", async || ingest.log_text().contains("keeping the old contents"))
        .await;
    let forged = EncodingKey::from_secret(with_text.trim().as_bytes());
    let forged = encode(&Header::new(Algorithm::HS256), &claims("7", &json!({})), &forged).unwrap();
    assert_eq!(like_with(&ingest, &forged).await.status, 401);
}

/// Sends a like over HTTP/2.
async fn like_by_http2(address: SocketAddr, header: &str, value: &str) -> u16 {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) =
        http2::handshake::<_, _, Full<Bytes>>(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let request = Request::post(format!("http://{address}/likes"))
        .header("content-type", "application/json")
        .header(header, value)
        .body(Full::new(Bytes::from(LIKE)))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    response.into_body().collect().await.unwrap();
    status
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_never_logged() {
    let setup = Setup::without_schema(&[]).await;
    let (keys, secret) = (setup.folder().join("api-keys"), setup.folder().join("secret"));
    let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    fs::write(&keys, format!("shop {hash}\n")).unwrap();
    let secret_text = "hunter2-hunter2-hunter2-hunter2-hunter2";
    fs::write(&secret, secret_text).unwrap();
    let settings = [
        ("INGEST_AUTH", "jwt,api-key"),
        ("INGEST_JWT_ISSUER", ISSUER),
        ("INGEST_JWT_AUDIENCE", AUDIENCE),
        ("INGEST_JWT_KEY_FILE", secret.to_str().unwrap()),
        ("INGEST_JWT_ALGORITHMS", "HS256"),
        ("INGEST_API_KEYS_FILE", keys.to_str().unwrap()),
        ("RUST_LOG", "trace"),
    ];
    let ingest = setup.ingest(&settings);
    let key = EncodingKey::from_secret(secret_text.as_bytes());
    let sign = |changes: Value| encode(&Header::new(Algorithm::HS256), &claims("7", &changes), &key).unwrap();
    let tokens = [sign(json!({})), sign(json!({"exp": 1})), sign(json!({})) + "x", "hunter3".to_owned()];
    for (token, status) in tokens.iter().zip([202, 401, 401, 401]) {
        let bearer = format!("Bearer {token}");
        assert_eq!(like_with(&ingest, token).await.status, status);
        assert_eq!(like_by_http2(ingest.listen(), "authorization", &bearer).await, status);
    }
    // An invalid key is secret, too: it may be valid for another service.
    for (key, status) in [("abc", 202), ("hunter4", 401)] {
        assert_eq!(send(&ingest, "/likes", &[("x-api-key", key)], LIKE).await.status, status);
        assert_eq!(like_by_http2(ingest.listen(), "x-api-key", key).await, status);
    }
    let log = ingest.log_text();
    assert!(log.contains("TRACE"), "the log level is trace");
    assert!(log.contains("invalid-credential"));
    for token in &tokens {
        for part in token.split('.').skip(1).chain([token.as_str()]) {
            assert!(!log.contains(part), "{part} is in the log");
        }
    }
    for secret in [secret_text, "hunter", hash, "\"abc\"", "x-api-key: abc"] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn disabled_authentication_beyond_loopback_logs_a_warning() {
    let setup = Setup::without_schema(&[]).await;
    let warning = "authentication is off on a non-loopback address";
    let warns = |listen: &str| setup.ingest(&[("INGEST_LISTEN", listen)]).log_text().contains(warning);
    assert!(!warns("127.0.0.1:0"));
    assert!(warns("0.0.0.0:0"));
}

#[test]
fn incomplete_authentication_settings_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        fs::write(folder.path().join(name), content).unwrap();
        folder.path().join(name).to_str().unwrap().to_owned()
    };
    let (short, nonsense) = (file("short", "hunter2"), file("nonsense", "hunter2 hunter2"));
    let jwt = [("INGEST_AUTH", "jwt"), ("INGEST_JWT_ISSUER", ISSUER), ("INGEST_JWT_AUDIENCE", AUDIENCE)];
    let with = |more: &[(&'static str, &'static str)]| jwt.iter().chain(more).copied().collect::<Vec<_>>();
    let (short, nonsense): (&'static str, &'static str) = (short.leak(), nonsense.leak());
    for (settings, setting) in [
        (vec![("INGEST_AUTH", "off,jwt")], "INGEST_AUTH"),
        (vec![("INGEST_AUTH", "password")], "INGEST_AUTH"),
        (vec![("INGEST_AUTH", "api-key")], "INGEST_API_KEYS_FILE"),
        (vec![("INGEST_API_KEYS_FILE", nonsense)], "INGEST_API_KEYS_FILE"),
        (vec![("INGEST_AUTH", "api-key"), ("INGEST_API_KEYS_FILE", nonsense)], "INGEST_API_KEYS_FILE"),
        (vec![("INGEST_AUTH", "api-key"), ("INGEST_API_KEYS_FILE", "nowhere")], "INGEST_API_KEYS_FILE"),
        (vec![("INGEST_JWT_ISSUER", ISSUER)], "INGEST_JWT_ISSUER"),
        (with(&[]), "INGEST_JWT_KEY_FILE"),
        (with(&[("INGEST_JWT_KEY_FILE", short), ("INGEST_JWT_JWKS", short)]), "INGEST_JWT_KEY_FILE"),
        (with(&[("INGEST_JWT_KEY_FILE", short)]), "INGEST_JWT_KEY_FILE"),
        (with(&[("INGEST_JWT_KEY_FILE", short), ("INGEST_JWT_ALGORITHMS", "HS256")]), "INGEST_JWT_KEY_FILE"),
        (with(&[("INGEST_JWT_KEY_FILE", short), ("INGEST_JWT_ALGORITHMS", "none")]), "INGEST_JWT_ALGORITHMS"),
        (
            with(&[("INGEST_JWT_KEY_FILE", short), ("INGEST_JWT_ALGORITHMS", "RS256,HS256")]),
            "INGEST_JWT_ALGORITHMS",
        ),
        (
            with(&[("INGEST_JWT_JWKS", "https://x/"), ("INGEST_JWT_ALGORITHMS", "HS256")]),
            "INGEST_JWT_ALGORITHMS",
        ),
        (with(&[("INGEST_JWT_JWKS", "http://id.example.org/")]), "INGEST_JWT_JWKS"),
        (with(&[("INGEST_JWT_JWKS", nonsense)]), "INGEST_JWT_JWKS"),
        (with(&[("INGEST_JWT_JWKS", nonsense), ("INGEST_JWT_JWKS_CA", nonsense)]), "INGEST_JWT_JWKS_CA"),
        (with(&[("INGEST_JWT_JWKS", "https://me:hunter2@id.example.org/")]), "INGEST_JWT_JWKS"),
        (
            with(&[("INGEST_JWT_KEY_FILE", short), ("INGEST_JWT_SERVICE_SCOPE", "")]),
            "INGEST_JWT_SERVICE_SCOPE",
        ),
        (with(&[("INGEST_JWT_KEY_FILE", short), ("INGEST_JWT_LEEWAY", "1h")]), "INGEST_JWT_LEEWAY"),
        (vec![("INGEST_AUTH", "jwt"), ("INGEST_JWT_KEY_FILE", short)], "INGEST_JWT_ISSUER"),
    ] {
        let listen = [("INGEST_LISTEN", "127.0.0.1:0"), ("INGEST_ADMIN_LISTEN", "127.0.0.1:0")];
        let settings: Vec<_> = listen.iter().copied().chain(settings).collect();
        let ended = run("ingest", &[], &settings);
        assert_eq!(ended.code, Some(2), "{settings:?}: {}", ended.stderr);
        let last = ended.stderr.lines().last().unwrap();
        assert!(last.starts_with(&format!("error: {setting}: ")), "{settings:?}: {last}");
        assert!(!ended.stderr.contains("hunter2"), "{last}");
    }
}
