//! The backlog of a stream.

use std::collections::HashMap;

use fred::prelude::{Error, Value};

use crate::redis::{self, Connections, Retry};

/// Returns the backlog (lag and pending entries) of the slowest group of a stream. Without a group it is the length of the
/// stream, and without a stream 0.
///
/// Redis's own lag of a group is unreliable. It is unknown (null) after some events, and permanently too large after Redis
/// 7.0 has been restarted from its append-only file. So the lag is capped at the length of the stream, and is 0 where the
/// group's last delivered entry is the last one ever added.
///
/// # Errors
/// When Redis fails.
pub async fn of_stream(redis: &Connections, stream: &str) -> Result<u64, Error> {
    let about = |subcommand: &'static str| vec![subcommand.into(), stream.into()];
    let groups: Vec<HashMap<String, Value>> =
        match redis.run(stream, Retry::Idempotent, "XINFO", about("GROUPS")).await {
            Ok(groups) => groups,
            Err(error) if redis::is_missing_key(&error) => return Ok(0),
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
        // An unknown lag is at most the entries that are not pending.
        lag.map_or(length.saturating_sub(pending), |lag| lag.min(length)) + pending
    };
    Ok(groups.iter().map(of_group).max().unwrap_or(length))
}

fn number(info: &HashMap<String, Value>, field: &str) -> Option<u64> {
    info.get(field).and_then(Value::as_u64)
}

/// Returns an entry id as milliseconds and sequence number.
fn id(info: &HashMap<String, Value>, field: &str) -> Option<(u64, u64)> {
    let text = info.get(field)?.as_str()?;
    let (ms, seq) = text.split_once('-')?;
    Some((ms.parse().ok()?, seq.parse().ok()?))
}
