//! Application of a change, chunk by chunk, until all entries are processed or an interruption.

use indicatif::ProgressBar;
use shared::stderr::eprint_line;

use super::{Action, Apply, Change, Export, Pace, Report};
use crate::{
    exit::CliError,
    scan::{Item, Scan},
};

/// Maximum number of entries per chunk. After a crash, the outcome of one chunk is unknown.
const CHUNK: usize = 100;

/// Maximum number of skipped entries that are listed.
const LISTED_SKIPS: u64 = 20;

pub(super) struct Chunks<'a, 'c, T> {
    action: &'a Action<'a>,
    change: &'a Change<'c, T>,
    export: Export,
    pace: Pace,
    progress: ProgressBar,
    report: Report,
    /// Number of confirmed entries that are not processed yet.
    remaining: u64,
}

impl<'a, 'c, T: Item> Chunks<'a, 'c, T> {
    pub(super) fn new(
        action: &'a Action<'a>,
        change: &'a Change<'c, T>,
        export: Export,
        report: Report,
    ) -> Self {
        let progress = action.progress(report.matched);
        let remaining = report.matched;
        Self { action, change, export, pace: Pace::new(action.pace), progress, report, remaining }
    }

    /// Applies the change to at most the confirmed number of entries: more may match than in the preview.
    pub(super) async fn apply_all(&mut self, mut scan: Box<dyn Scan<Item = T> + '_>) -> Result<(), CliError> {
        while let Some(mut page) = scan.next_page().await? {
            while !page.is_empty() {
                let remaining = usize::try_from(self.remaining).unwrap_or(usize::MAX);
                let size = page.len().min(CHUNK).min(self.pace.chunk()).min(remaining);
                self.report.interrupted = size > 0 && self.action.interrupt.is_cancelled();
                if size == 0 || self.report.interrupted {
                    return Ok(());
                }
                self.apply(page.drain(..size).collect()).await?;
                self.action.interrupt.run_until_cancelled(self.pace.wait(size)).await;
            }
        }
        Ok(())
    }

    async fn apply(&mut self, chunk: Vec<T>) -> Result<(), CliError> {
        let (Some(first), Some(last)) = (chunk.first(), chunk.last()) else { return Ok(()) };
        let size = chunk.len() as u64;
        let (partition, last) = (first.partition(), last.entry());
        let result = match &self.change.apply {
            Apply::Change(change) => change(partition, chunk).await?,
            Apply::Remove { record, remove, .. } => {
                remove(partition, self.export.save(chunk, record)?).await?
            }
        };
        self.remaining -= size;
        self.report.done += result.done;
        self.report.last = Some(last);
        for (entry, reason) in result.skipped {
            self.report.skipped += 1;
            if self.report.skipped <= LISTED_SKIPS {
                self.progress.suspend(|| eprint_line(format_args!("skipped {entry}: {reason}")));
            }
        }
        self.progress.inc(size);
        Ok(())
    }

    /// Returns the report. After a complete run, entries that are neither done nor skipped no longer matched.
    pub(super) fn finish(mut self, is_ok: bool) -> Report {
        self.progress.finish_and_clear();
        if is_ok && !self.report.interrupted {
            self.report.gone = self.report.matched.saturating_sub(self.report.done + self.report.skipped);
        }
        self.report
    }
}
