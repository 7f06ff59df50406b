//! The backlog of a stream, and whether the stream has lost entries.

use std::collections::HashMap;

use fred::prelude::{Error, Value};

use crate::redis::{self, Connections, Retry};

/// State of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamState {
    /// Backlog of the slowest group.
    pub backlog: u64,
    length: u64,
    /// Number of entries ever added.
    entries_added: u64,
    last_generated: Option<(u64, u64)>,
    first: Option<(u64, u64)>,
}

impl StreamState {
    /// Returns whether entries are missing that an earlier state had, other than by trimming: it is another stream, or an
    /// earlier state of the same one.
    pub fn has_lost_entries_of(&self, earlier: &Self) -> bool {
        // Nothing was removed from this stream, so its first entry is the first one ever added.
        let is_another = self.length == self.entries_added && self.first > earlier.last_generated;
        let went_back =
            self.entries_added < earlier.entries_added || self.last_generated < earlier.last_generated;
        earlier.entries_added > 0 && (is_another || went_back)
    }
}

/// Returns the backlog of the slowest group of a stream, as [`state_of_stream`] does.
///
/// # Errors
/// When Redis fails.
pub async fn of_stream(redis: &Connections, stream: &str) -> Result<u64, Error> {
    state_of_stream(redis, stream).await.map(|state| state.backlog)
}

/// Returns the state of a stream. The backlog (lag and pending entries) is that of the slowest group; without a group it is
/// the length of the stream, and without a stream 0.
///
/// Redis's own lag of a group is unreliable. It is unknown (null) after some events, and permanently too large after Redis
/// 7.0 has been restarted from its append-only file. So the lag is capped at the length of the stream, and is 0 where the
/// group's last delivered entry is the last one ever added.
///
/// # Errors
/// When Redis fails.
pub async fn state_of_stream(redis: &Connections, stream: &str) -> Result<StreamState, Error> {
    let about = |subcommand: &'static str| vec![subcommand.into(), stream.into()];
    let groups: Vec<HashMap<String, Value>> =
        match redis.run(stream, Retry::Idempotent, "XINFO", about("GROUPS")).await {
            Ok(groups) => groups,
            Err(error) if redis::is_missing_key(&error) => return Ok(StreamState::default()),
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
    let first = about.get("first-entry").cloned().map(Value::into_array).unwrap_or_default();
    Ok(StreamState {
        backlog: groups.iter().map(of_group).max().unwrap_or(length),
        length,
        entries_added: number(&about, "entries-added").unwrap_or(0),
        last_generated: last,
        first: first.first().and_then(parse_id),
    })
}

fn number(info: &HashMap<String, Value>, field: &str) -> Option<u64> {
    info.get(field).and_then(Value::as_u64)
}

/// Returns an entry id as milliseconds and sequence number.
fn id(info: &HashMap<String, Value>, field: &str) -> Option<(u64, u64)> {
    parse_id(info.get(field)?)
}

fn parse_id(id: &Value) -> Option<(u64, u64)> {
    let text = id.as_str()?;
    let (ms, seq) = text.split_once('-')?;
    Some((ms.parse().ok()?, seq.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(length: u64, entries_added: u64, last: u64, first: Option<u64>) -> StreamState {
        let id = |ms| (ms, 0);
        StreamState {
            backlog: length,
            length,
            entries_added,
            last_generated: Some(id(last)),
            first: first.map(id),
        }
    }

    #[test]
    fn trimmed_and_new_entries_are_no_loss() {
        let earlier = state(10, 30, 30, Some(21));
        for now in [earlier, state(15, 35, 35, Some(21)), state(0, 30, 30, None), state(1, 31, 40, Some(40))]
        {
            assert!(!now.has_lost_entries_of(&earlier), "{now:?}");
        }
        assert!(!state(3, 3, 3, Some(1)).has_lost_entries_of(&StreamState::default()));
    }

    #[test]
    fn a_stream_that_vanished_or_went_back_has_lost_entries() {
        let earlier = state(10, 30, 30, Some(21));
        for now in [
            StreamState::default(),
            // It was created again, also with more entries than before.
            state(5, 5, 45, Some(41)),
            state(50, 50, 90, Some(41)),
            // A replica without the newest entries was promoted.
            state(8, 28, 28, Some(21)),
        ] {
            assert!(now.has_lost_entries_of(&earlier), "{now:?}");
        }
    }
}
