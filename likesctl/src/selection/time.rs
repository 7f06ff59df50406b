//! Times and time ranges on the command line.

use std::{
    str::FromStr,
    time::{Duration, UNIX_EPOCH},
};

use clap::Args;
use consumer::entry::EntryId;
use shared::settings::args::{MAX_DURATION, duration};

use crate::exit::CliError;

/// A point in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TimeSpec {
    /// Time of an id.
    Id(EntryId),
    /// Unix milliseconds.
    At(u64),
    Ago(Duration),
}

impl FromStr for TimeSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_id = |text: &str| {
            text.split('-').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
        };
        // Ids first: humantime would parse 0 as a duration.
        if is_id(text)
            && let Ok(id) = text.parse::<EntryId>()
        {
            return Ok(if text.contains('-') { Self::Id(id) } else { Self::At(id.ms) });
        }
        if let Ok(ago) = duration(text) {
            return Ok(Self::Ago(ago));
        }
        let at = humantime::parse_rfc3339_weak(text).ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let at = at.and_then(|at| u64::try_from(at.as_millis()).ok());
        at.map(Self::At).ok_or_else(|| {
            "expected a time such as 2026-01-31T12:00:00Z, a duration ago such as 2h, Unix milliseconds, or an entry id"
                .to_owned()
        })
    }
}

impl TimeSpec {
    /// Returns the first id that is not before this time.
    pub(crate) fn first(self, now_ms: u64) -> EntryId {
        match self {
            Self::Id(id) => id,
            Self::At(ms) => EntryId { ms, seq: 0 },
            Self::Ago(ago) => EntryId { ms: before(now_ms, ago), seq: 0 },
        }
    }

    /// Returns the last id that is not after this time.
    pub(crate) fn last(self, now_ms: u64) -> EntryId {
        match self {
            Self::Id(id) => id,
            Self::At(ms) => EntryId { ms, seq: u64::MAX },
            Self::Ago(ago) => EntryId { ms: before(now_ms, ago), seq: u64::MAX },
        }
    }
}

fn before(now_ms: u64, ago: Duration) -> u64 {
    now_ms.saturating_sub(u64::try_from(ago.min(MAX_DURATION).as_millis()).unwrap_or(u64::MAX))
}

/// Time range of a selection.
#[derive(Args, Clone, Default)]
pub(crate) struct TimeRange {
    /// Start of the time range: RFC 3339 (2026-01-31T12:00:00Z), a duration ago (2h), Unix milliseconds, or an entry id
    #[arg(long, value_name = "TIME", help_heading = "Selection")]
    pub(crate) since: Option<TimeSpec>,

    /// End of the time range, in the same formats
    #[arg(long, value_name = "TIME", help_heading = "Selection")]
    pub(crate) until: Option<TimeSpec>,
}

impl TimeRange {
    /// Returns the first and the last id of the range.
    pub(crate) fn ids(&self, now_ms: u64) -> Result<(EntryId, EntryId), CliError> {
        let first = self.since.map_or(EntryId::default(), |since| since.first(now_ms));
        let last = self.until.map_or(EntryId::MAX, |until| until.last(now_ms));
        if first > last {
            return Err(CliError::Usage("the time range is empty: it ends before it starts".to_owned()));
        }
        Ok((first, last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_timestamp_a_duration_or_an_id() {
        let now_ms = 1_700_000_000_000;
        let first = |text: &str| text.parse::<TimeSpec>().unwrap().first(now_ms);
        assert_eq!(first("2h"), EntryId { ms: now_ms - 7_200_000, seq: 0 });
        assert_eq!(first("2023-11-14T22:13:20Z"), EntryId { ms: now_ms, seq: 0 });
        assert_eq!(first("1700000000000-7"), EntryId { ms: now_ms, seq: 7 });
        assert_eq!(first("0"), EntryId::default());
        assert_eq!(first("1700000000000"), EntryId { ms: now_ms, seq: 0 });
        assert_eq!(
            "1700000000000".parse::<TimeSpec>().unwrap().last(now_ms),
            EntryId { ms: now_ms, seq: u64::MAX }
        );
        for bad in ["", "yesterday", "-", "-2h", "1-2-3", "1969-01-01T00:00:00Z"] {
            assert!(bad.parse::<TimeSpec>().is_err(), "{bad}");
        }
    }
}
