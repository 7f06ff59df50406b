//! Which entries and which dead letters a command is about.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::{self, BufRead, IsTerminal},
    str::FromStr,
    time::{Duration, UNIX_EPOCH},
};

use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};
use consumer::{
    entry::{EntryId, Position},
    group::static_assignment::StaticAssignment,
};
use serde::{Serialize, Serializer};
use shared::{
    settings::args::{MAX_DURATION, duration},
    wire::{dead_letter::Reason, partition::Partition},
};

use crate::{context::Context, exit::CliError};

/// So many ids are read from standard input at most.
const MAX_IDS: usize = 1_000_000;

/// An entry, as people write it: `7/1700000000000-0`, or as a dead letter names its origin, `likes:{7}/1700000000000-0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EntryRef {
    pub(crate) partition: u16,
    pub(crate) id: EntryId,
}

/// Not an entry.
#[derive(Debug, thiserror::Error)]
#[error("allowed are a partition and an id, like 7/1700000000000-0")]
pub(crate) struct InvalidEntryRef;

impl FromStr for EntryRef {
    type Err = InvalidEntryRef;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (partition, id) = text.rsplit_once('/').ok_or(InvalidEntryRef)?;
        let partition = match partition.rsplit_once('{') {
            Some((_, tagged)) => tagged.strip_suffix('}').ok_or(InvalidEntryRef)?,
            None => partition,
        };
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b'-');
        if !digits(id) || !digits(partition) {
            return Err(InvalidEntryRef);
        }
        let partition = partition.parse().map_err(|_| InvalidEntryRef)?;
        Ok(Self { partition, id: id.parse().map_err(|_| InvalidEntryRef)? })
    }
}

impl fmt::Display for EntryRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.partition, self.id)
    }
}

impl Serialize for EntryRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl From<Position> for EntryRef {
    fn from(at: Position) -> Self {
        Self { partition: at.partition.number(), id: at.id }
    }
}

/// A moment in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TimeSpec {
    /// That of an id.
    Id(EntryId),
    /// In Unix milliseconds.
    At(u64),
    Ago(Duration),
}

impl FromStr for TimeSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_id = |text: &str| {
            text.split('-').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
        };
        // First: humantime takes 0 for a duration, too.
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
            "allowed are a time like 2026-01-31T12:00:00Z, a duration before now like 2h, Unix milliseconds, or an entry's id"
                .to_owned()
        })
    }
}

impl TimeSpec {
    /// The first id that is not before it.
    pub(crate) fn first(self, now_ms: u64) -> EntryId {
        match self {
            Self::Id(id) => id,
            Self::At(ms) => EntryId { ms, seq: 0 },
            Self::Ago(ago) => EntryId { ms: before(now_ms, ago), seq: 0 },
        }
    }

    /// The last id that is not after it.
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

/// A part of the time that streams cover.
#[derive(Args, Clone, Default)]
pub(crate) struct TimeRange {
    /// Not before: a time (2026-01-31T12:00:00Z), a duration ago (2h), Unix milliseconds, or an id
    #[arg(long, value_name = "TIME", help_heading = "Selection")]
    pub(crate) since: Option<TimeSpec>,

    /// Not after
    #[arg(long, value_name = "TIME", help_heading = "Selection")]
    pub(crate) until: Option<TimeSpec>,
}

impl TimeRange {
    pub(crate) fn ids(&self, now_ms: u64) -> Result<(EntryId, EntryId), CliError> {
        let first = self.since.map_or(EntryId::default(), |since| since.first(now_ms));
        let last = self.until.map_or(EntryId::MAX, |until| until.last(now_ms));
        if first > last {
            return Err(CliError::Usage("the end of the time is before its beginning".to_owned()));
        }
        Ok((first, last))
    }
}

/// What pending entries and dead letters can be chosen by alike.
#[derive(Args, Clone, Default)]
#[command(next_help_heading = "Selection")]
pub(crate) struct Selection {
    /// These alone, like 7/1700000000000-0; a hyphen reads them from standard input, one a line
    #[arg(value_name = "PARTITION/ID")]
    ids: Vec<String>,

    /// In these partitions, like 3 or 0-3,8
    #[arg(short, long, value_name = "PARTITIONS")]
    partition: Option<StaticAssignment>,

    /// Of this consumer
    #[arg(long, value_name = "NAME")]
    consumer: Option<String>,

    /// Delivered so often at least
    #[arg(long, value_name = "COUNT")]
    min_deliveries: Option<u64>,

    /// With a like of this user
    #[arg(long, value_name = "ID")]
    user_id: Option<i64>,

    /// With a like of this post
    #[arg(long, value_name = "ID")]
    post_id: Option<i64>,

    #[command(flatten)]
    span: TimeRange,

    /// So many at most
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
}

/// Pending entries.
#[derive(Args, Clone, Default)]
pub(crate) struct PendingSelection {
    #[command(flatten)]
    selection: Selection,

    /// Not heard of for so long at least
    #[arg(long, value_name = "DURATION", value_parser = duration, help_heading = "Selection")]
    min_idle: Option<Duration>,
}

/// Dead letters.
#[derive(Args, Clone, Default)]
pub(crate) struct DeadSelection {
    #[command(flatten)]
    selection: Selection,

    /// For this reason
    #[arg(long, value_name = "REASON", value_parser = reason_parser(), help_heading = "Selection")]
    reason: Option<Reason>,
}

/// All there is, for an action that says nothing else.
#[derive(Args, Clone, Copy)]
pub(crate) struct Everything {
    /// All there are
    #[arg(long, help_heading = "Selection")]
    pub(crate) all: bool,
}

/// What was chosen, resolved.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    pub(crate) partitions: Vec<Partition>,
    pub(crate) ids: Option<BTreeMap<u16, BTreeSet<EntryId>>>,
    /// Those of them that were named on the command line: they must be there.
    pub(crate) named: Vec<EntryRef>,
    pub(crate) span: (EntryId, EntryId),
    pub(crate) consumer: Option<String>,
    pub(crate) min_deliveries: u64,
    pub(crate) min_idle_ms: u64,
    pub(crate) user_id: Option<i64>,
    pub(crate) post_id: Option<i64>,
    pub(crate) reason: Option<Reason>,
    pub(crate) limit: u64,
    /// As people wrote it, for the audit.
    pub(crate) text: String,
}

impl PendingSelection {
    pub(crate) async fn resolve(&self, context: &Context) -> Result<Filter, CliError> {
        let mut filter = self.selection.resolve(context).await?;
        if let Some(min_idle) = self.min_idle {
            filter.min_idle_ms = u64::try_from(min_idle.as_millis()).unwrap_or(u64::MAX);
            filter.say("--min-idle", humantime::format_duration(min_idle));
        }
        Ok(filter)
    }
}

impl DeadSelection {
    pub(crate) async fn resolve(&self, context: &Context) -> Result<Filter, CliError> {
        let mut filter = self.selection.resolve(context).await?;
        if let Some(reason) = self.reason {
            filter.reason = Some(reason);
            filter.say("--reason", reason.code());
        }
        Ok(filter)
    }
}

impl Filter {
    /// All there is, in no partition yet.
    pub(crate) fn everything() -> Self {
        Self { span: (EntryId::default(), EntryId::MAX), limit: u64::MAX, ..Self::default() }
    }

    /// All of one partition.
    pub(crate) fn all_of(partition: Partition) -> Self {
        Self { partitions: vec![partition], ..Self::everything() }
    }

    /// An action on everything must be asked for.
    ///
    /// # Errors
    /// When nothing was chosen, or something together with everything.
    pub(crate) fn or_all(self, Everything { all }: Everything) -> Result<Self, CliError> {
        match (all, self.text.is_empty()) {
            (false, true) => Err(CliError::Usage(
                "say which: ids, a selection like --consumer, or --all (see --help)".to_owned(),
            )),
            (true, false) => Err(CliError::Usage("--all and a selection exclude each other".to_owned())),
            (true, true) => Ok(Self { text: "--all".to_owned(), ..self }),
            (false, false) => Ok(self),
        }
    }

    fn say(&mut self, flag: &str, value: impl fmt::Display) {
        let space = if self.text.is_empty() { "" } else { " " };
        self.text = format!("{}{space}{flag} {value}", self.text);
    }

    /// Whether the likes of an entry have to be looked at.
    pub(crate) fn is_by_likes(&self) -> bool {
        self.user_id.is_some() || self.post_id.is_some()
    }
}

impl Selection {
    async fn resolve(&self, context: &Context) -> Result<Filter, CliError> {
        let now_ms = context.now_ms().await?;
        let mut filter = Filter {
            partitions: context.partitions_of(self.partition.as_ref())?,
            span: self.span.ids(now_ms)?,
            limit: self.limit.unwrap_or(u64::MAX),
            min_deliveries: self.min_deliveries.unwrap_or(0),
            consumer: self.consumer.clone(),
            user_id: self.user_id,
            post_id: self.post_id,
            ..Filter::default()
        };
        if !self.ids.is_empty() {
            let ids = self.read_ids(context)?;
            let entries: usize = ids.values().map(BTreeSet::len).sum();
            filter.text = match ids.first_key_value() {
                Some((partition, first)) if entries == 1 => {
                    first.iter().map(|id| EntryRef { partition: *partition, id: *id }.to_string()).collect()
                }
                _ => format!("{entries} ids"),
            };
            filter.partitions.retain(|partition| ids.contains_key(&partition.number()));
            filter.named = self.ids.iter().filter_map(|id| id.parse().ok()).collect();
            filter.ids = Some(ids);
        }
        if let Some(partitions) = &self.partition {
            filter.say("--partition", partitions);
        }
        if let Some(consumer) = &self.consumer {
            filter.say("--consumer", consumer);
        }
        let numbers = [("--min-deliveries", self.min_deliveries), ("--limit", self.limit)];
        for (flag, number) in numbers.into_iter().filter_map(|(flag, number)| Some((flag, number?))) {
            filter.say(flag, number);
        }
        for (flag, id) in [("--user-id", self.user_id), ("--post-id", self.post_id)] {
            if let Some(id) = id {
                filter.say(flag, id);
            }
        }
        for (flag, at, id) in
            [("--since", self.span.since, filter.span.0), ("--until", self.span.until, filter.span.1)]
        {
            if at.is_some() {
                filter.say(flag, id);
            }
        }
        Ok(filter)
    }

    fn read_ids(&self, context: &Context) -> Result<BTreeMap<u16, BTreeSet<EntryId>>, CliError> {
        let mut ids: BTreeMap<u16, BTreeSet<EntryId>> = BTreeMap::new();
        let mut take = |text: &str| {
            let entry: EntryRef =
                text.parse().map_err(|why| CliError::Usage(format!("'{text}' is no entry: {why}")))?;
            context.partition(entry.partition)?;
            ids.entry(entry.partition).or_default().insert(entry.id);
            Ok::<_, CliError>(())
        };
        for text in &self.ids {
            if text == "-" {
                if io::stdin().is_terminal() {
                    return Err(CliError::Usage(
                        "a hyphen reads ids from standard input, which is a terminal".to_owned(),
                    ));
                }
                for (number, line) in io::stdin().lock().lines().enumerate() {
                    let line = line?;
                    if number >= MAX_IDS {
                        return Err(CliError::Usage(format!(
                            "more than {MAX_IDS} ids: select in another way"
                        )));
                    }
                    let id = id_of_line(line.trim());
                    // The head of a table.
                    if !id.is_empty() && id != "ENTRY" {
                        take(id)?;
                    }
                }
            } else {
                take(text)?;
            }
        }
        Ok(ids)
    }
}

/// A line is an id, a row of a table that begins with one, or a line of `-o ndjson`.
fn id_of_line(line: &str) -> &str {
    if line.starts_with('{')
        && let Some((_, rest)) = line.split_once("\"entry\":\"")
    {
        return rest.split('"').next().unwrap_or_default();
    }
    line.split_whitespace().next().unwrap_or_default()
}

/// Parses the code of a dead-letter reason; the possible codes are in the help.
fn reason_parser() -> impl TypedValueParser<Value = Reason> {
    let codes = PossibleValuesParser::new(Reason::ALL.map(Reason::code));
    codes.try_map(|code| Reason::from_code(&code).ok_or("unknown reason"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_named_with_their_partition() {
        let entry: EntryRef = "7/1700000000000-3".parse().unwrap();
        assert_eq!(entry, EntryRef { partition: 7, id: EntryId { ms: 1_700_000_000_000, seq: 3 } });
        assert_eq!("likes:{7}/1700000000000-3".parse::<EntryRef>().unwrap(), entry);
        assert_eq!(entry.to_string(), "7/1700000000000-3");
        for bad in
            ["", "7", "7/", "/1-0", "x/1-0", "7/x", "likes:{7/1-0", "7/1-0-0", "7/+1", "7/-1", "-1/1-0"]
        {
            assert!(bad.parse::<EntryRef>().is_err(), "{bad}");
        }
    }

    #[test]
    fn moments_are_times_durations_and_ids() {
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

    #[test]
    fn lines_of_lists_name_entries() {
        assert_eq!(id_of_line("7/1-0"), "7/1-0");
        assert_eq!(id_of_line("7/1-0   consumer-1   5s"), "7/1-0");
        assert_eq!(id_of_line(r#"{"entry":"7/1-0","consumer":"c"}"#), "7/1-0");
    }
}
