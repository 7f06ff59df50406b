//! The secret of HS256, HS384 and HS512. If it were a public key, everyone could sign tokens.

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use jsonwebtoken::{Algorithm, DecodingKey};

/// Parts of texts with keys, without white space.
const TEXTS: [(&str, &[&str]); 3] = [
    ("PEM format", &["----BEGIN", "-----END", "PUBLICKEY", "PRIVATEKEY"]),
    ("JSON format (JWK)", &["\"kty\"", "\"x5c\""]),
    ("SSH format", &["ssh-rsa", "ssh-dss", "ssh-ed25519", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-"]),
];

/// Parts of keys and certificates in DER format: object identifiers. Sources: RFC 8017, 5480 and 8410.
const OBJECT_IDENTIFIERS: [&[u8]; 4] = [
    // pkcs-1: RSA.
    &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01],
    // ansi-X9-62: elliptic curves.
    &[0x2A, 0x86, 0x48, 0xCE, 0x3D],
    // Ed25519 and Ed448, with their tags and lengths.
    &[0x06, 0x03, 0x2B, 0x65, 0x70],
    &[0x06, 0x03, 0x2B, 0x65, 0x71],
];

/// Decodes every whole group of four letters.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Parses a secret. It must not be shorter than the hash. Source: RFC 7518, section 3.2.
pub(super) fn parse(content: &[u8], algorithms: &[Algorithm]) -> Result<DecodingKey, String> {
    if let Some(format) = key_format(content) {
        return Err(format!(
            "the file contains a key or a certificate in {format}, which others may know; expected a random secret, which \
             INGEST_JWT_ALGORITHMS requires"
        ));
    }
    let secret = without_line_break(content);
    let hash_bytes = algorithms.iter().map(|algorithm| match algorithm {
        Algorithm::HS512 => 64,
        Algorithm::HS384 => 48,
        _ => 32,
    });
    let at_least = hash_bytes.max().unwrap_or(64);
    if secret.len() < at_least {
        return Err(format!("the secret has {} bytes; expected at least {at_least}", secret.len()));
    }
    Ok(DecodingKey::from_secret(secret))
}

/// Removes the line break at the end of a text. In random bytes it would be a part of the secret.
fn without_line_break(content: &[u8]) -> &[u8] {
    let Ok(text) = str::from_utf8(content) else { return content };
    let line = text.strip_suffix('\n').map(|line| line.strip_suffix('\r').unwrap_or(line));
    line.unwrap_or(text).as_bytes()
}

/// Returns the format of a key or a certificate somewhere in the content, also if its lines are broken or it is in UTF-16 or
/// Base64. By chance, less than one in a hundred million random secrets has such a part.
fn key_format(content: &[u8]) -> Option<&'static str> {
    let dense: Vec<u8> =
        content.iter().copied().filter(|byte| !byte.is_ascii_whitespace() && *byte != 0).collect();
    let own = text_format(&dense).or_else(|| der_format(content));
    own.or_else(|| {
        let mut runs = dense.split(|byte| !is_base64(*byte));
        runs.find_map(|run| (0..4).find_map(|at| decoded_format(run.get(at..)?)))
    })
}

fn text_format(dense: &[u8]) -> Option<&'static str> {
    let has = |part: &&str| contains(dense, part.as_bytes());
    TEXTS.iter().find(|(_, parts)| parts.iter().any(has)).map(|(format, _)| *format)
}

fn der_format(bytes: &[u8]) -> Option<&'static str> {
    let has = OBJECT_IDENTIFIERS.iter().any(|part| contains(bytes, part));
    // An RSA public key without an identifier: a sequence of two positive numbers, the first with 128 bytes or more.
    let is_rsa = |part: &[u8]| {
        matches!(part, [0x30, 0x82, _, _, 0x02, 0x82, _, _, 0x00] | [0x30, 0x81, _, 0x02, 0x81, _, 0x00, ..])
    };
    let has = has || bytes.windows(9).any(is_rsa);
    has.then_some("DER format")
}

/// Looks into Base64, with the letters of both alphabets.
fn decoded_format(run: &[u8]) -> Option<&'static str> {
    let standard = |letter: &u8| match letter {
        b'-' => b'+',
        b'_' => b'/',
        other => *other,
    };
    let groups: Vec<u8> = run[..run.len() - run.len() % 4].iter().map(standard).collect();
    let decoded = BASE64.decode(groups).ok()?;
    text_format(&decoded).or_else(|| der_format(&decoded))
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"+/-_".contains(&byte)
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::{
        encoding::{AsDer, PublicKeyX509Der},
        rsa::{KeyPair as RsaKeyPair, KeySize},
        signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair},
    };
    use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
    use proptest::prelude::*;

    use super::*;

    /// A certificate with an EC key, as openssl makes it.
    const CERTIFICATE: &str = "MIIBcDCCARegAwIBAgIUV1TWVV+rzafymQwaDUNbajT1QXwwCgYIKoZIzj0EAwIwDTELMAkGA1UEAwwCaWQwIBcNMjYxMTI4\
        MDU0MjUyWhgPMjEyNjExMDQwNTQyNTJaMA0xCzAJBgNVBAMMAmlkMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEJCMsl0NNLmTpZLzEP3Bhixi+YFMm\
        cFpwAqRhRSsczhPQNXV+nBUFyI7etaurVo1t5DWwb4mVNT6hCRfoltzDEKNTMFEwHQYDVR0OBBYEFCgcNttG2/Ud0hzQmI9wqqmrvdGcMB8GA1UdIwQY\
        MBaAFCgcNttG2/Ud0hzQmI9wqqmrvdGcMA8GA1UdEwEB/wQFMAMBAf8wCgYIKoZIzj0EAwIDRwAwRAIgDNdMaleVp151mBmWzOJqFofIkkMNXVtaymMv\
        SDe0+yYCIFEW37XdjRHYrKtI8u/x88tOnPY7GqQQHUAcqYzfAu76";

    const SSH: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIJ54JbDFuU+V0jryfy9GVu+tyWHhrPYJJn2XDwIHY6n5";

    fn refused(content: &[u8]) -> bool {
        match parse(content, &[Algorithm::HS256]) {
            Ok(_) => false,
            Err(why) => why.contains("expected a random secret"),
        }
    }

    /// Public keys and a certificate in DER format.
    fn public_keys() -> Vec<Vec<u8>> {
        let x509 = |der: PublicKeyX509Der| der.as_ref().to_vec();
        let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let ec = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let ed = Ed25519KeyPair::generate().unwrap();
        let rsa_1024 = "MIGJAoGBAKyvg/dWCsoW6o0RmRhgHiVRuGTzY10IeREkrtLs/QM9FBWX94KyJlUnOpE6Qo8CmzkzfR3gB0NGQDGowNnMqBGqUWI6gA2x\
            h4+UCtCbVSBjdMaZOj2u55qawDNYQu4ZqTYzcL5Xlfrh2IG4PACt2YYWo0xAukg4ee5TLgneybTHAgMBAAE=";
        vec![
            BASE64_STANDARD.decode(rsa_1024).unwrap(),
            x509(rsa.public_key().as_der().unwrap()),
            rsa.public_key().as_ref().to_vec(),
            x509(ec.public_key().as_der().unwrap()),
            x509(ed.public_key().as_der().unwrap()),
            BASE64_STANDARD.decode(CERTIFICATE).unwrap(),
        ]
    }

    #[test]
    fn public_keys_and_certificates_are_refused_in_every_form() {
        for der in public_keys() {
            let base64 = BASE64_STANDARD.encode(&der);
            let lines: Vec<&str> =
                base64.as_bytes().chunks(64).map(|line| str::from_utf8(line).unwrap()).collect();
            let lines = lines.join("\n");
            let pem = format!("-----BEGIN X-----\n{lines}\n-----END X-----\n");
            let utf_16 = pem.encode_utf16().flat_map(u16::to_le_bytes).collect();
            for form in [
                der.clone(),
                [&b"key: "[..], &der[..]].concat(),
                pem.clone().into_bytes(),
                format!("subject=CN = id\n\n{pem}").into_bytes(),
                utf_16,
                BASE64_STANDARD.encode(&pem).into_bytes(),
                format!("the key\n{lines}\n").into_bytes(),
                lines.replace('\n', "\r\n").into_bytes(),
                format!("\"{}\"", lines.replace('\n', "\\n")).into_bytes(),
                format!("x{}", BASE64_URL_SAFE_NO_PAD.encode(&der)).into_bytes(),
            ] {
                assert!(refused(&form), "{}", String::from_utf8_lossy(&form));
            }
        }
    }

    #[test]
    fn keys_of_other_formats_are_refused() {
        let jwk = r#"{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
        for form in [
            jwk.to_owned(),
            format!("{{\n \"keys\" : [\n{jwk}]}}"),
            BASE64_STANDARD.encode(jwk),
            format!("{{\"alg\": \"ES256\", \"x5c\": [\"{CERTIFICATE}\"]}}"),
            format!("ssh-ed25519 {SSH} me@host"),
            format!("from=\"*\" ssh-ed25519 {SSH}"),
            SSH.to_owned(),
            format!("---- BEGIN SSH2 PUBLIC KEY ----\n{SSH}\n---- END SSH2 PUBLIC KEY ----\n"),
            "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTY".to_owned(),
            "-----BEGIN PRIVATE KEY-----\nMC4CAQAw".to_owned(),
        ] {
            assert!(refused(form.as_bytes()), "{form}");
        }
    }

    #[test]
    fn short_secrets_are_refused() {
        let accepted = |bytes, algorithm| parse(&vec![b'x'; bytes], &[algorithm]).is_ok();
        assert!(accepted(32, Algorithm::HS256) && !accepted(31, Algorithm::HS256));
        assert!(accepted(64, Algorithm::HS512) && !accepted(63, Algorithm::HS512));
    }

    #[test]
    fn one_line_break_at_the_end_of_a_text_is_removed() {
        assert_eq!(without_line_break(b"secret\r\n"), b"secret");
        assert_eq!(without_line_break(b" secret\n\n"), b" secret\n");
        assert_eq!(without_line_break(b"\xFF secret\n"), b"\xFF secret\n");
        assert_eq!(without_line_break(b" \xFF"), b" \xFF");
    }

    proptest! {
        #[test]
        fn random_secrets_are_accepted(secret in prop::collection::vec(any::<u8>(), 32..=64)) {
            let hex = secret.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
            for form in [
                secret.clone(),
                BASE64_STANDARD.encode(&secret).into_bytes(),
                format!("{}\n", BASE64_URL_SAFE_NO_PAD.encode(&secret)).into_bytes(),
                hex.into_bytes(),
            ] {
                prop_assert!(parse(&form, &[Algorithm::HS256]).is_ok(), "{:?}", form);
            }
        }
    }
}
