//! Keys that verify tokens: a single key, or a JSON Web Key Set (RFC 7517).

use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, jwk};
use serde::Deserialize;

use super::shared_secret;

const MAX_KEYS: usize = 1_000;

/// Keys, each with the algorithms that it is valid for.
#[derive(Debug, Default)]
pub(super) struct KeySet(Vec<Key>);

#[derive(Debug)]
struct Key {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    decoding: DecodingKey,
}

impl KeySet {
    /// Parses one public key in PEM format, or a secret, depending on the algorithms. All algorithms must be of one family.
    pub(super) fn single(content: &[u8], algorithms: &[Algorithm]) -> Result<Self, String> {
        let family = algorithms.first().map(|algorithm| algorithm.family()).ok_or("no algorithm is set")?;
        // The library accepts a private key here, and then rejects every token.
        let is_private = content.windows(b"PRIVATE KEY".len()).any(|words| words == b"PRIVATE KEY");
        if is_private && family != AlgorithmFamily::Hmac {
            return Err("the file contains a private key; expected the public key".to_owned());
        }
        let key = match family {
            AlgorithmFamily::Hmac => shared_secret::parse(content, algorithms)?,
            // The error of the library might quote a part of the file.
            AlgorithmFamily::Rsa => DecodingKey::from_rsa_pem(content).map_err(
                |_| "the file has no RSA public key in PEM format, which INGEST_JWT_ALGORITHMS requires",
            )?,
            AlgorithmFamily::Ec => DecodingKey::from_ec_pem(content).map_err(
                |_| "the file has no EC public key in PEM format, which INGEST_JWT_ALGORITHMS requires",
            )?,
            AlgorithmFamily::Ed => DecodingKey::from_ed_pem(content).map_err(
                |_| "the file has no Ed25519 public key in PEM format, which INGEST_JWT_ALGORITHMS requires",
            )?,
        };
        Ok(Self(vec![Key { id: None, algorithms: algorithms.to_vec(), decoding: key }]))
    }

    /// Parses a key set. Keys that no accepted algorithm can use are ignored.
    pub(super) fn parse(json: &[u8], algorithms: &[Algorithm]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<serde_json::Value>,
        }
        // The error of the library might quote a part of the file.
        let set: Set = serde_json::from_slice(json).map_err(|_| "not a JSON Web Key Set")?;
        let keys = set.keys.into_iter().filter_map(|key| usable(key, algorithms));
        let keys: Vec<Key> = keys.take(MAX_KEYS).collect();
        if keys.is_empty() {
            return Err("the key set has no key for an algorithm of INGEST_JWT_ALGORITHMS".to_owned());
        }
        Ok(Self(keys))
    }

    /// Returns the key with the token's `kid`. If the token or the key has no `kid`, returns the key if it is the only candidate.
    pub(super) fn find(&self, algorithm: Algorithm, id: Option<&str>) -> Option<DecodingKey> {
        let fitting = || self.0.iter().filter(|key| key.algorithms.contains(&algorithm));
        let named = id.and_then(|id| fitting().find(|key| key.id.as_deref() == Some(id)));
        let only = || {
            let mut anonymous = fitting().filter(|key| id.is_none() || key.id.is_none());
            anonymous.next().filter(|_| anonymous.next().is_none())
        };
        named.or_else(only).map(|key| key.decoding.clone())
    }
}

/// Returns a key of a set, or `None` if it has another purpose or other algorithms.
fn usable(key: serde_json::Value, algorithms: &[Algorithm]) -> Option<Key> {
    let jwk: jwk::Jwk = serde_json::from_value(key).ok()?;
    if matches!(jwk.algorithm, jwk::AlgorithmParameters::OctetKey(_)) {
        return None;
    }
    if jwk.common.public_key_use.as_ref().is_some_and(|of| *of != jwk::PublicKeyUse::Signature) {
        return None;
    }
    let decoding = DecodingKey::from_jwk(&jwk).ok()?;
    let own = jwk.common.key_algorithm.map(|algorithm| algorithm.to_string());
    let fits = |algorithm: &&Algorithm| {
        algorithm.family() == decoding.family()
            && own.as_ref().is_none_or(|own| own.parse() == Ok(**algorithm))
    };
    let algorithms: Vec<Algorithm> = algorithms.iter().filter(fits).copied().collect();
    (!algorithms.is_empty()).then_some(Key { id: jwk.common.key_id, algorithms, decoding })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED_KEY: &str =
        r#"{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo""#;

    fn set(keys: &[&str]) -> Result<KeySet, String> {
        KeySet::parse(format!("{{\"keys\": [{}]}}", keys.join(",")).as_bytes(), &[Algorithm::EdDSA])
    }

    #[test]
    fn a_key_is_found_by_its_id_or_as_the_only_candidate() {
        let a = format!("{ED_KEY}, \"kid\": \"a\"}}");
        let b = format!("{ED_KEY}, \"kid\": \"b\"}}");
        let found = |set: &KeySet, id| set.find(Algorithm::EdDSA, id).is_some();
        let two = set(&[&a, &b]).unwrap();
        assert!(found(&two, Some("a")) && found(&two, Some("b")));
        assert!(!found(&two, Some("c")) && !found(&two, None));
        assert!(found(&set(&[&a]).unwrap(), None));
        assert!(!found(&set(&[&a]).unwrap(), Some("b")), "it has another name");
        assert!(found(&set(&[&format!("{ED_KEY}}}")]).unwrap(), Some("b")), "it has no name");
        assert!(two.find(Algorithm::RS256, Some("a")).is_none(), "not for this algorithm");
    }

    #[test]
    fn keys_for_other_purposes_are_ignored() {
        let secret = r#"{"kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"}"#;
        let for_encryption = format!("{ED_KEY}, \"use\": \"enc\"}}");
        let for_another = format!("{ED_KEY}, \"alg\": \"RS256\"}}");
        for other in [secret, &for_encryption, &for_another, "{\"kty\": \"new\"}", "7"] {
            assert!(set(&[other]).is_err(), "{other}");
            assert_eq!(set(&[other, &format!("{ED_KEY}}}")]).unwrap().0.len(), 1);
        }
        assert!(KeySet::parse(b"{}", &[Algorithm::EdDSA]).is_err());
    }

    #[test]
    fn a_key_must_be_public_and_of_the_algorithm() {
        let single = |content: &[u8], algorithm| KeySet::single(content, &[algorithm]);
        let pem = b"-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n";
        assert!(single(b"-----BEGIN PRIVATE KEY-----", Algorithm::RS256).unwrap_err().contains("private"));
        assert!(single(pem, Algorithm::EdDSA).is_ok() && single(pem, Algorithm::RS256).is_err());
        assert!(single(pem, Algorithm::HS256).unwrap_err().contains("expected a random secret"));
    }
}
