//! `likesctl dead import`: imports dead letters from a file.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    fs::File,
    hash::{BuildHasher, RandomState},
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use clap::Args;
use shared::{
    stderr::eprint_line,
    wire::{codec, partition::Partition},
};
use tokio_util::sync::CancellationToken;

use crate::{
    action::{Action, ActionArgs, Pace, PaceArgs, Report},
    context::{Context, RedisAccess},
    dead_letter_record::DeadLetterRecord,
    exit::{CliError, Exit},
    output::many,
    scan::{DeadScan, Scan},
    selection::Filter,
};

/// Size of the buffer for reading the file.
const BUFFER_BYTES: usize = 512 << 10;

#[derive(Args)]
pub(crate) struct Options {
    /// File to import
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    pace: PaceArgs,
    #[command(flatten)]
    action: ActionArgs,
    #[command(flatten)]
    redis: RedisAccess,
}

/// Partition and fields of a dead letter.
type Record = (Partition, Vec<(Bytes, Bytes)>);

pub(super) async fn run(
    Options { file, pace, action: args, redis }: Options,
    interrupt: &CancellationToken,
) -> Result<Exit, CliError> {
    let context = redis.open().await?;
    // The whole file is validated before the first change.
    let unchanged = |error: CliError| CliError::failed(format!("{error}; nothing was changed"));
    let mut records = 0;
    for record in read_records(&context, &file).map_err(unchanged)? {
        record.map_err(unchanged)?;
        records += 1;
    }
    let name = file.display().to_string();
    let dead_letters = many(records, "dead letter", "dead letters");
    let action = Action {
        command: "dead import",
        items: ("dead letters", "dead letter"),
        effect: format!("{dead_letters} from {name} will be imported; existing ones will be skipped"),
        selection: &name,
        args: &args,
        pace: Some(pace),
        interrupt,
    };
    eprint_line(format_args!("{}: {}", action.command, action.effect));
    let mut report = action.report(records);
    if records == 0 || args.dry_run {
        return action.print(&report);
    }
    action.confirm(records).await?;
    let audit_id = action.begin_audit(&context, records).await?;
    let imported = import_all(&context, &file, &action, &mut report).await;
    action.end_audit(&context, &audit_id, &report, imported.as_ref().err()).await;
    let existing = imported?;
    if existing > 0 {
        let existed = many(existing, "dead letter already existed", "dead letters already existed");
        eprint_line(existed);
    }
    action.print(&report)
}

/// Imports dead letters and returns the number of those that already existed.
async fn import_all(
    context: &Context,
    file: &Path,
    action: &Action<'_>,
    report: &mut Report,
) -> Result<u64, CliError> {
    let mut existing = 0;
    let mut known = KnownDeadLetters::new();
    let mut pace = Pace::new(action.pace);
    let progress = action.progress(report.matched);
    for record in read_records(context, file)? {
        report.interrupted = action.interrupt.is_cancelled();
        if report.interrupted {
            break;
        }
        let (partition, fields) = record?;
        if known.insert(context, partition, &fields).await? {
            context.streams.import_dead_letter(partition, fields).await?;
            report.done += 1;
            action.interrupt.run_until_cancelled(pace.wait(1)).await;
        } else {
            existing += 1;
        }
        progress.inc(1);
    }
    progress.finish_and_clear();
    Ok(existing)
}

/// Fingerprints of dead letters. The combination of origin, reason and payload is unique.
struct KnownDeadLetters {
    hasher: RandomState,
    fingerprints: BTreeMap<u16, HashSet<u64>>,
}

impl KnownDeadLetters {
    fn new() -> Self {
        Self { hasher: RandomState::new(), fingerprints: BTreeMap::new() }
    }

    fn fingerprint(&self, fields: &[(Bytes, Bytes)]) -> u64 {
        let field =
            |name: &str| fields.iter().find(|(field, _)| field == name.as_bytes()).map(|(_, value)| value);
        self.hasher.hash_one(["origin", "reason", codec::FIELD, "original"].map(field))
    }

    /// Adds a dead letter and returns whether it is new. The first call for a partition reads its dead letters.
    async fn insert(
        &mut self,
        context: &Context,
        partition: Partition,
        fields: &[(Bytes, Bytes)],
    ) -> Result<bool, CliError> {
        let number = partition.number();
        if !self.fingerprints.contains_key(&number) {
            let filter = Filter::all_of(vec![partition]);
            let mut scan = DeadScan::new(context, &filter, None);
            let mut known = HashSet::new();
            while let Some(page) = scan.next_page().await? {
                known.extend(page.iter().map(|dead_letter| self.fingerprint(&dead_letter.fields)));
            }
            self.fingerprints.insert(number, known);
        }
        let fingerprint = self.fingerprint(fields);
        Ok(self.fingerprints.entry(number).or_default().insert(fingerprint))
    }
}

fn read_records<'a>(
    context: &'a Context,
    file: &'a Path,
) -> Result<impl Iterator<Item = Result<Record, CliError>> + 'a, CliError> {
    let failed =
        |why: &dyn fmt::Display| CliError::failed(format!("cannot read '{}': {why}", file.display()));
    let opened = File::open(file).map_err(|why| failed(&why))?;
    if !opened.metadata().map_err(|why| failed(&why))?.is_file() {
        return Err(failed(&"not a regular file, which is required because the file is read twice"));
    }
    let lines = BufReader::with_capacity(BUFFER_BYTES, opened).lines().enumerate();
    let record = move |(index, line): (usize, io::Result<String>)| {
        let failed = |why: &dyn fmt::Display| {
            CliError::failed(format!("'{}', line {}: {why}", file.display(), index + 1))
        };
        let line = line.map_err(|why| failed(&why))?;
        if line.trim().is_empty() {
            return Ok(None);
        }
        let (entry, fields) = DeadLetterRecord::parse(&line).map_err(|why| failed(&why))?;
        Ok(Some((context.partition(entry.partition)?, fields)))
    };
    Ok(lines.map(record).filter_map(Result::transpose))
}
