//! How anything is changed: first shown, then agreed to, then done in chunks that can be stopped and gone on with, and
//! noted in the audit before and after.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    future::Future,
    io::{self, BufWriter, IsTerminal, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use dialoguer::Confirm;
use fred::prelude::Error;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use shared::partition::Partition;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{
    access::Site,
    audit,
    exit::{CliError, Exit},
    letter_record::LetterRecord,
    output::{OutputArgs, count, file_time, print_document},
    scan::{Horizon, Item, Scan},
    selection::EntryRef,
};

/// So many entries are changed at once: what an interruption or a crash can leave half known.
const CHUNK: usize = 100;

/// So many are shown before anything is done.
const SAMPLES: usize = 5;

/// So many that were skipped are named.
const NAMED_SKIPS: u64 = 20;

/// How to act.
#[derive(Args, Clone)]
#[command(next_help_heading = "Safety")]
pub(super) struct ActionArgs {
    /// Show what would be done, and do nothing
    #[arg(long)]
    pub(super) dry_run: bool,

    /// Don't ask; needed where no terminal is
    #[arg(short, long)]
    pub(super) yes: bool,

    /// So many a second at most
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,

    /// Why, for the audit
    #[arg(long, value_name = "TEXT")]
    pub(super) reason_text: Option<String>,

    #[command(flatten)]
    pub(super) output: OutputArgs,
}

/// Where to keep what is removed.
#[derive(Args, Clone)]
pub(super) struct ExportArgs {
    /// Where what is removed is written first, as NDJSON [default: a new file in this folder]
    #[arg(long, value_name = "FILE", conflicts_with = "no_export", help_heading = "Safety")]
    export: Option<PathBuf>,

    /// Don't keep what is removed
    #[arg(long, help_heading = "Safety")]
    no_export: bool,
}

/// Where to keep what is removed, and what is kept of it.
pub(super) type Kept<'a, T> = (&'a ExportArgs, &'a dyn Fn(&T) -> LetterRecord);

/// What an action is.
pub(super) struct Act<'a> {
    /// The command, like `dead purge`.
    pub(super) command: &'static str,
    /// What it is done to, like "dead letters", and one of them.
    pub(super) what: (&'static str, &'static str),
    /// What it does, like "removed for good".
    pub(super) effect: String,
    /// What was chosen, as people wrote it.
    pub(super) selection: &'a str,
    pub(super) args: &'a ActionArgs,
    pub(super) interrupt: &'a CancellationToken,
}

/// What became of a chunk.
#[derive(Default)]
pub(super) struct Applied {
    pub(super) done: u64,
    /// What was left alone, and why.
    pub(super) skipped: Vec<(EntryRef, &'static str)>,
}

impl Applied {
    /// Those of the items that are named are done, the others were not there any more.
    pub(super) fn of<T: Item>(items: &[T], is_done: impl Fn(&T) -> bool, otherwise: &'static str) -> Self {
        let skipped: Vec<_> =
            items.iter().filter(|item| !is_done(item)).map(|item| (item.entry(), otherwise)).collect();
        Self { done: (items.len() - skipped.len()) as u64, skipped }
    }
}

/// What an action would touch.
#[derive(Default)]
struct Preview {
    count: u64,
    partitions: BTreeMap<u16, u64>,
    horizon: Horizon,
    first: Option<EntryRef>,
    last: Option<EntryRef>,
    samples: Vec<String>,
}

/// What an action did, for programs.
#[derive(Serialize)]
pub(super) struct Report {
    pub(super) command: &'static str,
    pub(super) dry_run: bool,
    pub(super) matched: u64,
    pub(super) done: u64,
    pub(super) skipped: u64,
    pub(super) interrupted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) export: Option<PathBuf>,
}

impl Act<'_> {
    /// As [`Act::apply`], and prints what was done.
    pub(super) async fn run<S: Scan>(
        &self,
        site: &Site,
        scan: impl Fn(Option<&Horizon>) -> S,
        export: Option<Kept<'_, S::Item>>,
        apply: impl AsyncFnMut(Partition, &[S::Item]) -> Result<Applied, CliError>,
    ) -> Result<Exit, CliError> {
        let report = self.apply(site, scan, export, apply).await?;
        self.tell(&report)
    }

    /// Shows what a scan brings, asks, and applies the change to all of it. `scan` starts from the beginning.
    pub(super) async fn apply<S: Scan>(
        &self,
        site: &Site,
        scan: impl Fn(Option<&Horizon>) -> S,
        export: Option<Kept<'_, S::Item>>,
        mut apply: impl AsyncFnMut(Partition, &[S::Item]) -> Result<Applied, CliError>,
    ) -> Result<Report, CliError> {
        let mut report = self.report(0);
        let Some(preview) = self.interrupt.run_until_cancelled(preview(scan(None))).await else {
            return Ok(Report { interrupted: true, ..report });
        };
        let preview = preview?;
        self.show(&preview);
        report.matched = preview.count;
        if preview.count == 0 || self.args.dry_run {
            return Ok(report);
        }
        self.confirm(preview.count)?;
        let mut kept = match export {
            Some((ExportArgs { no_export: false, export: file }, record)) => {
                let file = file.clone().unwrap_or_else(|| self.default_file());
                Some((Export::create(&file)?, record))
            }
            _ => None,
        };
        report.export = kept.as_ref().map(|(export, _)| export.path.clone());
        let audit = Box::pin(audit::begin(site, self, preview.count)).await?;
        let progress = self.progress(preview.count);
        let mut pace = Pace::new(self.args.rate);
        let mut pages = scan(Some(&preview.horizon));
        let ended = async {
            while let Some(page) = pages.next_page().await? {
                for chunk in page.chunks(CHUNK.min(pace.chunk())) {
                    let Some(partition) = chunk.first().map(Item::partition) else { continue };
                    if self.interrupt.is_cancelled() || report.done + report.skipped >= preview.count {
                        return Ok::<_, CliError>(());
                    }
                    if let Some((export, record)) = &mut kept {
                        export.keep(chunk.iter().map(record))?;
                    }
                    let applied = apply(partition, chunk).await?;
                    report.done += applied.done;
                    for (entry, why) in applied.skipped {
                        report.skipped += 1;
                        if report.skipped <= NAMED_SKIPS {
                            progress.suspend(|| say(&format!("skipped {entry}: {why}")));
                        }
                    }
                    progress.inc(chunk.len() as u64);
                    self.interrupt.run_until_cancelled(pace.wait(chunk.len())).await;
                }
            }
            Ok(())
        }
        .await;
        progress.finish_and_clear();
        // What matched before and was not found any more has gone its own way.
        report.interrupted = ended.is_ok() && self.interrupt.is_cancelled();
        if ended.is_ok() && !report.interrupted {
            report.skipped = preview.count - report.done;
        }
        let outcome = match &ended {
            Ok(()) if report.interrupted => format!("interrupted after {}", report.done),
            Ok(()) => format!("{} done, {} skipped", report.done, report.skipped),
            Err(error) => format!("failed after {}: {error}", report.done),
        };
        Box::pin(audit::end(site, &audit, &outcome)).await?;
        if let Err(error) = ended {
            let done = report.done;
            say(&format!("{done} of {} are done; run the command again to go on", preview.count));
            return Err(error);
        }
        Ok(report)
    }

    /// What there is to say before anything is done.
    pub(super) fn report(&self, matched: u64) -> Report {
        let (command, dry_run) = (self.command, self.args.dry_run);
        Report { command, dry_run, matched, done: 0, skipped: 0, interrupted: false, export: None }
    }

    /// Shows one thing that is to be done, asks, and does it, noted in the audit. For what is no matter of entries.
    pub(super) async fn once<T>(
        &self,
        site: &Site,
        number: u64,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<Option<T>, CliError> {
        say(&format!("{}: {}", self.command, self.effect));
        if self.args.dry_run {
            say("dry run: nothing was changed");
            return Ok(None);
        }
        self.confirm(number)?;
        let audit = Box::pin(audit::begin(site, self, number)).await?;
        let done = work.await;
        let outcome = done.as_ref().map_or_else(|error| format!("failed: {error}"), |_| "done".to_owned());
        Box::pin(audit::end(site, &audit, &outcome)).await?;
        Ok(Some(done?))
    }

    fn show(&self, preview: &Preview) {
        let (many, one) = self.what;
        if preview.count == 0 {
            return say(&format!("{}: no {many} match", self.command));
        }
        let what = if preview.count == 1 { one } else { many };
        let mut lines =
            vec![format!("{}: {} {what} will be {}", self.command, count(preview.count), self.effect)];
        let partitions = preview
            .partitions
            .iter()
            .map(|(partition, entries)| format!("{partition} ({})", count(*entries)));
        lines.push(format!("  partitions  {}", partitions.collect::<Vec<_>>().join(", ")));
        if let (Some(first), Some(last)) = (preview.first, preview.last) {
            lines.push(format!("  ids         {first} to {last}"));
        }
        for (at, sample) in preview.samples.iter().enumerate() {
            let title = if at == 0 { "samples" } else { "" };
            lines.push(format!("  {title:<10}  {sample}"));
        }
        say(&lines.join("\n"));
    }

    pub(super) fn confirm(&self, number: u64) -> Result<(), CliError> {
        if self.args.yes {
            return Ok(());
        }
        if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            let line = "nothing was changed: there is no terminal to ask on; look at it with --dry-run, do it with --yes";
            return Err(CliError::Refused(line.to_owned()));
        }
        let question = format!(
            "Do this to {}?",
            if number == 1 { "it".to_owned() } else { format!("all {}", count(number)) }
        );
        let yes = Confirm::new().with_prompt(question).default(false).interact_opt();
        match yes {
            Ok(Some(true)) => Ok(()),
            Ok(_) => Err(CliError::Refused("nothing was changed".to_owned())),
            Err(dialoguer::Error::IO(why)) if why.kind() == io::ErrorKind::Interrupted => {
                Err(CliError::Interrupted)
            }
            Err(error) => Err(CliError::failed(format!("the question can't be asked: {error}"))),
        }
    }

    fn default_file(&self) -> PathBuf {
        PathBuf::from(format!("likesctl-{}-{}.ndjson", self.command.replace(' ', "-"), file_time()))
    }

    fn progress(&self, number: u64) -> ProgressBar {
        let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {eta}");
        let bar = ProgressBar::new(number).with_prefix(self.command);
        style.map_or(bar.clone(), |style| bar.with_style(style))
    }

    pub(super) fn tell(&self, report: &Report) -> Result<Exit, CliError> {
        print_document(self.args.output, report, |_| {
            let Report { matched, done, skipped, .. } = report;
            let mut line = match report {
                Report { dry_run: true, .. } => "dry run: nothing was changed".to_owned(),
                Report { interrupted: true, .. } => {
                    format!(
                        "interrupted: {} of {} done; run it again to go on",
                        count(*done),
                        count(*matched)
                    )
                }
                Report { skipped: 0, .. } => format!("{} done", count(*done)),
                _ => format!("{} done, {} skipped", count(*done), count(*skipped)),
            };
            if let Some(export) = &report.export {
                line = format!("{line}; kept in {}", export.display());
            }
            line
        })?;
        Ok(report.exit())
    }
}

impl Report {
    pub(super) fn exit(&self) -> Exit {
        match self {
            Self { interrupted: true, .. } => Exit::Interrupted,
            Self { dry_run: false, skipped: 1.., .. } => Exit::Partial,
            _ => Exit::Done,
        }
    }
}

async fn preview<S: Scan>(mut scan: S) -> Result<Preview, CliError> {
    let mut preview = Preview::default();
    while let Some(page) = scan.next_page().await? {
        for item in &page {
            let entry = item.entry();
            preview.count += 1;
            *preview.partitions.entry(entry.partition).or_default() += 1;
            preview.horizon.insert(entry.partition, entry.id);
            preview.first.get_or_insert(entry);
            preview.last = Some(entry);
            if preview.samples.len() < SAMPLES {
                preview.samples.push(item.line());
            }
        }
    }
    Ok(preview)
}

/// For people: on standard error.
pub(super) fn say(line: &str) {
    // Nobody is left to tell should it be gone.
    let _ = writeln!(io::stderr(), "{line}");
}

/// No more than so many a second.
struct Pace {
    per_second: Option<u32>,
    next: Instant,
}

impl Pace {
    fn new(per_second: Option<u32>) -> Self {
        Self { per_second, next: Instant::now() }
    }

    /// How many may go at once: no more than in a tenth of a second.
    fn chunk(&self) -> usize {
        self.per_second.map_or(usize::MAX, |rate| usize::try_from(rate.div_ceil(10)).unwrap_or(usize::MAX))
    }

    async fn wait(&mut self, done: usize) {
        if let Some(rate) = self.per_second {
            self.next += Duration::from_secs_f64(done as f64 / f64::from(rate));
            sleep_until(self.next).await;
        }
    }
}

/// What is removed, on its way into a file that was not there.
struct Export {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Export {
    fn create(path: &Path) -> Result<Self, CliError> {
        let file = OpenOptions::new().write(true).create_new(true).open(path);
        let file = file.map_err(|why| {
            CliError::Refused(format!("nothing was changed: '{}' can't be made: {why}", path.display()))
        })?;
        Ok(Self { path: path.to_owned(), file: BufWriter::new(file) })
    }

    /// Returns when they are on the disk.
    fn keep(&mut self, records: impl Iterator<Item = LetterRecord>) -> Result<(), CliError> {
        for record in records {
            serde_json::to_writer(&mut self.file, &record).map_err(io::Error::from)?;
            writeln!(self.file)?;
        }
        self.file.flush()?;
        Ok(self.file.get_ref().sync_data()?)
    }
}
