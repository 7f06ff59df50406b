//! Likes to bytes and back: the payload of a stream entry.
//!
//! A payload is one MessagePack array: the schema version, then one array a like.
//!
//! ```text
//! [1, [user_id, post_id, created_at_us], [user_id, post_id, created_at_us], …]
//! ```
//!
//! Within version 1 a like may have more trailing elements; readers ignore them. Integers may have any
//! MessagePack width. A like that can't be read does not spoil its neighbours, see [`decode`].

use std::{fmt, mem, ops::Range};

use bytes::Bytes;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
    ser::SerializeSeq,
};
use thiserror::Error;

use crate::wire::like::{InvalidLike, Like};

/// The field of a stream entry that holds the payload.
pub const FIELD: &str = "l";

/// The only schema version there is.
pub const VERSION: u64 = 1;

/// At most this many bytes a like takes in a payload: an array header and three 64-bit integers.
pub const MAX_LIKE_BYTES: usize = 1 + 3 * 9;

/// Nesting that a payload may have. Ours has two; more can only be trailing elements of a later minor revision.
const MAX_DEPTH: usize = 32;

/// The whole payload can't be read.
#[derive(Debug, Error)]
pub enum DecodeError {
    /// Not the MessagePack that it should be.
    #[error("not a MessagePack array of a version and likes: {0}")]
    Malformed(String),
    /// A version from the future. Not to be guessed at.
    #[error("unknown schema version {0}, this program knows {VERSION}")]
    UnknownVersion(u64),
}

/// One like of a payload that otherwise reads well.
#[derive(Debug, PartialEq, Eq)]
pub struct BadLike {
    /// Which one, from 0.
    pub index: usize,
    /// Where its bytes lie in the payload.
    pub bytes: Range<usize>,
    /// What is wrong with it.
    pub why: BadLikeReason,
}

/// What is wrong with one like.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum BadLikeReason {
    /// Not an array that starts with three integers.
    #[error("a like is an array of at least three integers, this one has {0}")]
    Shape(&'static str),
    /// Three integers, out of range.
    #[error(transparent)]
    Invalid(#[from] InvalidLike),
}

/// What a payload holds.
#[derive(Debug, Default)]
pub struct Decoded {
    /// The good ones, in order.
    pub likes: Vec<Like>,
    /// The others.
    pub bad: Vec<BadLike>,
}

/// The payload of these likes, at version [`VERSION`].
pub fn encode(likes: &[Like]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(8 + likes.len() * MAX_LIKE_BYTES);
    #[expect(clippy::expect_used, reason = "a Vec takes every write and integers always serialize")]
    rmp_serde::encode::write(&mut bytes, &Payload(likes)).expect("encoding integers into memory");
    bytes
}

/// A payload around the bytes of likes as they are, so that bad likes can be kept apart and unchanged.
pub fn frame(like_bytes: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(6 + like_bytes.iter().map(|like| like.len()).sum::<usize>());
    // A Vec takes every write.
    let _ = rmp::encode::write_array_len(&mut bytes, u32::try_from(1 + like_bytes.len()).unwrap_or(u32::MAX));
    let _ = rmp::encode::write_uint(&mut bytes, VERSION);
    for like in like_bytes {
        bytes.extend_from_slice(like);
    }
    bytes
}

/// Names and values of a foreign entry's fields as one MessagePack array `[name, value, name, value, …]` of binaries.
pub fn pack_fields<'a>(fields: impl ExactSizeIterator<Item = (&'a [u8], &'a [u8])>) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A Vec takes every write.
    let _ = rmp::encode::write_array_len(&mut bytes, u32::try_from(2 * fields.len()).unwrap_or(u32::MAX));
    for part in fields.flat_map(|(name, value)| [name, value]) {
        let _ = rmp::encode::write_bin(&mut bytes, part);
    }
    bytes
}

/// Reads a payload. Bytes from outside: nothing is trusted, nothing is allocated ahead on their word.
///
/// # Errors
/// When the payload as a whole can't be read, or has no like. A bad like alone is in [`Decoded::bad`].
pub fn decode(payload: &[u8]) -> Result<Decoded, DecodeError> {
    let mut decoded = Decoded::default();
    for element in Elements::of(payload)? {
        let Element { index, bytes, like } = element?;
        match like {
            Ok(like) => decoded.likes.push(like),
            Err(why) => decoded.bad.push(BadLike { index, bytes, why }),
        }
    }
    Ok(decoded)
}

/// A like of a payload, and where it stands there.
#[derive(Debug, PartialEq, Eq)]
pub struct LocatedLike {
    /// Which one, from 0, bad ones counted.
    pub index: usize,
    /// The like.
    pub like: Like,
    /// Where its bytes lie in the payload.
    pub bytes: Range<usize>,
}

/// The good likes of a payload that [`decode`] has read, with their places; up to the first element that can't be read.
pub fn locate(payload: &[u8]) -> Vec<LocatedLike> {
    let elements = Elements::of(payload).into_iter().flatten().map_while(Result::ok);
    let located = |Element { index, bytes, like }| Some(LocatedLike { index, like: like.ok()?, bytes });
    elements.filter_map(located).collect()
}

/// Something that stands in a payload where a like should be.
struct Element {
    index: usize,
    bytes: Range<usize>,
    like: Result<Like, BadLikeReason>,
}

/// The elements of a payload, up to the first that can't be read, and an error where something follows the last.
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
            return Err(malformed("it holds no like"));
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

/// An element where a like should be: whatever it is, it is read to its end, so that the next one can be found.
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
            Self::Other(what) => Err(BadLikeReason::Shape(what)),
        }
    }
}

impl<'de> Deserialize<'de> for WireLike {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.deserialize_any(AnyValue)? {
            Any::Array(integers) => Ok(integers.map_or_else(Self::Other, Self::Integers)),
            Any::Integer(_) | Any::Other => Ok(Self::Other("no array")),
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
                Some(_) => read = read.and(Err("something else among its first three elements")),
                None => read = read.and(Err("fewer elements")),
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

/// What the payload field of an entry holds, if it has one.
pub fn payload(fields: &[(Bytes, Bytes)]) -> Option<Bytes> {
    fields.iter().find(|(name, _)| name == FIELD).map(|(_, payload)| payload.clone())
}

#[cfg(test)]
mod tests;
