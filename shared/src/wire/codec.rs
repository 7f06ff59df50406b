//! Encodes and decodes likes: the payload of a stream entry.
//!
//! A payload is one MessagePack array: the schema version, then one array per like.
//!
//! ```text
//! [1, [user_id, post_id, created_at_us], [user_id, post_id, created_at_us], …]
//! ```
//!
//! In version 1 a like may have additional trailing elements, which readers ignore. Integers may have any MessagePack width.
//! An invalid like does not affect its neighbours, see [`decode`].

use std::{fmt, mem, ops::Range};

use bytes::Bytes;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
    ser::SerializeSeq,
};
use thiserror::Error;

use crate::wire::like::{InvalidLike, Like};

/// Field of a stream entry that contains the payload.
pub const FIELD: &str = "l";

/// The only schema version.
pub const VERSION: u64 = 1;

/// Maximum size of an encoded like: an array header and three 64-bit integers.
pub const MAX_LIKE_BYTES: usize = 1 + 3 * 9;

/// Maximum nesting of a payload. Version 1 has two levels; only trailing elements of a later revision may have more.
const MAX_DEPTH: usize = 32;

/// Error of a whole payload.
#[derive(Debug, Error)]
pub enum DecodeError {
    /// Invalid MessagePack, or of another structure.
    #[error("malformed payload; expected a MessagePack array of a version and likes ({0})")]
    Malformed(String),
    /// A later schema version.
    #[error("unknown schema version {0}; expected {VERSION}")]
    UnknownVersion(u64),
}

/// An invalid like of a valid payload.
#[derive(Debug, PartialEq, Eq)]
pub struct BadLike {
    /// Index in the payload, from 0.
    pub index: usize,
    /// Range of its bytes in the payload.
    pub bytes: Range<usize>,
    /// The reason.
    pub why: BadLikeReason,
}

/// Reason why a like is invalid.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum BadLikeReason {
    /// Not an array with three integers at its start.
    #[error("{0}; expected an array of at least three integers")]
    Shape(&'static str),
    /// An integer is out of range.
    #[error(transparent)]
    Invalid(#[from] InvalidLike),
}

/// The likes of a payload.
#[derive(Debug, Default)]
pub struct Decoded {
    /// Valid likes, in order.
    pub likes: Vec<Like>,
    /// Number of invalid likes. [`bad_likes`] returns them.
    pub bad: usize,
}

/// Encodes likes as a payload of version [`VERSION`].
pub fn encode(likes: &[Like]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(8 + likes.len() * MAX_LIKE_BYTES);
    #[expect(clippy::expect_used, reason = "writes to a Vec cannot fail, and integers always serialize")]
    rmp_serde::encode::write(&mut bytes, &Payload(likes)).expect("encoding integers into memory");
    bytes
}

/// Returns a payload with the unchanged bytes of a number of likes, so that invalid likes can be kept separately.
pub fn frame(likes: usize, like_bytes: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(6 + like_bytes.len());
    // Writes to a Vec cannot fail.
    let _ = rmp::encode::write_array_len(&mut bytes, u32::try_from(1 + likes).unwrap_or(u32::MAX));
    let _ = rmp::encode::write_uint(&mut bytes, VERSION);
    bytes.extend_from_slice(like_bytes);
    bytes
}

/// Encodes the fields of an unknown entry as one MessagePack array `[name, value, name, value, …]` of binaries.
pub fn pack_fields<'a>(fields: impl ExactSizeIterator<Item = (&'a [u8], &'a [u8])>) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Writes to a Vec cannot fail.
    let _ = rmp::encode::write_array_len(&mut bytes, u32::try_from(2 * fields.len()).unwrap_or(u32::MAX));
    for part in fields.flat_map(|(name, value)| [name, value]) {
        let _ = rmp::encode::write_bin(&mut bytes, part);
    }
    bytes
}

/// Decodes a payload. The bytes are untrusted: nothing is allocated by a length that they claim.
///
/// # Errors
/// When the payload is malformed or has no like. Single invalid likes are counted in [`Decoded::bad`].
pub fn decode(payload: &[u8]) -> Result<Decoded, DecodeError> {
    let mut decoded = Decoded::default();
    for element in Elements::of(payload)? {
        match element?.like {
            Ok(like) => decoded.likes.push(like),
            Err(_) => decoded.bad += 1,
        }
    }
    Ok(decoded)
}

/// A valid like of a payload, with its position.
#[derive(Debug, PartialEq, Eq)]
pub struct LocatedLike {
    /// Index in the payload, from 0, counting invalid likes.
    pub index: usize,
    /// The like.
    pub like: Like,
    /// Range of its bytes in the payload.
    pub bytes: Range<usize>,
}

/// Iterates over the valid likes of a payload with their positions, up to the first malformed element. They are not
/// collected, because an entry can have as many likes as bytes.
pub fn locate(payload: &[u8]) -> impl Iterator<Item = LocatedLike> {
    elements(payload)
        .filter_map(|Element { index, bytes, like }| Some(LocatedLike { index, like: like.ok()?, bytes }))
}

/// Iterates over the invalid likes of a payload, as [`locate`] does over the valid ones.
pub fn bad_likes(payload: &[u8]) -> impl Iterator<Item = BadLike> {
    elements(payload)
        .filter_map(|Element { index, bytes, like }| Some(BadLike { index, bytes, why: like.err()? }))
}

fn elements(payload: &[u8]) -> impl Iterator<Item = Element> {
    Elements::of(payload).into_iter().flatten().map_while(Result::ok)
}

/// An element at the position of a like.
struct Element {
    index: usize,
    bytes: Range<usize>,
    like: Result<Like, BadLikeReason>,
}

/// Iterates over the elements of a payload. Ends with an error at a malformed element, or if bytes follow the last one.
struct Elements<'a> {
    payload: &'a [u8],
    rest: &'a [u8],
    index: usize,
    count: usize,
}

impl<'a> Elements<'a> {
    fn of(payload: &'a [u8]) -> Result<Self, DecodeError> {
        let mut rest = payload;
        let elements = rmp::decode::read_array_len(&mut rest).map_err(malformed)?;
        if elements == 0 {
            return Err(malformed("the array is empty"));
        }
        let version: u64 = rmp::decode::read_int(&mut rest).map_err(malformed)?;
        if version != VERSION {
            return Err(DecodeError::UnknownVersion(version));
        }
        if elements == 1 {
            return Err(malformed("it contains no likes"));
        }
        Ok(Self { payload, rest, index: 0, count: elements as usize - 1 })
    }

    fn read(&mut self) -> Result<Element, DecodeError> {
        let start = self.payload.len() - self.rest.len();
        let mut deserializer = rmp_serde::Deserializer::new(&mut self.rest);
        deserializer.set_max_depth(MAX_DEPTH);
        let read = WireLike::deserialize(&mut deserializer).map_err(malformed)?;
        let bytes = start..self.payload.len() - self.rest.len();
        Ok(Element { index: self.index, bytes, like: read.like() })
    }
}

impl Iterator for Elements<'_> {
    type Item = Result<Element, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.index == self.count {
            let left = mem::take(&mut self.rest).len();
            return (left > 0).then(|| Err(malformed(format_args!("{left} bytes follow it"))));
        }
        let read = self.read();
        if read.is_ok() {
            self.index += 1;
        } else {
            (self.index, self.rest) = (self.count, &[]);
        }
        Some(read)
    }
}

fn malformed(why: impl fmt::Display) -> DecodeError {
    DecodeError::Malformed(why.to_string())
}

struct Payload<'a>(&'a [Like]);

impl Serialize for Payload<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut array = serializer.serialize_seq(Some(1 + self.0.len()))?;
        array.serialize_element(&VERSION)?;
        for like in self.0 {
            array.serialize_element(&(like.user_id(), like.post_id(), like.created_at_us()))?;
        }
        array.end()
    }
}

/// An element at the position of a like. It is read to its end whatever its type, so that the next one can be found.
enum WireLike {
    Integers([i128; 3]),
    Other(&'static str),
}

impl WireLike {
    fn like(self) -> Result<Like, BadLikeReason> {
        match self {
            Self::Integers([user_id, post_id, created_at_us]) => {
                Ok(Like::new(user_id, post_id, created_at_us)?)
            }
            Self::Other(problem) => Err(BadLikeReason::Shape(problem)),
        }
    }
}

impl<'de> Deserialize<'de> for WireLike {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.deserialize_any(AnyValue)? {
            Any::Array(integers) => Ok(integers.map_or_else(Self::Other, Self::Integers)),
            Any::Integer(_) | Any::Other => Ok(Self::Other("not an array")),
        }
    }
}

/// Any MessagePack value, of which only integers, and arrays that start with three of them, are kept.
enum Any {
    Integer(i128),
    Array(Result<[i128; 3], &'static str>),
    Other,
}

impl<'de> Deserialize<'de> for Any {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Any;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any MessagePack value")
    }

    fn visit_u64<E>(self, value: u64) -> Result<Any, E> {
        Ok(Any::Integer(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Any, E> {
        Ok(Any::Integer(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Any, A::Error> {
        let mut integers = [0; 3];
        let mut read = Ok(());
        for slot in &mut integers {
            match seq.next_element::<Any>()? {
                Some(Any::Integer(integer)) => *slot = integer,
                Some(_) => read = read.and(Err("an element among the first three is not an integer")),
                None => read = read.and(Err("fewer than three elements")),
            }
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Any::Array(read.map(|()| integers)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Any, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Any::Other)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, extension: D) -> Result<Any, D::Error> {
        IgnoredAny::deserialize(extension).map(|_| Any::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Any, E> {
        Ok(Any::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Any, E> {
        Ok(Any::Other)
    }

    fn visit_unit<E>(self) -> Result<Any, E> {
        Ok(Any::Other)
    }

    fn visit_str<E>(self, _: &str) -> Result<Any, E> {
        Ok(Any::Other)
    }

    fn visit_bytes<E>(self, _: &[u8]) -> Result<Any, E> {
        Ok(Any::Other)
    }
}

/// Returns the payload field of an entry, if it has one.
pub fn payload(fields: &[(Bytes, Bytes)]) -> Option<Bytes> {
    fields.iter().find(|(name, _)| name == FIELD).map(|(_, payload)| payload.clone())
}

#[cfg(test)]
mod tests;
