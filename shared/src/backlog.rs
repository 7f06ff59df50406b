//! How much of a stream is still to be done.

use std::collections::HashMap;

use fred::prelude::{Error, Value};

use crate::redis::{self, Connections, Retry};

/// What the slowest group of a stream has still to do: undelivered and pending entries. Without a group that is all of
/// the stream, and nothing without a stream.
///
/// Redis's own lag of a group is not taken at its word. It is unknown (null) after some events, and it is too large,
/// for good, after Redis 7.0 has been restarted from its append-only file. So it is bounded by the length of the
/// stream, and nothing is undelivered where the group has got to the last entry that there ever was.
///
/// # Errors
/// When Redis fails.
pub async fn of_stream(redis: &Connections, stream: &str) -> Result<u64, Error> {
    let about = |what: &'static str| vec![what.into(), stream.into()];
    let groups: Vec<HashMap<String, Value>> =
        match redis.run(stream, Retry::Idempotent, "XINFO", about("GROUPS")).await {
            Ok(groups) => groups,
            Err(error) if redis::error_code(&error) == Some("ERR") => return Ok(0), // no such key
            Err(error) => return Err(error),
        };
    let about: HashMap<String, Value> =
        redis.run(stream, Retry::Idempotent, "XINFO", about("STREAM")).await?;
    let length = number(&about, "length").unwrap_or(0);
    let last = id(&about, "last-generated-id");
    let of_group = |group: &HashMap<String, Value>| {
        let delivered = id(group, "last-delivered-id");
        let lag = if delivered.is_some() && delivered >= last { Some(0) } else { number(group, "lag") };
        let pending = number(group, "pending").unwrap_or(0);
        // Where it isn't known, it may be all that isn't pending.
        lag.map_or(length.saturating_sub(pending), |lag| lag.min(length)) + pending
    };
    Ok(groups.iter().map(of_group).max().unwrap_or(length))
}

fn number(info: &HashMap<String, Value>, field: &str) -> Option<u64> {
    info.get(field).and_then(Value::as_u64)
}

/// Milliseconds and sequence number.
fn id(info: &HashMap<String, Value>, field: &str) -> Option<(u64, u64)> {
    let text = info.get(field)?.as_str()?;
    let (ms, seq) = text.split_once('-')?;
    Some((ms.parse().ok()?, seq.parse().ok()?))
}
