//! Parses request bodies into likes.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, MapAccess, SeqAccess, Unexpected, Visitor, value::MapAccessDeserializer},
};
use serde_json::{error::Category, value::RawValue};
use shared::wire::like::Like;
use thiserror::Error;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        KnownFormat, Ref, RefOr, Schema, SchemaFormat,
        schema::{ArrayBuilder, ObjectBuilder, OneOfBuilder, Type},
    },
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

/// An element of a batch that was not accepted
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct BadItem {
    /// Index of the element in the batch, from 0
    #[schema(example = 1)]
    pub index: usize,
    /// Error code: `invalid-json`, `invalid-like` or `rate-limited`
    #[schema(example = "invalid-like")]
    pub code: &'static str,
    /// Cause of the error, and how to correct it
    pub detail: String,
}

impl BadItem {
    /// Returns an estimated upper bound of the size as JSON.
    pub(crate) fn json_bytes(&self) -> usize {
        // JSON escapes the quotes and backslashes of a quoted value.
        2 * self.detail.len() + 80
    }
}

/// Likes and errors of a parsed batch.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct BatchRequest {
    /// The valid items, in order.
    pub likes: Vec<Like>,
    /// The invalid items.
    pub bad: Vec<BadItem>,
}

impl BatchRequest {
    /// Returns the likes with their indices in the batch.
    pub(crate) fn indexed(&self) -> impl Iterator<Item = (usize, Like)> {
        let mut bad = self.bad.iter().map(|bad| bad.index).peekable();
        let mut next = 0;
        self.likes.iter().map(move |like| {
            while bad.next_if_eq(&next).is_some() {
                next += 1;
            }
            next += 1;
            (next - 1, *like)
        })
    }

    /// Rejects the likes for which `why` returns an error code and a detail.
    pub(crate) fn reject(&mut self, mut why: impl FnMut(&Like) -> Option<(&'static str, String)>) {
        let mut kept = Vec::with_capacity(self.likes.len());
        let mut rejected = Vec::new();
        for (index, like) in self.indexed() {
            match why(&like) {
                Some((code, detail)) => rejected.push(BadItem { index, code, detail }),
                None => kept.push(like),
            }
        }
        self.likes = kept;
        self.bad.append(&mut rejected);
        self.bad.sort_unstable_by_key(|bad| bad.index);
    }
}

/// Error of a whole batch.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BadBatch {
    /// The body is not a JSON array.
    #[error("{0}")]
    Json(String),
    /// The batch has more likes than this limit.
    #[error("the batch has more than {0} likes")]
    TooMany(usize),
}

/// Parses a JSON array of likes. Invalid items are in [`BatchRequest::bad`].
///
/// # Errors
/// Returns an error if the body is not an array, or has more than `max_likes` items.
pub fn parse_array(body: &[u8], now_us: i64, max_likes: usize) -> Result<BatchRequest, BadBatch> {
    let items: Vec<&RawValue> = serde_json::from_slice(body).map_err(|error| {
        BadBatch::Json(match error.classify() {
            Category::Data => {
                "the body must be a JSON array of likes such as [{\"user_id\": 7, \"post_id\": 42}]"
                    .to_owned()
            }
            Category::Io | Category::Syntax | Category::Eof => error.to_string(),
        })
    })?;
    parse_items(items.into_iter().map(|item| item.get().as_bytes()), now_us, max_likes)
}

/// Parses NDJSON: one like per line. Empty lines are ignored. Invalid items are in [`BatchRequest::bad`].
///
/// # Errors
/// Returns an error if the body has more than `max_likes` items.
pub fn parse_lines(body: &[u8], now_us: i64, max_likes: usize) -> Result<BatchRequest, BadBatch> {
    let lines = body.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    parse_items(lines.filter(|line| !line.is_empty()), now_us, max_likes)
}

fn parse_items<'a>(
    items: impl Iterator<Item = &'a [u8]>,
    now_us: i64,
    max_likes: usize,
) -> Result<BatchRequest, BadBatch> {
    let mut batch = BatchRequest::default();
    for (index, item) in items.enumerate() {
        if index == max_likes {
            return Err(BadBatch::TooMany(max_likes));
        }
        match parse(item, now_us) {
            Ok(like) => batch.likes.push(like),
            Err(BadRequest::Json(detail)) => batch.bad.push(BadItem { index, code: "invalid-json", detail }),
            Err(BadRequest::Like(detail)) => batch.bad.push(BadItem { index, code: "invalid-like", detail }),
        }
    }
    Ok(batch)
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

/// OpenAPI schema of a batch. The items are parsed one by one, so no Rust type holds them.
pub(crate) enum LikeArray {}

impl ToSchema for LikeArray {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((LikeRequest::name().into_owned(), LikeRequest::schema()));
    }
}

impl PartialSchema for LikeArray {
    fn schema() -> RefOr<Schema> {
        let like = Ref::from_schema_name(LikeRequest::name());
        ArrayBuilder::new().items(like).min_items(Some(1)).into()
    }
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

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object, A::Error> {
                LikeRequest::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_any(MapOnly)
    }
}

/// Maximum length of an invalid text in an error. A batch can have many invalid items.
const MAX_QUOTED_CHARS: usize = 64;

/// Cuts a text to the length that an error may quote.
fn quotable(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(MAX_QUOTED_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]).into(),
        None => text.into(),
    }
}

/// Reads a field that is an integer or a text, and names the field in errors. `Like` checks the range.
struct FieldVisitor {
    name: &'static str,
    /// The forms that are accepted.
    form: &'static str,
    /// Multiplies integers.
    scale: i128,
    parse_text: fn(&str) -> Option<i128>,
}

impl FieldVisitor {
    fn id(name: &'static str) -> Self {
        let form = "an integer from 1 to 9223372036854775807, or a string of its decimal digits";
        Self { name, form, scale: 1, parse_text: parse_digits }
    }

    fn invalid<E: de::Error>(&self, got: Unexpected<'_>) -> E {
        E::custom(format_args!("{} must be {}; got {got}", self.name, self.form))
    }
}

impl<'de> Visitor<'de> for FieldVisitor {
    type Value = i128;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.form)
    }

    fn visit_u64<E>(self, value: u64) -> Result<i128, E> {
        Ok(i128::from(value) * self.scale)
    }

    fn visit_i64<E>(self, value: i64) -> Result<i128, E> {
        Ok(i128::from(value) * self.scale)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<i128, E> {
        (self.parse_text)(text).ok_or_else(|| self.invalid(Unexpected::Str(&quotable(text))))
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<i128, E> {
        Err(self.invalid(Unexpected::Bool(value)))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<i128, E> {
        Err(self.invalid(Unexpected::Float(value)))
    }

    fn visit_unit<E: de::Error>(self) -> Result<i128, E> {
        Err(self.invalid(Unexpected::Other("null")))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<i128, A::Error> {
        Err(self.invalid(Unexpected::Other("an array")))
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<i128, A::Error> {
        Err(self.invalid(Unexpected::Other("an object")))
    }
}

fn parse_digits(text: &str) -> Option<i128> {
    let all_digits = (1..=20).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| all_digits)
}

fn user_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i128, D::Error> {
    deserializer.deserialize_any(FieldVisitor::id("user_id"))
}

fn post_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i128, D::Error> {
    deserializer.deserialize_any(FieldVisitor::id("post_id"))
}

fn user_id_schema() -> Schema {
    id_schema("Id of the user. The name `userId` is also accepted", 7)
}

fn post_id_schema() -> Schema {
    id_schema("Id of the liked post. The name `postId` is also accepted", 42)
}

fn id_schema(description: &str, example: i64) -> Schema {
    let number = ObjectBuilder::new()
        .schema_type(Type::Integer)
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)))
        .minimum(Some(1))
        .maximum(Some(MAX_ID));
    let digits = ObjectBuilder::new().schema_type(Type::String).pattern(Some(ID_PATTERN));
    OneOfBuilder::new().item(number).item(digits).description(Some(description)).examples([example]).into()
}

/// 2^63 - 1, in utoipa's type for maximums.
const MAX_ID: isize = 0x7fff_ffff_ffff_ffff;

/// The decimal digits of 1 to 2^63 - 1.
const ID_PATTERN: &str = "^([1-9][0-9]{0,17}|[1-8][0-9]{18}|9[01][0-9]{17}|92[01][0-9]{16}|922[0-2][0-9]{15}|\
    9223[0-2][0-9]{14}|92233[0-6][0-9]{13}|922337[01][0-9]{12}|92233720[0-2][0-9]{10}|\
    922337203[0-5][0-9]{9}|9223372036[0-7][0-9]{8}|92233720368[0-4][0-9]{7}|\
    922337203685[0-3][0-9]{6}|9223372036854[0-6][0-9]{5}|92233720368547[0-6][0-9]{4}|\
    922337203685477[0-4][0-9]{3}|9223372036854775[0-7][0-9]{2}|922337203685477580[0-7])$";

/// A time in microseconds since the Unix epoch.
struct CreatedAt(i128);

impl<'de> Deserialize<'de> for CreatedAt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let field = FieldVisitor {
            name: "created_at",
            form: "an RFC 3339 time such as \"2026-01-31T12:00:00Z\", or Unix time in milliseconds",
            scale: 1_000,
            parse_text: parse_rfc_3339,
        };
        deserializer.deserialize_any(field).map(CreatedAt)
    }
}

fn parse_rfc_3339(text: &str) -> Option<i128> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    Some(time.unix_timestamp_nanos().div_euclid(1_000))
}

fn created_at_schema() -> Schema {
    let text = ObjectBuilder::new()
        .schema_type(Type::String)
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)));
    let milliseconds =
        ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0)).maximum(Some(MAX_MILLISECONDS));
    let description = "Time of the like, from the year 1970 to 9999: RFC 3339, or Unix time in milliseconds. \
                       Defaults to the time of receipt. The name `timestamp` is also accepted";
    OneOfBuilder::new()
        .item(text)
        .item(milliseconds)
        .item(ObjectBuilder::new().schema_type(Type::Null))
        .description(Some(description))
        .examples(["2026-01-31T12:00:00Z"])
        .into()
}

/// The last millisecond of the year 9999.
const MAX_MILLISECONDS: isize = 253_402_300_799_999;

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
    fn invalid_items_are_reported_by_index() {
        let good = r#"{"user_id": 7, "post_id": 42}"#;
        let bad =
            |batch: &BatchRequest| batch.bad.iter().map(|bad| (bad.index, bad.code)).collect::<Vec<_>>();
        let array = format!("[{good}, 7, {good}, {{}}]");
        let batch = parse_array(array.as_bytes(), NOW_US, 4).unwrap();
        assert_eq!((batch.likes.len(), bad(&batch)), (2, vec![(1, "invalid-like"), (3, "invalid-like")]));
        let lines = format!("{good}\r\n\n{{\n{good}");
        let batch = parse_lines(lines.as_bytes(), NOW_US, 3).unwrap();
        assert_eq!((batch.likes.len(), bad(&batch)), (2, vec![(1, "invalid-json")]));
        assert_eq!(parse_array(b"[]", NOW_US, 1).unwrap(), BatchRequest::default());
        assert_eq!(parse_array(array.as_bytes(), NOW_US, 3).unwrap_err(), BadBatch::TooMany(3));
        assert_eq!(parse_lines(lines.as_bytes(), NOW_US, 2).unwrap_err(), BadBatch::TooMany(2));
        for body in ["", "{}", "[", "[1,]", "[] x", good] {
            assert!(matches!(parse_array(body.as_bytes(), NOW_US, 9), Err(BadBatch::Json(_))), "{body}");
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
        let detail =
            fields(&format!("{{\"user_id\": \"{long}\", \"post_id\": 42}}")).unwrap_err().to_string();
        assert!(
            detail.contains(&format!("; got string \"{}…\" at line 1 ", "é".repeat(64))),
            "{}",
            detail.len()
        );
        assert!(detail.len() < 400, "{}", detail.len());
        let batch = parse_array(format!("[\"{long}\"]").as_bytes(), NOW_US, 1).unwrap();
        assert!(batch.bad[0].detail.contains(&format!("string \"{}…\", expected an object", "é".repeat(64))));
        assert!(batch.bad[0].detail.len() < 400, "{}", batch.bad[0].detail.len());
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
