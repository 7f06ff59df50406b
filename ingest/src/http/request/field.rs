//! Fields of a like that are an integer or a text. Errors name the field and quote its value, cut to a safe length.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Unexpected, Visitor},
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Maximum length of an invalid text in an error. A batch can have many invalid items.
const MAX_QUOTED_CHARS: usize = 64;

/// Cuts a text to the length that an error may quote.
pub(super) fn quotable(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(MAX_QUOTED_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]).into(),
        None => text.into(),
    }
}

/// Describes a number with a fraction or an exponent. [`Unexpected::Float`] would show 1e308 with 309 digits.
pub(super) fn float(value: f64) -> String {
    format!("floating point `{value:?}`")
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
        Err(self.invalid(Unexpected::Other(&float(value))))
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

pub(super) fn user_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i128, D::Error> {
    deserializer.deserialize_any(FieldVisitor::id("user_id"))
}

pub(super) fn post_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i128, D::Error> {
    deserializer.deserialize_any(FieldVisitor::id("post_id"))
}

/// A time in microseconds since the Unix epoch.
pub(super) struct CreatedAt(pub(super) i128);

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
