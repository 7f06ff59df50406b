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
use shared::wire::partition::Partition;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::{
    audit::{self, Intent},
    context::Context,
    dead_letter_record::DeadLetterRecord,
    exit::{CliError, Exit},
    output::{OutputArgs, count, file_time, print_document},
    scan::{Item, Scan, ScanBound},
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
pub(crate) struct ActionArgs {
    /// Show what would be done, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// Don't ask; needed where no terminal is
    #[arg(short, long)]
    pub(crate) yes: bool,

    /// Why, for the audit
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason_text: Option<String>,

    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// How fast to act on many.
#[derive(Args, Clone, Copy)]
pub(crate) struct PaceArgs {
    /// So many a second at most
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Safety")]
    rate: Option<u32>,
}

/// Where to keep what is removed.
#[derive(Args, Clone)]
pub(crate) struct ExportArgs {
    /// Where what is removed is written first, as NDJSON [default: a new file in this folder]
    #[arg(long, value_name = "FILE", conflicts_with = "no_export", help_heading = "Safety")]
    export: Option<PathBuf>,

    /// Don't keep what is removed
    #[arg(long, help_heading = "Safety")]
    no_export: bool,
}

/// Where to keep what is removed, and what is kept of it.
pub(crate) type ExportTarget<'a, T> = (&'a ExportArgs, &'a dyn Fn(&T) -> DeadLetterRecord);

/// What an action is.
pub(crate) struct Action<'a> {
    /// The command, like `dead purge`.
    pub(crate) command: &'static str,
    /// What it is done to, like "dead letters", and one of them.
    pub(crate) what: (&'static str, &'static str),
    /// What it does, like "removed for good".
    pub(crate) effect: String,
    /// What was chosen, as people wrote it.
    pub(crate) selection: &'a str,
    pub(crate) args: &'a ActionArgs,
    /// Nothing for what is no matter of entries.
    pub(crate) pace: Option<PaceArgs>,
    pub(crate) interrupt: &'a CancellationToken,
}

/// What became of a chunk.
#[derive(Default)]
pub(crate) struct ActionResult {
    pub(crate) done: u64,
    /// What was left alone, and why. What is neither was gone by itself.
    pub(crate) skipped: Vec<(EntryRef, &'static str)>,
}

impl ActionResult {
    /// So many are done, and those that are to be left alone are so for this reason.
    pub(crate) fn but<T: Item>(
        done: usize,
        items: &[T],
        is_left: impl Fn(&T) -> bool,
        why: &'static str,
    ) -> Self {
        let left = items.iter().filter(|item| is_left(item));
        Self { done: done as u64, skipped: left.map(|item| (item.entry(), why)).collect() }
    }
}

/// What an action would touch.
#[derive(Default)]
struct Preview {
    count: u64,
    partitions: BTreeMap<u16, u64>,
    bound: ScanBound,
    first: Option<EntryRef>,
    last: Option<EntryRef>,
    samples: Vec<String>,
}

/// What an action did, for programs.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) command: &'static str,
    pub(crate) dry_run: bool,
    pub(crate) matched: u64,
    pub(crate) done: u64,
    /// Left alone, for a reason.
    pub(crate) skipped: u64,
    /// Matched before, and was done with by itself meanwhile.
    pub(crate) gone: u64,
    pub(crate) interrupted: bool,
    /// How far it got.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) last: Option<EntryRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) export: Option<PathBuf>,
}

impl Action<'_> {
    /// As [`Action::apply`], and prints what was done.
    pub(crate) async fn run<S: Scan>(
        &self,
        context: &Context,
        scan: impl Fn(Option<&ScanBound>) -> S,
        export: Option<ExportTarget<'_, S::Item>>,
        apply: impl AsyncFnMut(Partition, &[S::Item]) -> Result<ActionResult, CliError>,
    ) -> Result<Exit, CliError> {
        let report = self.apply(context, scan, export, apply).await?;
        self.tell(&report)
    }

    /// Shows what a scan brings, asks, and applies the change to all of it. `scan` starts from the beginning.
    pub(crate) async fn apply<S: Scan>(
        &self,
        context: &Context,
        scan: impl Fn(Option<&ScanBound>) -> S,
        export: Option<ExportTarget<'_, S::Item>>,
        mut apply: impl AsyncFnMut(Partition, &[S::Item]) -> Result<ActionResult, CliError>,
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
        self.confirm(preview.count).await?;
        let mut kept = match export {
            Some((ExportArgs { no_export: false, export: file }, record)) => {
                let file = file.clone().unwrap_or_else(|| self.default_file());
                Some((Export::create(&file)?, record))
            }
            _ => None,
        };
        report.export = kept.as_ref().map(|(export, _)| export.path.clone());
        let audit = Box::pin(audit::begin(context, &self.intent(preview.count))).await?;
        let progress = self.progress(preview.count);
        let mut seen = 0;
        let mut pace = Pace::new(self.pace);
        let mut pages = scan(Some(&preview.bound));
        let mut stopped = false;
        let ended = async {
            while let Some(page) = pages.next_page().await? {
                for chunk in page.chunks(CHUNK.min(pace.chunk())) {
                    // More may match by now: no more is done than was agreed to.
                    let left = usize::try_from(preview.count - seen).unwrap_or(usize::MAX);
                    let chunk = chunk.get(..left).unwrap_or(chunk);
                    let (Some(first), Some(last)) = (chunk.first(), chunk.last()) else {
                        return Ok::<_, CliError>(());
                    };
                    stopped = self.interrupt.is_cancelled();
                    if stopped {
                        return Ok(());
                    }
                    if let Some((export, record)) = &mut kept {
                        export.keep(chunk.iter().map(record))?;
                    }
                    let applied = apply(first.partition(), chunk).await?;
                    seen += chunk.len() as u64;
                    report.done += applied.done;
                    report.last = Some(last.entry());
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
        report.interrupted = stopped;
        if ended.is_ok() && !stopped {
            report.gone = preview.count.saturating_sub(report.done + report.skipped);
        }
        self.note_end(context, &audit, &report, ended.as_ref().err()).await;
        if let Err(error) = ended {
            say(&report.text());
            return Err(error);
        }
        Ok(report)
    }

    /// Notes in the audit how it has ended. That this can't be noted is said: the work is done all the same.
    pub(crate) async fn note_end(
        &self,
        context: &Context,
        begun: &str,
        report: &Report,
        error: Option<&CliError>,
    ) {
        let outcome = match error {
            None => report.text(),
            Some(error) => format!("failed: {error}; {}", report.text()),
        };
        self.note_outcome(context, begun, &outcome).await;
    }

    pub(crate) fn intent(&self, matched: u64) -> Intent<'_> {
        let reason = self.args.reason_text.as_deref().unwrap_or_default();
        Intent { command: self.command, selection: self.selection, reason, matched }
    }

    async fn note_outcome(&self, context: &Context, begun: &str, outcome: &str) {
        if let Err(error) = Box::pin(audit::end(context, begun, outcome)).await {
            say(&format!("warning: how this has ended is not in the audit: {error}"));
        }
    }

    /// What there is to say before anything is done.
    pub(crate) fn report(&self, matched: u64) -> Report {
        let (command, dry_run) = (self.command, self.args.dry_run);
        Report {
            command,
            dry_run,
            matched,
            done: 0,
            skipped: 0,
            gone: 0,
            interrupted: false,
            last: None,
            export: None,
        }
    }

    /// Shows one thing that is to be done, asks, and does it, noted in the audit. For what is no matter of entries.
    pub(crate) async fn once<T>(
        &self,
        context: &Context,
        number: u64,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<Option<T>, CliError> {
        say(&format!("{}: {}", self.command, self.effect));
        if self.args.dry_run {
            say("dry run: nothing was changed");
            return Ok(None);
        }
        self.confirm(number).await?;
        let audit = Box::pin(audit::begin(context, &self.intent(number))).await?;
        let done = work.await;
        let outcome = done.as_ref().map_or_else(|error| format!("failed: {error}"), |_| "done".to_owned());
        self.note_outcome(context, &audit, &outcome).await;
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

    pub(crate) async fn confirm(&self, number: u64) -> Result<(), CliError> {
        if self.args.yes {
            return Ok(());
        }
        if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            let line = "nothing was changed: there is no terminal to ask on; look at it with --dry-run, do it with --yes";
            return Err(CliError::Refused(line.to_owned()));
        }
        let question =
            if number == 1 { "Do this?".to_owned() } else { format!("Do this to all {}?", count(number)) };
        // Signals are heard meanwhile.
        let asked = tokio::task::spawn_blocking(move || {
            let answer = Confirm::new().with_prompt(question).default(false).interact_opt();
            if answer.is_err() {
                let _ = dialoguer::console::Term::stderr().show_cursor();
            }
            answer
        });
        match self.interrupt.run_until_cancelled(asked).await {
            Some(Ok(Ok(Some(true)))) => Ok(()),
            Some(Ok(Ok(_))) => Err(CliError::Refused("nothing was changed".to_owned())),
            Some(Ok(Err(dialoguer::Error::IO(why)))) if why.kind() == io::ErrorKind::Interrupted => {
                Err(CliError::Interrupted)
            }
            None => Err(CliError::Interrupted),
            Some(Ok(Err(error))) => Err(CliError::failed(format!("the question can't be asked: {error}"))),
            Some(Err(error)) => Err(CliError::failed(error.to_string())),
        }
    }

    fn default_file(&self) -> PathBuf {
        PathBuf::from(format!(
            "likesctl-{}-{}-{}.ndjson",
            self.command.replace(' ', "-"),
            file_time(),
            std::process::id()
        ))
    }

    pub(crate) fn progress(&self, number: u64) -> ProgressBar {
        let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {eta}");
        let bar = ProgressBar::new(number).with_prefix(self.command);
        style.map_or(bar.clone(), |style| bar.with_style(style))
    }

    pub(crate) fn tell(&self, report: &Report) -> Result<Exit, CliError> {
        print_document(self.args.output, report, |_| report.text())?;
        Ok(report.exit())
    }
}

impl Report {
    /// For people.
    fn text(&self) -> String {
        let Self { matched, done, skipped, gone, .. } = self;
        if self.dry_run {
            return "dry run: nothing was changed".to_owned();
        }
        let mut parts = vec![format!("{} done", count(*done))];
        if *skipped > 0 {
            parts.push(format!("{} skipped", count(*skipped)));
        }
        if *gone > 0 {
            parts.push(format!("{} gone by themselves", count(*gone)));
        }
        let mut text = parts.join(", ");
        if self.interrupted {
            let last = self.last.map_or_else(String::new, |last| format!(", up to {last}"));
            text = format!("interrupted: {text} of {}{last}", count(*matched));
        }
        match &self.export {
            Some(export) => format!("{text}; kept in {}", export.display()),
            None => text,
        }
    }

    pub(crate) fn exit(&self) -> Exit {
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
            preview.bound.insert(entry.partition, entry.id);
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
pub(crate) fn say(line: &str) {
    // Nobody is left to tell should it be gone.
    let _ = writeln!(io::stderr(), "{line}");
}

/// No more than so many a second.
pub(crate) struct Pace {
    per_second: Option<u32>,
    next: Instant,
}

impl Pace {
    pub(crate) fn new(pace: Option<PaceArgs>) -> Self {
        Self { per_second: pace.and_then(|pace| pace.rate), next: Instant::now() }
    }

    /// How many may go at once: no more than in a tenth of a second.
    fn chunk(&self) -> usize {
        self.per_second.map_or(usize::MAX, |rate| usize::try_from(rate.div_ceil(10)).unwrap_or(usize::MAX))
    }

    pub(crate) async fn wait(&mut self, done: usize) {
        if let Some(rate) = self.per_second {
            // Time that was lost is not made up for.
            self.next =
                self.next.max(Instant::now()) + Duration::from_secs_f64(done as f64 / f64::from(rate));
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
    fn keep(&mut self, records: impl Iterator<Item = DeadLetterRecord>) -> Result<(), CliError> {
        for record in records {
            serde_json::to_writer(&mut self.file, &record).map_err(io::Error::from)?;
            writeln!(self.file)?;
        }
        self.file.flush()?;
        Ok(self.file.get_ref().sync_data()?)
    }
}
