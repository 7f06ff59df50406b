//! Changes made by operators: preview, confirmation, audit, application in chunks.
//!
//! Purpose: run every change the same way (`Action::run` for the entries of a scan, `Action::once` for anything else).
//! `preview` counts and samples the matching entries, `confirm` asks the operator, `chunks` applies the change, `export`
//! writes removed entries to a file, `pace` limits the rate, `report` sums up the result. May depend on `scan`, `audit`,
//! `output`, `exit` and `context`. Must not know any command.

mod chunks;
mod confirm;
mod export;
mod pace;
mod preview;
mod report;

use std::path::Path;

use clap::Args;
use futures_util::future::LocalBoxFuture;
use indicatif::{ProgressBar, ProgressStyle};
use shared::{stderr::eprint_line, wire::partition::Partition};
use tokio_util::sync::CancellationToken;

use self::{chunks::Chunks, export::Export, preview::preview};
pub(crate) use self::{
    export::{ExportArgs, Exported},
    pace::{Pace, PaceArgs},
    report::Report,
};
use crate::{
    audit::{self, Intent},
    context::Context,
    dead_letter_record::DeadLetterRecord,
    exit::{CliError, Exit},
    output::{OutputArgs, count},
    scan::{Item, Scan, ScanBound},
    selection::EntryRef,
};

/// Options that every action has.
#[derive(Args, Clone)]
#[command(next_help_heading = "Safety")]
pub(crate) struct ActionArgs {
    /// Preview without changes
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// No confirmation prompt; required without a terminal
    #[arg(short, long)]
    pub(crate) yes: bool,

    /// Reason to record in the audit log
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason_text: Option<String>,

    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// An action: its texts, its options, and its interruption.
pub(crate) struct Action<'a> {
    /// Command name, such as `dead purge`.
    pub(crate) command: &'static str,
    /// Plural and singular of the items, such as "dead letters" and "dead letter".
    pub(crate) items: (&'static str, &'static str),
    /// Completes "N items will be", such as "removed permanently".
    pub(crate) effect: String,
    /// Selection in the operator's notation, for the audit log.
    pub(crate) selection: &'a str,
    pub(crate) args: &'a ActionArgs,
    pub(crate) pace: Option<PaceArgs>,
    pub(crate) interrupt: &'a CancellationToken,
}

/// A change to the entries that a scan finds.
pub(crate) struct Change<'a, T> {
    /// Starts the scan.
    pub(crate) scan: &'a dyn Fn(Option<ScanBound>) -> Box<dyn Scan<Item = T> + 'a>,
    pub(crate) apply: Apply<'a, T>,
}

type Applied<'a> = LocalBoxFuture<'a, Result<ActionResult, CliError>>;

/// Applies a change to a chunk of one partition.
pub(crate) enum Apply<'a, T> {
    /// Keeps the entries, or moves them.
    Change(&'a dyn Fn(Partition, Vec<T>) -> Applied<'a>),
    /// Removes the entries after they are exported.
    Remove {
        export: &'a ExportArgs,
        record: &'a dyn Fn(&T) -> DeadLetterRecord,
        remove: &'a dyn Fn(Partition, Exported<T>) -> Applied<'a>,
    },
}

/// Result of a chunk. Entries that are neither done nor skipped no longer matched when the change was applied.
#[derive(Default)]
pub(crate) struct ActionResult {
    pub(crate) done: u64,
    pub(crate) skipped: Vec<(EntryRef, &'static str)>,
}

impl ActionResult {
    /// Returns a result with `done` changes. Items that satisfy `is_skipped` are skipped, all with the same reason.
    pub(crate) fn with_skipped<T: Item>(
        done: usize,
        items: &[T],
        is_skipped: impl Fn(&T) -> bool,
        reason: &'static str,
    ) -> Self {
        let skipped = items.iter().filter(|item| is_skipped(item));
        Self { done: done as u64, skipped: skipped.map(|item| (item.entry(), reason)).collect() }
    }
}

impl Action<'_> {
    /// Applies a change and prints the report.
    pub(crate) async fn run<T: Item>(
        &self,
        context: &Context,
        change: Change<'_, T>,
    ) -> Result<Exit, CliError> {
        let report = Box::pin(self.apply(context, change)).await?;
        self.print(&report)
    }

    /// Shows a preview of a change, asks for confirmation, and applies it to the previewed entries.
    pub(crate) async fn apply<T: Item>(
        &self,
        context: &Context,
        change: Change<'_, T>,
    ) -> Result<Report, CliError> {
        let mut report = self.report(0);
        let Some(preview) = self.interrupt.run_until_cancelled(preview((change.scan)(None))).await else {
            return Ok(Report { interrupted: true, ..report });
        };
        let preview = preview?;
        eprint_line(preview.text(self));
        report.matched = preview.count;
        if preview.count == 0 || self.args.dry_run {
            return Ok(report);
        }
        self.confirm(preview.count).await?;
        let export = match &change.apply {
            Apply::Change(_) => Export::Nowhere,
            Apply::Remove { export, .. } => Export::create(export, self.command)?,
        };
        report.export = export.path().map(Path::to_owned);
        let audit_id = self.begin_audit(context, preview.count).await?;
        let mut chunks = Chunks::new(self, &change, export, report);
        let applied = chunks.apply_all((change.scan)(Some(preview.bound))).await;
        let report = chunks.finish(applied.is_ok());
        self.end_audit(context, &audit_id, &report, applied.as_ref().err()).await;
        if let Err(error) = applied {
            eprint_line(report.text());
            return Err(error);
        }
        Ok(report)
    }

    /// Applies a change that is not about entries, with preview, confirmation and audit. Returns `None` in a dry run.
    pub(crate) async fn once<T, E: Into<CliError>>(
        &self,
        context: &Context,
        matched: u64,
        work: LocalBoxFuture<'_, Result<T, E>>,
    ) -> Result<Option<T>, CliError> {
        eprint_line(format_args!("{}: {}", self.command, self.effect));
        if self.args.dry_run {
            eprint_line("dry run: nothing was changed");
            return Ok(None);
        }
        self.confirm(matched).await?;
        let audit_id = self.begin_audit(context, matched).await?;
        let done = work.await.map_err(Into::into);
        let outcome = done.as_ref().map_or_else(|error| format!("failed: {error}"), |_| "done".to_owned());
        self.record_outcome(context, &audit_id, &outcome).await;
        Ok(Some(done?))
    }

    /// Records the intent in the audit log and returns its id.
    pub(crate) async fn begin_audit(&self, context: &Context, matched: u64) -> Result<String, CliError> {
        let reason = self.args.reason_text.as_deref().unwrap_or_default();
        let intent = Intent { command: self.command, selection: self.selection, reason, matched };
        Box::pin(audit::begin(context, &intent)).await
    }

    /// Records the report and the error, if any, in the audit log.
    pub(crate) async fn end_audit(
        &self,
        context: &Context,
        audit_id: &str,
        report: &Report,
        error: Option<&CliError>,
    ) {
        let outcome = match error {
            None => report.text(),
            Some(error) => format!("failed: {error}; {}", report.text()),
        };
        self.record_outcome(context, audit_id, &outcome).await;
    }

    /// Records an outcome. A failure is only a warning, because the change has already been applied.
    async fn record_outcome(&self, context: &Context, audit_id: &str, outcome: &str) {
        if let Err(error) = Box::pin(audit::end(context, audit_id, outcome)).await {
            eprint_line(format_args!("warning: cannot record the outcome in the audit log: {error}"));
        }
    }

    pub(crate) fn progress(&self, matched: u64) -> ProgressBar {
        let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {eta}");
        let bar = ProgressBar::new(matched).with_prefix(self.command);
        style.map_or(bar.clone(), |style| bar.with_style(style))
    }

    fn items(&self, number: u64) -> String {
        let (plural, singular) = self.items;
        format!("{} {}", count(number), if number == 1 { singular } else { plural })
    }
}
