//! Parses the bodies of batches, element by element: only likes and a bounded list of errors are collected.

use std::fmt;

use serde::{
    Deserializer, Serialize,
    de::{DeserializeSeed, IgnoredAny, SeqAccess, Visitor},
};
use serde_json::{error::Category, value::RawValue};
use shared::wire::like::Like;
use thiserror::Error;
use utoipa::ToSchema;

use super::{BadRequest, parse};

/// Maximum number of errors in a response.
const MAX_LISTED_ERRORS: usize = 1_000;

/// Maximum size of the errors in a response, as JSON.
const MAX_LISTED_BYTES: usize = 128 << 10;

/// Size of the shortest like as an element of an array.
const MIN_LIKE_BYTES: usize = r#"{"userId":1,"postId":1},"#.len();

/// Size of a parsed like with its index. Twice, because a growing list is copied, and the likes are moved to their queue.
const PARSED_LIKE_BYTES: usize = 2 * size_of::<(usize, Like)>();

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
    /// Returns an upper bound of the size as JSON.
    fn json_bytes(&self) -> usize {
        // JSON escapes the quotes and backslashes of a quoted value. Control characters are already escaped.
        self.detail.len() + self.detail.bytes().filter(|byte| matches!(byte, b'"' | b'\\')).count() + 80
    }
}

/// Errors of the elements that were not accepted. All are counted; the first ones are listed, up to a limit of number and
/// size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BatchErrors {
    listed: Vec<BadItem>,
    listed_bytes: usize,
    rejected: usize,
}

impl BatchErrors {
    /// Counts an error, and lists it unless a limit is reached.
    pub(crate) fn push(&mut self, item: BadItem) {
        let bytes = self.listed_bytes + item.json_bytes();
        if self.omitted() == 0 && self.listed.len() < MAX_LISTED_ERRORS && bytes <= MAX_LISTED_BYTES {
            self.listed_bytes = bytes;
            self.listed.push(item);
        }
        self.rejected += 1;
    }

    /// Returns the listed errors, ordered by index.
    #[must_use]
    pub fn listed(&self) -> &[BadItem] {
        &self.listed
    }

    /// Returns the number of elements that were not accepted.
    #[must_use]
    pub fn rejected(&self) -> usize {
        self.rejected
    }

    /// Returns the number of errors that are not listed.
    #[must_use]
    pub fn omitted(&self) -> usize {
        self.rejected - self.listed.len()
    }
}

/// Likes and errors of a parsed batch.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct BatchRequest {
    /// The valid likes with their indices in the batch, in order.
    pub likes: Vec<(usize, Like)>,
    /// The errors of all other elements.
    pub errors: BatchErrors,
}

impl BatchRequest {
    /// Rejects the likes for which `why` returns an error code and a detail.
    pub(crate) fn reject(&mut self, mut why: impl FnMut(&Like) -> Option<(&'static str, String)>) {
        self.likes.retain(|(index, like)| {
            let error = why(like);
            let keep = error.is_none();
            if let Some((code, detail)) = error {
                self.errors.push(BadItem { index: *index, code, detail });
            }
            keep
        });
        self.errors.listed.sort_unstable_by_key(|bad| bad.index);
    }

    /// Returns the memory of likes and errors until the response is sent.
    pub(crate) fn bytes(&self) -> usize {
        // The errors are in memory once more as JSON.
        self.likes.len() * PARSED_LIKE_BYTES + 2 * self.errors.listed_bytes
    }

    /// Parses an element and adds its like or its error.
    fn push(&mut self, element: &[u8], now_us: i64) {
        let index = self.likes.len() + self.errors.rejected;
        match parse(element, now_us) {
            Ok(like) => self.likes.push((index, like)),
            Err(BadRequest::Json(detail)) => {
                self.errors.push(BadItem { index, code: "invalid-json", detail });
            }
            Err(BadRequest::Like(detail)) => {
                self.errors.push(BadItem { index, code: "invalid-like", detail });
            }
        }
    }
}

/// Returns the memory that a body takes while it is parsed. Errors are not included: they take little.
pub(crate) fn parsing_bytes(body: &[u8], max_likes: usize) -> usize {
    // A text with escapes is decoded, and may be the whole body.
    let copies = if body.contains(&b'\\') { 2 } else { 1 };
    copies * body.len() + max_likes.min(body.len() / MIN_LIKE_BYTES + 1) * PARSED_LIKE_BYTES
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

/// Parses a JSON array of likes. Invalid elements are in [`BatchRequest::errors`].
///
/// # Errors
/// Returns an error if the body is not an array, or has more than `max_likes` elements.
pub fn parse_array(body: &[u8], now_us: i64, max_likes: usize) -> Result<BatchRequest, BadBatch> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let parsed = Array { now_us, max_likes }.deserialize(&mut json);
    parsed.and_then(|batch| json.end().map(|()| batch)).map_err(|error| {
        BadBatch::Json(match error.classify() {
            Category::Data => {
                "the body must be a JSON array of likes such as [{\"user_id\": 7, \"post_id\": 42}]"
                    .to_owned()
            }
            Category::Io | Category::Syntax | Category::Eof => error.to_string(),
        })
    })?
}

/// Reads an array without collecting its elements.
struct Array {
    now_us: i64,
    max_likes: usize,
}

impl<'de> DeserializeSeed<'de> for Array {
    type Value = Result<BatchRequest, BadBatch>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Array {
    type Value = Result<BatchRequest, BadBatch>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
        let mut batch = BatchRequest::default();
        for _ in 0..self.max_likes {
            match elements.next_element::<&RawValue>()? {
                Some(element) => batch.push(element.get().as_bytes(), self.now_us),
                None => return Ok(Ok(batch)),
            }
        }
        if elements.next_element::<IgnoredAny>()?.is_none() {
            return Ok(Ok(batch));
        }
        // The rest decides whether the body is JSON.
        while elements.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Err(BadBatch::TooMany(self.max_likes)))
    }
}

/// Parses NDJSON: one like per line. Empty lines are ignored. Invalid elements are in [`BatchRequest::errors`].
///
/// # Errors
/// Returns an error if the body has more than `max_likes` elements.
pub fn parse_lines(body: &[u8], now_us: i64, max_likes: usize) -> Result<BatchRequest, BadBatch> {
    let lines = body.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
    let mut batch = BatchRequest::default();
    for (index, line) in lines.enumerate() {
        if index == max_likes {
            return Err(BadBatch::TooMany(max_likes));
        }
        batch.push(line, now_us);
    }
    Ok(batch)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_US: i64 = 1_800_000_000_000_000;
    const GOOD: &str = r#"{"user_id": 7, "post_id": 42}"#;

    fn errors(batch: &BatchRequest) -> Vec<(usize, &str)> {
        batch.errors.listed().iter().map(|bad| (bad.index, bad.code)).collect()
    }

    #[test]
    fn invalid_items_are_reported_by_index() {
        let array = format!("[{GOOD}, 7, {GOOD}, {{}}]");
        let batch = parse_array(array.as_bytes(), NOW_US, 4).unwrap();
        assert_eq!(batch.likes.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(errors(&batch), [(1, "invalid-like"), (3, "invalid-like")]);
        let lines = format!("{GOOD}\r\n\n{{\n{GOOD}");
        let batch = parse_lines(lines.as_bytes(), NOW_US, 3).unwrap();
        assert_eq!((batch.likes.len(), errors(&batch)), (2, vec![(1, "invalid-json")]));
        assert_eq!(parse_array(b"[]", NOW_US, 1).unwrap(), BatchRequest::default());
    }

    #[test]
    fn a_batch_with_too_many_elements_is_refused() {
        let array = format!("[{GOOD}, 7, {GOOD}, {{}}]");
        assert_eq!(parse_array(array.as_bytes(), NOW_US, 3).unwrap_err(), BadBatch::TooMany(3));
        let lines = format!("{GOOD}\n\n{{\n{GOOD}");
        assert_eq!(parse_lines(lines.as_bytes(), NOW_US, 2).unwrap_err(), BadBatch::TooMany(2));
    }

    #[test]
    fn a_body_that_is_not_an_array_is_refused() {
        for body in ["", "{}", "[", "[1,]", "[] x", "[1] x", "[1, 2, 3", "[1, 2, 3,", GOOD] {
            for max_likes in [1, 9] {
                let refused = parse_array(body.as_bytes(), NOW_US, max_likes);
                assert!(matches!(refused, Err(BadBatch::Json(_))), "{body}");
            }
        }
    }

    #[test]
    fn listed_errors_are_limited_in_number_and_size() {
        let many = format!("[{}{GOOD}]", "1,".repeat(5_000));
        let batch = parse_array(many.as_bytes(), NOW_US, 9_999).unwrap();
        assert_eq!((batch.likes.len(), batch.errors.rejected()), (1, 5_000));
        let listed = batch.errors.listed().len();
        assert!(listed <= MAX_LISTED_ERRORS && listed + batch.errors.omitted() == 5_000, "{listed}");
        let long = format!(r#"{{"user_id": "{}"}}"#, "\\u0001".repeat(100));
        let large = format!("{}{GOOD}", format!("{long}\n").repeat(5_000));
        let mut batch = parse_lines(large.as_bytes(), NOW_US, 9_999).unwrap();
        batch.reject(|_| Some(("rate-limited", "later".to_owned())));
        let json = serde_json::to_vec(batch.errors.listed()).unwrap();
        assert!(!json.is_empty() && json.len() <= MAX_LISTED_BYTES, "{}", json.len());
        assert_eq!((batch.likes.len(), batch.errors.rejected()), (0, 5_001));
        assert!(batch.errors.listed().iter().enumerate().all(|(index, bad)| bad.index == index));
    }

    #[test]
    fn rejected_likes_are_listed_in_order() {
        let array = format!("[{GOOD}, 7, {GOOD}]");
        let mut batch = parse_array(array.as_bytes(), NOW_US, 3).unwrap();
        batch.reject(|_| Some(("rate-limited", "later".to_owned())));
        assert_eq!(errors(&batch), [(0, "rate-limited"), (1, "invalid-like"), (2, "rate-limited")]);
        assert!(batch.likes.is_empty());
    }

    #[test]
    fn parsing_takes_no_more_than_the_reserved_memory() {
        let smallest = format!("[{}]", vec![r#"{"userId":1,"postId":1}"#; 1_000].join(","));
        let batch = parse_array(smallest.as_bytes(), NOW_US, 10_000).unwrap();
        let used = batch.likes.capacity() * size_of::<(usize, Like)>() + smallest.len();
        assert!(used <= parsing_bytes(smallest.as_bytes(), 10_000), "{used}");
        let escaped = br#"[{"user_id": "\u0001"}]"#;
        assert!(parsing_bytes(escaped, 1) >= 2 * escaped.len());
    }
}
