//! Redis's replies about streams, walked value by value. A shape that the protocol does not have is an error.

use bytes::Bytes;
use fred::prelude::{Error, ErrorKind, Value};
use shared::partition::Partition;

use super::Claimed;
use crate::entry::{EntryId, Position, RawEntry};

pub(super) fn unexpected(what: &str) -> Error {
    Error::new(ErrorKind::Protocol, format!("unexpected reply from Redis: {what}"))
}

/// XREADGROUP: nil, or `[[stream, rows] …]`.
pub(super) fn streams(reply: Value) -> Result<Vec<(String, Value)>, Error> {
    if reply.is_null() {
        return Ok(Vec::new());
    }
    let stream = |pair| match <[Value; 2]>::try_from(array(pair)?) {
        Ok([stream, rows]) => Ok((text(stream)?, rows)),
        Err(_) => Err(unexpected("a stream without its entries")),
    };
    array(reply)?.into_iter().map(stream).collect()
}

/// `[[id, [name, value …]] …]`; the fields are nil where the entry was deleted.
pub(super) fn entries(partition: Partition, rows: Value) -> Result<Vec<RawEntry>, Error> {
    let entry = |row| match <[Value; 2]>::try_from(array(row)?) {
        Ok([id, fields]) => {
            let at = Position { partition, id: entry_id(id)? };
            let fields = if fields.is_null() { None } else { Some(field_pairs(fields)?) };
            Ok(RawEntry { at, fields })
        }
        Err(_) => Err(unexpected("an entry without its fields")),
    };
    array(rows)?.into_iter().filter(|row| !row.is_null()).map(entry).collect()
}

/// XAUTOCLAIM: `[cursor, rows, deleted ids]`.
pub(super) fn claimed(partition: Partition, reply: Value) -> Result<Claimed, Error> {
    match <[Value; 3]>::try_from(array(reply)?) {
        Ok([cursor, rows, deleted]) => Ok(Claimed {
            entries: entries(partition, rows)?,
            deleted: array(deleted)?.into_iter().map(entry_id).collect::<Result<_, _>>()?,
            cursor: entry_id(cursor)?,
        }),
        Err(_) => Err(unexpected("a claim without its three parts")),
    }
}

/// XINFO GROUPS: for each group `[name, value …]`. Their names.
pub(super) fn group_names(reply: Value) -> Result<Vec<String>, Error> {
    let name = |info| {
        for (key, value) in pairs(array(info)?)? {
            if text(key)? == "name" {
                return text(value);
            }
        }
        Err(unexpected("a group without a name"))
    };
    array(reply)?.into_iter().map(name).collect()
}

/// XPENDING with a range of one id: nothing, or `[[id, consumer, idle, deliveries]]`.
pub(super) fn deliveries(reply: Value) -> Result<u64, Error> {
    let Some(pending) = array(reply)?.into_iter().next() else { return Ok(0) };
    let deliveries = array(pending)?.get(3).and_then(Value::as_u64);
    deliveries.ok_or_else(|| unexpected("a pending entry without its number of deliveries"))
}

fn field_pairs(fields: Value) -> Result<Vec<(Bytes, Bytes)>, Error> {
    let pair = |(name, value)| Ok((bytes(name)?, bytes(value)?));
    pairs(array(fields)?)?.into_iter().map(pair).collect()
}

fn pairs(values: Vec<Value>) -> Result<Vec<(Value, Value)>, Error> {
    let mut values = values.into_iter();
    let mut pairs = Vec::with_capacity(values.len() / 2);
    while let Some(first) = values.next() {
        let second = values.next().ok_or_else(|| unexpected("a name without its value"))?;
        pairs.push((first, second));
    }
    Ok(pairs)
}

fn array(value: Value) -> Result<Vec<Value>, Error> {
    match value {
        Value::Array(values) => Ok(values),
        _ => Err(unexpected("no array where there should be one")),
    }
}

/// fred hands bytes that happen to be UTF-8 over as a string.
fn bytes(value: Value) -> Result<Bytes, Error> {
    value.into_bytes().ok_or_else(|| unexpected("no bytes where there should be some"))
}

fn text(value: Value) -> Result<String, Error> {
    value.into_string().ok_or_else(|| unexpected("no text where there should be some"))
}

fn entry_id(value: Value) -> Result<EntryId, Error> {
    text(value)?.parse().map_err(|_| unexpected("an entry id that is none"))
}

#[cfg(test)]
mod tests {
    use shared::partition::PartitionCount;

    use super::*;

    fn partition() -> Partition {
        PartitionCount::new(1).unwrap().of_user(1)
    }

    fn list(values: impl IntoIterator<Item = Value>) -> Value {
        Value::Array(values.into_iter().collect())
    }

    #[test]
    fn an_empty_poll_is_no_error() {
        assert!(streams(Value::Null).unwrap().is_empty());
    }

    #[test]
    fn a_deleted_entry_has_no_fields_and_utf8_payloads_are_bytes() {
        let rows = list([
            list(["1-0".into(), list(["l".into(), "utf8".into()])]),
            list(["2-5".into(), Value::Null]),
        ]);
        let entries = entries(partition(), rows).unwrap();
        assert_eq!(entries[0].fields.as_ref().unwrap()[0].1, "utf8");
        assert!(entries[1].fields.is_none());
        assert_eq!(entries[1].at.id, EntryId { ms: 2, seq: 5 });
    }

    #[test]
    fn a_claim_names_the_deleted() {
        let reply = list(["7-0".into(), list([]), list(["3-1".into()])]);
        let claimed = claimed(partition(), reply).unwrap();
        assert_eq!(claimed.deleted, [EntryId { ms: 3, seq: 1 }]);
        assert_eq!(claimed.cursor, EntryId { ms: 7, seq: 0 });
    }

    #[test]
    fn other_shapes_are_errors() {
        assert!(streams(Value::Integer(1)).is_err());
        assert!(streams(list([list(["likes:{0}".into()])])).is_err());
        assert!(entries(partition(), list([list(["x".into(), Value::Null])])).is_err());
        assert!(entries(partition(), list([list(["1-0".into(), list(["l".into()])])])).is_err());
        assert!(claimed(partition(), list(["0-0".into(), list([])])).is_err());
        assert!(group_names(list([list(["pending".into(), Value::Integer(0)])])).is_err());
        assert!(deliveries(list([list(["1-0".into()])])).is_err());
    }
}
