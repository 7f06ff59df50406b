//! Parses replies of Redis. A reply of an unexpected shape is an error.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use fred::prelude::{Error, ErrorKind, Value};
use shared::{redis::Incarnation, wire::partition::Partition};

use crate::{
    entry::{EntryId, Position, RawEntry},
    stream::{
        Claimed, ClaimedDeparted, Fate, LIVENESS_TIMEOUT, Member, MemberInfo, MemberState, PendingEntry,
        QuarantineTry,
        inspect::{ConsumerInfo, PendingSummary},
    },
};

/// Reply about entries, with the incarnation that assigned their ids.
pub(super) type Reply = (Value, Incarnation);

/// Returns the error of a reply that lacks `expected`.
pub(super) fn unexpected(expected: &str) -> Error {
    Error::new(ErrorKind::Protocol, format!("unexpected reply from Redis: expected {expected}"))
}

/// Reply of XREADGROUP on one stream: nil or `[[stream, rows]]`.
pub(super) fn read(partition: Partition, (reply, from): Reply) -> Result<Vec<RawEntry>, Error> {
    if reply.is_null() {
        return Ok(Vec::new());
    }
    let [stream] = parts(reply, "entries of one stream")?;
    let [_, rows] = parts(stream, "a stream name and entries")?;
    entries(partition, (rows, from))
}

/// Entries: `[[id, [name, value …]] …]`. The fields are nil if the entry was deleted.
pub(super) fn entries(partition: Partition, (rows, from): Reply) -> Result<Vec<RawEntry>, Error> {
    let entry = |row| {
        let [id, fields] = parts(row, "an entry id and fields")?;
        let at = Position { partition, id: entry_id(id)?, incarnation: from };
        let fields = if fields.is_null() { None } else { Some(field_pairs(fields)?) };
        Ok(RawEntry { at, fields })
    };
    array(rows)?.into_iter().filter(|row| !row.is_null()).map(entry).collect()
}

/// Reply of `claim.lua`: `[last visited id or empty, rows, deleted ids]`.
pub(super) fn claimed(partition: Partition, (reply, from): Reply) -> Result<Claimed, Error> {
    let [visited, rows, deleted] = parts(reply, "a claim of three parts")?;
    let visited = text(visited)?;
    let next = if visited.is_empty() { None } else { entry_id(visited.into())?.after() };
    let cursor = next.unwrap_or_default();
    let deleted = positions(partition, (deleted, from))?;
    Ok(Claimed { entries: entries(partition, (rows, from))?, deleted, cursor })
}

/// Reply of `claim_departed.lua`: `[consumer, rows, deleted ids]`. The consumer is empty if no entry was claimed.
pub(super) fn claimed_departed(
    partition: Partition,
    (reply, incarnation): Reply,
) -> Result<Option<ClaimedDeparted>, Error> {
    let [from, rows, deleted] = parts(reply, "a claim of three parts")?;
    let from = lossy(from)?;
    let entries = entries(partition, (rows, incarnation))?;
    let deleted = positions(partition, (deleted, incarnation))?;
    let claimed = ClaimedDeparted { from, entries, deleted };
    Ok(Some(claimed).filter(|claimed| !claimed.from.is_empty()))
}

/// Reply of `heartbeat.lua`: `[0 or 1, [[name, process, state, assignment, 0 or 1] …]]`. A leading 0 means that another process uses
/// the name.
pub(super) fn members(reply: Value) -> Result<Option<Vec<Member>>, Error> {
    let [is_ours, members] = parts(reply, "a heartbeat result of two parts")?;
    if count(&is_ours)? == 0 {
        return Ok(None);
    }
    let member = |value| {
        let [name, process, state, static_assignment, heartbeat_at, is_young] =
            parts(value, "a member of six parts")?;
        Ok(Member {
            name: bytes(name)?.into(),
            process: lossy(process)?,
            state: MemberState::named(&lossy(state)?),
            static_assignment: lossy(static_assignment)?,
            heartbeat_at: time(&heartbeat_at),
            is_alive: count(&is_young)? == 1,
        })
    };
    array(members)?.into_iter().map(member).collect::<Result<_, Error>>().map(Some)
}

/// Reply of `members.lua`: `[[name, process, state, assignment, time of the heartbeat, current time] …]`, both in milliseconds.
pub(super) fn member_infos(reply: Value) -> Result<Vec<MemberInfo>, Error> {
    let member = |value| {
        let [name, process, state, static_assignment, heartbeat_at, now] =
            parts(value, "a member of six parts")?;
        let (heartbeat_at, now) = (time(&heartbeat_at), count(&now)?);
        let is_ahead = heartbeat_at > now;
        let heartbeat_ms_ago = now.saturating_sub(heartbeat_at);
        let member = Member {
            name: bytes(name)?.into(),
            process: lossy(process)?,
            state: MemberState::named(&lossy(state)?),
            static_assignment: lossy(static_assignment)?,
            heartbeat_at,
            is_alive: !is_ahead && u128::from(heartbeat_ms_ago) < LIVENESS_TIMEOUT.as_millis(),
        };
        Ok(MemberInfo { member, heartbeat_ms_ago, is_ahead })
    };
    array(reply)?.into_iter().map(member).collect()
}

/// Reply of XINFO CONSUMERS: `[name, value …]` for each consumer.
pub(super) fn consumers(reply: Value) -> Result<Vec<ConsumerInfo>, Error> {
    let consumer = |info| {
        let info = named(info)?;
        let number =
            |name| info.get(name).map_or_else(|| Err(unexpected("the counters of a consumer")), count);
        let name =
            info.get("name").cloned().map_or_else(|| Err(unexpected("the name of a consumer")), lossy)?;
        Ok(ConsumerInfo { name, pending: number("pending")?, idle_ms: number("idle")? })
    };
    array(reply)?.into_iter().map(consumer).collect()
}

/// Reply of XPENDING with a range: `[[id, consumer, idle, deliveries] …]`.
pub(super) fn pending(reply: Value) -> Result<Vec<PendingEntry>, Error> {
    let entry = |row| {
        let [id, consumer, idle_ms, deliveries] = parts(row, "a pending entry of four parts")?;
        Ok(PendingEntry {
            id: entry_id(id)?,
            consumer: lossy(consumer)?,
            idle_ms: count(&idle_ms)?,
            deliveries: count(&deliveries)?,
        })
    };
    array(reply)?.into_iter().map(entry).collect()
}

/// Reply of `summarize_pending.lua`: `[last id, entries, maximum deliveries, their entry, maximum idle time, its entry,
/// deleted ids]`.
pub(super) fn pending_summary(reply: Value) -> Result<PendingSummary, Error> {
    let [last, entries, most_deliveries, most_delivered, longest_idle_ms, longest_idle, deleted] =
        parts(reply, "a summary of seven parts")?;
    let id_or_none = |value| {
        let id = text(value)?;
        if id.is_empty() { Ok(None) } else { entry_id(id.into()).map(Some) }
    };
    Ok(PendingSummary {
        last: id_or_none(last)?,
        entries: count(&entries)?,
        most_deliveries: count(&most_deliveries)?,
        most_delivered: id_or_none(most_delivered)?,
        longest_idle_ms: count(&longest_idle_ms)?,
        longest_idle: id_or_none(longest_idle)?,
        deleted: ids(deleted)?,
    })
}

/// Reply of `range_with_fate.lua`: `[last delivered id, entries, pending ids]`.
pub(super) fn range_with_fate(
    partition: Partition,
    (reply, from): Reply,
) -> Result<Vec<(RawEntry, Fate)>, Error> {
    let [delivered, found, pending] = parts(reply, "a range of three parts")?;
    let delivered = entry_id(delivered)?;
    let pending = id_set(pending)?;
    let fate = |id: &EntryId| match id {
        id if *id > delivered => Fate::Undelivered,
        id if pending.contains(id) => Fate::Pending,
        _ => Fate::Acknowledged,
    };
    Ok(entries(partition, (found, from))?
        .into_iter()
        .map(|entry| {
            let fate = fate(&entry.at.id);
            (entry, fate)
        })
        .collect())
}

/// List of ids: `[id …]`.
pub(super) fn id_set(reply: Value) -> Result<HashSet<EntryId>, Error> {
    ids(reply).map(|ids| ids.into_iter().collect())
}

/// Reply of `hand_over.lua`: `[[id …], [id …]]`.
pub(super) fn id_sets(reply: Value) -> Result<(HashSet<EntryId>, HashSet<EntryId>), Error> {
    let [some, others] = parts(reply, "two lists of ids")?;
    Ok((id_set(some)?, id_set(others)?))
}

/// Alternating names and values, as in replies of XINFO.
pub(super) fn named(reply: Value) -> Result<HashMap<String, Value>, Error> {
    pairs(array(reply)?)?.into_iter().map(|(name, value)| Ok((text(name)?, value))).collect()
}

/// Number of deliveries from the reply of XPENDING for one id: `[]` or `[[id, consumer, idle, deliveries]]`.
pub(super) fn deliveries(reply: Value) -> Result<u64, Error> {
    let Some(pending) = array(reply)?.into_iter().next() else { return Ok(0) };
    let deliveries = array(pending)?.get(3).and_then(Value::as_u64);
    deliveries.ok_or_else(|| unexpected("the number of deliveries of a pending entry"))
}

/// Quarantine records: for each entry nil, or its tries as `process/entries`, separated by spaces. Anything else in a record
/// is ignored.
pub(super) fn quarantines(reply: Value) -> Result<Vec<Vec<QuarantineTry>>, Error> {
    let tries = |record: Value| {
        let record = if record.is_null() { String::new() } else { lossy(record)? };
        let one = |text: &str| {
            let (process, entries) = text.rsplit_once('/')?;
            Some(QuarantineTry { process: process.to_owned(), entries: entries.parse().ok()? })
        };
        Ok(record.split_whitespace().filter_map(one).collect())
    };
    array(reply)?.into_iter().map(tries).collect()
}

fn field_pairs(fields: Value) -> Result<Vec<(Bytes, Bytes)>, Error> {
    let pair = |(name, value)| Ok((bytes(name)?, bytes(value)?));
    pairs(array(fields)?)?.into_iter().map(pair).collect()
}

fn pairs(values: Vec<Value>) -> Result<Vec<(Value, Value)>, Error> {
    let mut values = values.into_iter();
    let mut pairs = Vec::with_capacity(values.len() / 2);
    while let Some(first) = values.next() {
        let second = values.next().ok_or_else(|| unexpected("a value for each name"))?;
        pairs.push((first, second));
    }
    Ok(pairs)
}

/// Time in milliseconds, which another program may have written.
fn time(value: &Value) -> u64 {
    value.as_u64().unwrap_or(u64::MAX)
}

/// Non-negative integer.
pub(super) fn count(value: &Value) -> Result<u64, Error> {
    value.as_u64().ok_or_else(|| unexpected("a non-negative integer"))
}

fn positions(partition: Partition, (value, incarnation): Reply) -> Result<Vec<Position>, Error> {
    let position = |id| Position { partition, id, incarnation };
    Ok(ids(value)?.into_iter().map(position).collect())
}

fn ids(value: Value) -> Result<Vec<EntryId>, Error> {
    array(value)?.into_iter().map(entry_id).collect()
}

fn parts<const N: usize>(value: Value, expected: &str) -> Result<[Value; N], Error> {
    array(value)?.try_into().map_err(|_| unexpected(expected))
}

fn array(value: Value) -> Result<Vec<Value>, Error> {
    match value {
        Value::Array(values) => Ok(values),
        _ => Err(unexpected("an array")),
    }
}

/// Converts from a string, too: fred returns bytes that are valid UTF-8 as a string.
fn bytes(value: Value) -> Result<Bytes, Error> {
    value.into_bytes().ok_or_else(|| unexpected("bytes"))
}

fn text(value: Value) -> Result<String, Error> {
    value.into_string().ok_or_else(|| unexpected("text"))
}

/// Name chosen by another program, which may not be valid UTF-8. Invalid bytes are replaced.
fn lossy(value: Value) -> Result<String, Error> {
    Ok(String::from_utf8_lossy(&bytes(value)?).into_owned())
}

fn entry_id(value: Value) -> Result<EntryId, Error> {
    text(value)?.parse().map_err(|_| unexpected("an entry id"))
}

#[cfg(test)]
mod tests {
    use shared::wire::partition::PartitionCount;

    use super::*;

    fn partition() -> Partition {
        PartitionCount::new(1).unwrap().of_user(1)
    }

    fn reply(value: Value) -> Reply {
        (value, Incarnation::default())
    }

    fn list(values: impl IntoIterator<Item = Value>) -> Value {
        Value::Array(values.into_iter().collect())
    }

    #[test]
    fn an_empty_poll_is_not_an_error() {
        assert!(read(partition(), reply(Value::Null)).unwrap().is_empty());
    }

    #[test]
    fn a_deleted_entry_has_no_fields_and_utf8_payloads_are_bytes() {
        let rows = list([
            list(["1-0".into(), list(["l".into(), "utf8".into()])]),
            list(["2-5".into(), Value::Null]),
        ]);
        let entries = entries(partition(), reply(rows)).unwrap();
        assert_eq!(entries[0].fields.as_ref().unwrap()[0].1, "utf8");
        assert!(entries[1].fields.is_none());
        assert_eq!(entries[1].at.id, EntryId { ms: 2, seq: 5 });
    }

    #[test]
    fn a_claim_reports_deleted_entries() {
        let claim = list(["7-0".into(), list([]), list(["3-1".into()])]);
        let claimed = claimed(partition(), reply(claim)).unwrap();
        assert_eq!(claimed.deleted[0].id, EntryId { ms: 3, seq: 1 });
        assert_eq!(claimed.cursor, EntryId { ms: 7, seq: 1 });
    }

    #[test]
    fn a_claim_that_reaches_the_end_starts_again_at_the_first_entry() {
        let claim = |visited: &str| reply(list([visited.into(), list([]), list([])]));
        let last = EntryId::MAX.to_string();
        for visited in ["", &last] {
            assert_eq!(claimed(partition(), claim(visited)).unwrap().cursor, EntryId::default());
        }
    }

    #[test]
    fn names_that_are_not_utf8_are_kept_for_members_and_displayed_for_departed_consumers() {
        let name = || Value::Bytes(Bytes::from_static(b"a\xff"));
        let claimed =
            claimed_departed(partition(), reply(list([name(), list([]), list([])]))).unwrap().unwrap();
        assert_eq!(claimed.from, "a\u{fffd}");
        let member = list([name(), name(), "active".into(), name(), "1".into(), Value::Integer(1)]);
        let members = members(list([Value::Integer(1), list([member])])).unwrap().unwrap();
        assert_eq!(members[0].name.as_ref(), b"a\xff");
        assert_eq!(members[0].name.to_string(), "a\u{fffd}");
    }

    #[test]
    fn a_claim_from_a_departed_consumer_is_parsed() {
        let claim = |from: &str| reply(list([from.into(), list([]), list(["3-1".into()])]));
        let claimed = |from| claimed_departed(partition(), claim(from)).unwrap();
        assert_eq!(claimed("gone").unwrap().deleted[0].id, EntryId { ms: 3, seq: 1 });
        assert_eq!(claimed(""), None);
    }

    #[test]
    fn quarantine_records_list_the_tries_of_an_entry() {
        let one = |process: &str, entries| QuarantineTry { process: process.to_owned(), entries };
        let records = list([Value::Null, "a1/12 b2/1 3".into()]);
        assert_eq!(quarantines(records).unwrap(), [vec![], vec![one("a1", 12), one("b2", 1)]]);
    }

    #[test]
    fn unexpected_reply_shapes_are_errors() {
        assert!(read(partition(), reply(Value::Integer(1))).is_err());
        assert!(read(partition(), reply(list([list(["likes:{0}".into()])]))).is_err());
        assert!(claimed_departed(partition(), reply(list(["a".into(), list([])]))).is_err());
        assert!(count(&"x".into()).is_err());
        assert!(entries(partition(), reply(list([list(["x".into(), Value::Null])]))).is_err());
        assert!(entries(partition(), reply(list([list(["1-0".into(), list(["l".into()])])]))).is_err());
        assert!(claimed(partition(), reply(list(["0-0".into(), list([])]))).is_err());
        assert!(deliveries(list([list(["1-0".into()])])).is_err());
    }
}
