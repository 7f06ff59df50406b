//! Parses request bodies into likes.

mod batch;
mod field;
mod schema;

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Unexpected, Visitor, value::MapAccessDeserializer},
};
use serde_json::error::Category;
use shared::wire::like::Like;
use thiserror::Error;
use utoipa::ToSchema;

pub use self::batch::{BadBatch, BadItem, BatchErrors, BatchRequest, parse_array, parse_lines};
pub(crate) use self::{batch::parsing_bytes, schema::LikeArray};
use self::{
    field::{CreatedAt, float, post_id, quotable, user_id},
    schema::{created_at_schema, post_id_schema, user_id_schema},
};

/// Error of a body that is not a like.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BadRequest {
    /// The body is not JSON.
    #[error("{0}")]
    Json(String),
    /// The body is JSON, but not a valid like.
    #[error("{0}")]
    Like(String),
}

/// Parses one like. `now_us`, in microseconds since the Unix epoch, is the default of `created_at`.
pub fn parse(body: &[u8], now_us: i64) -> Result<Like, BadRequest> {
    let Object(request) = serde_json::from_slice(body).map_err(|error| match error.classify() {
        Category::Data => BadRequest::Like(error.to_string()),
        Category::Io | Category::Syntax | Category::Eof => BadRequest::Json(error.to_string()),
    })?;
    let created_at_us = request.created_at.map_or(now_us.into(), |CreatedAt(us)| us);
    Like::new(request.user_id, request.post_id, created_at_us).map_err(|e| BadRequest::Like(e.to_string()))
}

/// A like: one user likes one post
#[derive(Deserialize, ToSchema)]
#[schema(as = Like)]
pub(crate) struct LikeRequest {
    #[serde(alias = "userId", deserialize_with = "user_id")]
    #[schema(schema_with = user_id_schema)]
    user_id: i128,
    #[serde(alias = "postId", deserialize_with = "post_id")]
    #[schema(schema_with = post_id_schema)]
    post_id: i128,
    #[serde(default, alias = "timestamp")]
    #[schema(schema_with = created_at_schema, required = false)]
    created_at: Option<CreatedAt>,
}

/// A JSON object. Serde alone would also accept an array for the struct.
struct Object(LikeRequest);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MapOnly;
        impl<'de> Visitor<'de> for MapOnly {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object such as {\"user_id\": 7, \"post_id\": 42}")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Object, E> {
                Err(E::invalid_type(Unexpected::Str(&quotable(text)), &self))
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Object, E> {
                Err(E::invalid_type(Unexpected::Other(&float(value)), &self))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object, A::Error> {
                LikeRequest::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_any(MapOnly)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW_US: i64 = 1_800_000_000_000_000;

    fn fields(body: &str) -> Result<(i64, i64, i64), BadRequest> {
        parse(body.as_bytes(), NOW_US).map(|like| (like.user_id(), like.post_id(), like.created_at_us()))
    }

    #[test]
    fn ids_and_times_parse_in_all_documented_forms() {
        let max = i64::MAX;
        let at = 1_769_860_800_000_000;
        for (body, like) in [
            (r#"{"user_id": 7, "post_id": 42}"#, (7, 42, NOW_US)),
            (r#"{"userId": 7, "postId": 42, "other": [1]}"#, (7, 42, NOW_US)),
            (r#"{"user_id": "7", "post_id": "9223372036854775807"}"#, (7, max, NOW_US)),
            (r#"{"user_id": 9223372036854775807, "post_id": 1, "created_at": null}"#, (max, 1, NOW_US)),
            (r#"{"user_id": 7, "post_id": 42, "created_at": "2026-01-31T12:00:00Z"}"#, (7, 42, at)),
            (
                r#"{"user_id": 7, "post_id": 42, "timestamp": "2026-01-31T13:00:00.000001+01:00"}"#,
                (7, 42, at + 1),
            ),
            (r#"{"user_id": 7, "post_id": 42, "timestamp": 1769860800000}"#, (7, 42, at)),
        ] {
            assert_eq!(fields(body), Ok(like), "{body}");
        }
    }

    #[test]
    fn invalid_json_and_invalid_likes_are_distinguished() {
        for body in
            ["", "{", "user_id=7", r#"{"user_id": 7, "post_id": 42} x"#, "{\"user_id\": 7,}", "\u{feff}{}"]
        {
            assert!(matches!(fields(body), Err(BadRequest::Json(_))), "{body}");
        }
        for body in [
            "null",
            "[7, 42]",
            "[7, 42, null]",
            "{}",
            r#"{"user_id": 7}"#,
            r#"{"user_id": 0, "post_id": 42}"#,
            r#"{"user_id": -7, "post_id": 42}"#,
            r#"{"user_id": 7, "post_id": 9223372036854775808}"#,
            r#"{"user_id": 7, "post_id": 99999999999999999999}"#,
            r#"{"user_id": 7.0, "post_id": 42}"#,
            r#"{"user_id": "", "post_id": 42}"#,
            r#"{"user_id": "+7", "post_id": 42}"#,
            r#"{"user_id": "7 ", "post_id": 42}"#,
            r#"{"user_id": true, "post_id": 42}"#,
            r#"{"user_id": null, "post_id": 42}"#,
            r#"{"user_id": 7, "userId": 8, "post_id": 42}"#,
            r#"{"user_id": 7, "post_id": 42, "created_at": "yesterday"}"#,
            r#"{"user_id": 7, "post_id": 42, "created_at": -1}"#,
            r#"{"user_id": 7, "post_id": 42, "created_at": 99999999999999999}"#,
            r#"{"user_id": 7, "post_id": 42, "created_at": "1969-12-31T23:59:59Z"}"#,
        ] {
            assert!(matches!(fields(body), Err(BadRequest::Like(_))), "{body}");
        }
    }

    #[test]
    fn invalid_fields_are_named_with_their_value() {
        let detail = |body: &str| fields(body).unwrap_err().to_string();
        let id = "an integer from 1 to 9223372036854775807, or a string of its decimal digits";
        for (value, got) in [
            ("\"abc\"", "string \"abc\""),
            ("true", "boolean `true`"),
            ("7.5", "floating point `7.5`"),
            ("null", "null"),
            ("[7]", "an array"),
            ("{}", "an object"),
        ] {
            let user = detail(&format!("{{\"user_id\": {value}, \"post_id\": 42}}"));
            assert!(user.starts_with(&format!("user_id must be {id}; got {got} at line 1 ")), "{user}");
            let post = detail(&format!("{{\"user_id\": 7, \"post_id\": {value}}}"));
            assert!(post.starts_with(&format!("post_id must be {id}; got {got} at line 1 ")), "{post}");
        }
        let time = detail(r#"{"user_id": 7, "post_id": 42, "created_at": "yesterday"}"#);
        assert!(
            time.starts_with("created_at must be ") && time.contains("; got string \"yesterday\""),
            "{time}"
        );
    }

    #[test]
    fn long_invalid_texts_are_cut_in_errors() {
        let long = "é".repeat(1_000_000);
        let quoted = format!("string \"{}…\"", "é".repeat(64));
        let id = fields(&format!("{{\"user_id\": \"{long}\", \"post_id\": 42}}")).unwrap_err().to_string();
        assert!(id.contains(&format!("; got {quoted} at line 1 ")), "{}", id.len());
        let like = fields(&format!("\"{long}\"")).unwrap_err().to_string();
        assert!(like.contains(&format!("{quoted}, expected an object")), "{}", like.len());
    }

    #[test]
    fn errors_of_huge_values_are_short() {
        const HUGE: usize = 1_000_000;
        let text = |part: &str| format!("\"{}\"", part.repeat(HUGE / part.len()));
        let mut values = vec![
            text("x"),
            text("\\u0001"),
            text("\\\""),
            text("\\\\"),
            text("\u{10ffff}"),
            text("\u{7f}"),
            "9".repeat(300),
            "9".repeat(HUGE),
            format!("-{}", "9".repeat(300)),
            format!("0.{}1", "0".repeat(HUGE)),
            "1e308".to_owned(),
            "-1.7976931348623157e308".to_owned(),
            "5e-324".to_owned(),
            format!("{}{}", "[".repeat(HUGE), "]".repeat(HUGE)),
            format!("[{}1]", "1,".repeat(HUGE)),
            format!("{{{}: 1}}", text("k")),
            "\"".repeat(HUGE),
            "x".repeat(HUGE),
        ];
        let fields_with = values.iter().flat_map(|value| {
            ["user_id", "userId", "post_id", "created_at"]
                .map(|field| format!("{{\"post_id\": 42, \"{field}\": {value}}}"))
        });
        let objects: Vec<String> = fields_with.collect();
        values.extend(objects);
        for value in &values {
            let Err(error) = fields(value) else { continue };
            let detail = error.to_string();
            let start: String = value.chars().take(80).collect();
            assert!(detail.len() < 1_000, "{start}: {}", detail.len());
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&body, NOW_US);
            let _ = parse_array(&body, NOW_US, 100);
            let _ = parse_lines(&body, NOW_US, 100);
        }

        #[test]
        fn every_id_in_range_parses_as_a_number_and_as_a_string(user in 1..=i64::MAX, post in 1..=i64::MAX) {
            let number = format!(r#"{{"user_id": {user}, "post_id": {post}}}"#);
            let string = format!(r#"{{"user_id": "{user}", "post_id": "{post}"}}"#);
            prop_assert_eq!(fields(&number), Ok((user, post, NOW_US)));
            prop_assert_eq!(fields(&string), Ok((user, post, NOW_US)));
        }
    }
}
