//! Selection of pending entries and dead letters.
//!
//! Purpose: the options that select entries (`Selection`), and their resolved form (`Filter`). `entry_ref` and `time`
//! parse single values, `ids` reads lists. May depend on `context` and `exit`. Must not know how entries are read (`scan`) or
//! changed (`action`).

mod entry_ref;
mod ids;
mod time;

use std::{collections::BTreeSet, fmt, time::Duration};

use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};
use consumer::{entry::EntryId, group::static_assignment::StaticAssignment};
use shared::{
    settings::args::{duration, integer},
    wire::{dead_letter::Reason, partition::Partition},
};

pub(crate) use self::{
    entry_ref::{EntryRef, InvalidEntryRef},
    ids::Ids,
    time::{TimeRange, TimeSpec},
};
use crate::{context::Context, exit::CliError};

/// Selection options that pending entries and dead letters share.
#[derive(Args, Clone, Default)]
#[command(next_help_heading = "Selection")]
pub(crate) struct Selection {
    /// Entries, such as 7/1700000000000-0; - reads them from standard input, one per line
    #[arg(value_name = "PARTITION/ID")]
    ids: Vec<String>,

    /// Partitions, such as 3 or 0-3,8
    #[arg(short, long, value_name = "PARTITIONS")]
    partition: Option<StaticAssignment>,

    /// Consumer of the last delivery
    #[arg(long, value_name = "NAME")]
    consumer: Option<String>,

    /// Minimum number of deliveries
    #[arg(long, value_name = "COUNT")]
    min_deliveries: Option<u64>,

    /// User id of a like in the entry
    #[arg(long, value_name = "ID")]
    user_id: Option<i64>,

    /// Post id of a like in the entry
    #[arg(long, value_name = "ID")]
    post_id: Option<i64>,

    #[command(flatten)]
    range: TimeRange,

    /// Maximum number of entries
    #[arg(long, value_name = "COUNT", value_parser = integer(1_u64..))]
    limit: Option<u64>,
}

/// Selection of pending entries.
#[derive(Args, Clone, Default)]
pub(crate) struct PendingSelection {
    #[command(flatten)]
    selection: Selection,

    /// Minimum time since the last delivery
    #[arg(long, value_name = "DURATION", value_parser = duration, help_heading = "Selection")]
    min_idle: Option<Duration>,
}

/// Selection of dead letters.
#[derive(Args, Clone, Default)]
pub(crate) struct DeadSelection {
    #[command(flatten)]
    selection: Selection,

    /// Reason of the dead letter
    #[arg(long, value_name = "REASON", value_parser = reason_parser(), help_heading = "Selection")]
    reason: Option<Reason>,
}

/// Explicit selection of all entries, for actions.
#[derive(Args, Clone, Copy)]
pub(crate) struct AllArg {
    /// All entries, instead of a selection
    #[arg(long, help_heading = "Selection")]
    pub(crate) all: bool,
}

/// A resolved selection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    pub(crate) partitions: Vec<Partition>,
    pub(crate) ids: Option<Ids>,
    /// Entries on the command line, which must exist.
    pub(crate) named: Vec<EntryRef>,
    /// First and last id.
    pub(crate) range: (EntryId, EntryId),
    pub(crate) consumer: Option<String>,
    pub(crate) min_deliveries: u64,
    pub(crate) min_idle_ms: u64,
    pub(crate) user_id: Option<i64>,
    pub(crate) post_id: Option<i64>,
    pub(crate) reason: Option<Reason>,
    pub(crate) limit: u64,
    /// Options as text, for the audit log.
    pub(crate) text: String,
}

impl PendingSelection {
    pub(crate) async fn resolve(&self, context: &Context) -> Result<Filter, CliError> {
        let mut filter = self.selection.resolve(context).await?;
        if let Some(min_idle) = self.min_idle {
            filter.min_idle_ms = u64::try_from(min_idle.as_millis()).unwrap_or(u64::MAX);
            filter.add_flag("--min-idle", humantime::format_duration(min_idle));
        }
        Ok(filter)
    }
}

impl DeadSelection {
    pub(crate) async fn resolve(&self, context: &Context) -> Result<Filter, CliError> {
        let mut filter = self.selection.resolve(context).await?;
        if let Some(reason) = self.reason {
            filter.reason = Some(reason);
            filter.add_flag("--reason", reason.code());
        }
        Ok(filter)
    }
}

impl Filter {
    /// Matches all entries of these partitions.
    pub(crate) fn all_of(partitions: Vec<Partition>) -> Self {
        let range = (EntryId::default(), EntryId::MAX);
        Self { partitions, range, limit: u64::MAX, ..Self::default() }
    }

    /// Checks that an action on all entries is requested explicitly.
    ///
    /// # Errors
    /// With neither a selection nor `--all`, and with both.
    pub(crate) fn or_all(self, AllArg { all }: AllArg) -> Result<Self, CliError> {
        match (all, self.text.is_empty()) {
            (false, true) => Err(CliError::Usage(
                "no entries selected; pass entries, a selection such as --consumer NAME, or --all".to_owned(),
            )),
            (true, false) => Err(CliError::Usage("--all cannot be combined with a selection".to_owned())),
            (true, true) => Ok(Self { text: "--all".to_owned(), ..self }),
            (false, false) => Ok(self),
        }
    }

    /// Returns whether the payload of an entry must be decoded to match it.
    pub(crate) fn is_by_likes(&self) -> bool {
        self.user_id.is_some() || self.post_id.is_some()
    }

    fn add_flag(&mut self, flag: &str, value: impl fmt::Display) {
        let space = if self.text.is_empty() { "" } else { " " };
        self.text = format!("{}{space}{flag} {value}", self.text);
    }

    fn add_optional_flag(&mut self, flag: &str, value: Option<impl fmt::Display>) {
        if let Some(value) = value {
            self.add_flag(flag, value);
        }
    }

    fn set_ids(&mut self, ids: Ids) {
        let count: usize = ids.values().map(BTreeSet::len).sum();
        self.text = match ids.first_key_value() {
            Some((partition, first)) if count == 1 => {
                first.iter().map(|id| EntryRef { partition: *partition, id: *id }.to_string()).collect()
            }
            _ => format!("{count} ids"),
        };
        self.partitions.retain(|partition| ids.contains_key(&partition.number()));
        self.ids = Some(ids);
    }
}

impl Selection {
    async fn resolve(&self, context: &Context) -> Result<Filter, CliError> {
        let now_ms = context.now_ms().await?;
        let mut filter = Filter {
            partitions: context.partitions_of(self.partition.as_ref())?,
            range: self.range.ids(now_ms)?,
            limit: self.limit.unwrap_or(u64::MAX),
            min_deliveries: self.min_deliveries.unwrap_or(0),
            consumer: self.consumer.clone(),
            user_id: self.user_id,
            post_id: self.post_id,
            ..Filter::default()
        };
        if !self.ids.is_empty() {
            filter.named = self.ids.iter().filter_map(|id| id.parse().ok()).collect();
            filter.set_ids(ids::read(context, &self.ids)?);
        }
        let (first, last) = filter.range;
        filter.add_optional_flag("--partition", self.partition.as_ref());
        filter.add_optional_flag("--consumer", self.consumer.as_ref());
        filter.add_optional_flag("--min-deliveries", self.min_deliveries);
        filter.add_optional_flag("--limit", self.limit);
        filter.add_optional_flag("--user-id", self.user_id);
        filter.add_optional_flag("--post-id", self.post_id);
        filter.add_optional_flag("--since", self.range.since.map(|_| first));
        filter.add_optional_flag("--until", self.range.until.map(|_| last));
        Ok(filter)
    }
}

/// Parses the reason code of a dead letter. The help lists all codes.
fn reason_parser() -> impl TypedValueParser<Value = Reason> {
    let codes = PossibleValuesParser::new(Reason::ALL.map(Reason::code));
    codes.try_map(|code| Reason::from_code(&code).ok_or("unknown reason"))
}
