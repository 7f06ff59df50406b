use proptest::prelude::*;

use crate::wire::codec::*;
use crate::wire::like::MAX_CREATED_AT_US;

fn like(user_id: i64, post_id: i64, created_at_us: i64) -> Like {
    Like::new(user_id.into(), post_id.into(), created_at_us.into()).unwrap()
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

#[derive(Deserialize)]
struct Vector {
    payload_hex: String,
    likes: Vec<[String; 3]>,
}

/// `vectors/make.py` generates the vectors, with another MessagePack library.
#[test]
fn matches_the_vectors_of_another_implementation() {
    let vectors: Vec<Vector> = serde_json::from_str(include_str!("../../../vectors/codec.json")).unwrap();
    assert!(vectors.len() >= 4);
    for vector in vectors {
        let likes: Vec<Like> = vector
            .likes
            .iter()
            .map(|[user, post, at]| like(user.parse().unwrap(), post.parse().unwrap(), at.parse().unwrap()))
            .collect();
        let payload = hex(&vector.payload_hex);
        let decoded = decode(&payload).unwrap();
        assert_eq!(decoded.likes, likes);
        assert_eq!(decoded.bad, 0);
        assert_eq!(encode(&likes), payload);
    }
}

#[test]
fn a_bad_like_does_not_affect_its_neighbours() {
    // [1, [7,8,9], <bad>, [10,11,12]]
    let cases: [(&str, &[u8]); 9] = [
        ("user_id of 0", &[0x93, 0x00, 0x02, 0x03]),
        ("negative post_id", &[0x93, 0x01, 0xff, 0x03]),
        ("user_id over i64", &[0x93, 0xcf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02, 0x03]),
        ("two elements", &[0x92, 0x01, 0x02]),
        ("a string for an id", &[0x93, 0xa1, b'x', 0x02, 0x03]),
        ("an array for an id", &[0x93, 0x91, 0x01, 0x02, 0x03]),
        ("a map", &[0x81, 0x01, 0x02]),
        ("nil", &[0xc0]),
        ("an extension", &[0xd4, 0x05, 0x00]),
    ];
    for (case, bad) in cases {
        let mut payload = vec![0x94, 0x01, 0x93, 7, 8, 9];
        payload.extend_from_slice(bad);
        payload.extend_from_slice(&[0x93, 10, 11, 12]);
        let decoded = decode(&payload).unwrap_or_else(|e| panic!("{case}: {e}"));
        assert_eq!(decoded.likes, [like(7, 8, 9), like(10, 11, 12)], "{case}");
        assert_eq!(decoded.bad, 1, "{case}");
        let found: Vec<BadLike> = bad_likes(&payload).collect();
        assert_eq!((found.len(), found[0].index), (1, 1), "{case}");
        assert_eq!(&payload[found[0].bytes.clone()], bad, "{case}");

        let alone = decode(&frame(1, bad)).unwrap();
        assert_eq!((alone.likes.len(), alone.bad), (0, 1), "{case}");
    }
}

#[test]
fn trailing_elements_of_a_like_are_ignored() {
    let payload = [0x92, 0x01, 0x95, 7, 8, 9, 0xa1, b'x', 0x91, 0x80];
    assert_eq!(decode(&payload).unwrap().likes, [like(7, 8, 9)]);
}

#[test]
fn malformed_payloads_are_refused_as_a_whole() {
    let cases: [(&str, &[u8]); 9] = [
        ("nothing", &[]),
        ("not an array", &[0x01]),
        ("an empty array", &[0x90]),
        ("no like", &[0x91, 0x01]),
        ("a version that is not an integer", &[0x92, 0xa1, b'1', 0x93, 7, 8, 9]),
        ("one like too few", &[0x93, 0x01, 0x93, 7, 8, 9]),
        ("cut in a like", &[0x92, 0x01, 0x93, 7, 8]),
        ("trailing bytes", &[0x92, 0x01, 0x93, 7, 8, 9, 0x00]),
        ("a length of four thousand million likes", &[0xdd, 0xff, 0xff, 0xff, 0xff, 0x01]),
    ];
    for (case, payload) in cases {
        let refused = decode(payload);
        assert!(matches!(refused, Err(DecodeError::Malformed(_))), "{case}: {refused:?}");
    }
    let deep: Vec<u8> = [0x92, 0x01].into_iter().chain(std::iter::repeat_n(0x91, 100_000)).collect();
    assert!(matches!(decode(&deep), Err(DecodeError::Malformed(_))));
}

#[test]
fn an_unknown_version_is_refused() {
    let payload = [0x92, 0x02, 0x93, 7, 8, 9];
    assert!(matches!(decode(&payload), Err(DecodeError::UnknownVersion(2))));
}

#[test]
fn good_likes_are_located_with_their_original_bytes() {
    // [1, [7, 8, 9], [0, 8, 9], [7, 8, 10, "later"]]
    let payload = b"\x94\x01\x93\x07\x08\x09\x93\x00\x08\x09\x94\x07\x08\x0a\xa5later";
    let found: Vec<_> = locate(payload).map(|l| (l.index, l.like, &payload[l.bytes])).collect();
    let expected = [
        (0, like(7, 8, 9), &b"\x93\x07\x08\x09"[..]),
        (2, like(7, 8, 10), &b"\x94\x07\x08\x0a\xa5later"[..]),
    ];
    assert_eq!(found, expected);
    assert!(locate(b"\xc1").next().is_none());
}

#[test]
fn frames_keep_the_original_bytes_of_likes() {
    let payload = frame(20, &[0xc0; 20]);
    assert_eq!(payload[..4], [0xdc, 0, 21, 1]);
    assert_eq!(decode(&payload).unwrap().bad, 20);
    let fields: [(&[u8], &[u8]); 1] = [(b"user", b"\xff")];
    assert_eq!(pack_fields(fields.into_iter()), b"\x92\xc4\x04user\xc4\x01\xff");
}

prop_compose! {
    fn any_like()(user_id in 1..=i64::MAX, post_id in 1..=i64::MAX, at in 0..=MAX_CREATED_AT_US) -> Like {
        like(user_id, post_id, at)
    }
}

proptest! {
    #[test]
    fn encoded_likes_decode_to_the_same_likes(likes in prop::collection::vec(any_like(), 1..100)) {
        let payload = encode(&likes);
        prop_assert!(payload.len() <= 5 + likes.len() * MAX_LIKE_BYTES);
        let decoded = decode(&payload).unwrap();
        prop_assert_eq!(decoded.likes, likes);
        prop_assert_eq!(decoded.bad, 0);
    }

    #[test]
    fn arbitrary_bytes_never_panic(payload in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode(&payload);
    }

    #[test]
    fn a_changed_byte_never_panics_and_accounts_for_every_like(
        likes in prop::collection::vec(any_like(), 1..20),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut payload = encode(&likes);
        let at = at.index(payload.len());
        payload[at] = byte;
        if let Ok(decoded) = decode(&payload) {
            prop_assert!(decoded.likes.len() + decoded.bad >= 1);
            prop_assert_eq!(decoded.bad, bad_likes(&payload).count());
            for bad in bad_likes(&payload) {
                prop_assert!(decode(&frame(1, &payload[bad.bytes])).is_ok());
            }
        }
    }
}
