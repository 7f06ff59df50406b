//! Report of an action.

use std::path::PathBuf;

use serde::Serialize;

use super::Action;
use crate::{
    exit::{CliError, Exit},
    output::{count, print_document},
    selection::EntryRef,
};

#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) command: &'static str,
    pub(crate) dry_run: bool,
    pub(crate) matched: u64,
    pub(crate) done: u64,
    pub(crate) skipped: u64,
    /// Entries of the preview that no longer matched, for example because a consumer acknowledged them.
    pub(crate) gone: u64,
    pub(crate) interrupted: bool,
    /// The last processed entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) last: Option<EntryRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) export: Option<PathBuf>,
}

impl Action<'_> {
    /// Returns the report of an action that has not started.
    pub(crate) fn report(&self, matched: u64) -> Report {
        Report {
            command: self.command,
            dry_run: self.args.dry_run,
            matched,
            done: 0,
            skipped: 0,
            gone: 0,
            interrupted: false,
            last: None,
            export: None,
        }
    }

    pub(crate) fn print(&self, report: &Report) -> Result<Exit, CliError> {
        print_document(self.args.output, report, |_| report.text())?;
        Ok(report.exit())
    }
}

impl Report {
    pub(super) fn text(&self) -> String {
        let Self { matched, done, skipped, gone, .. } = self;
        if self.dry_run {
            return "dry run: nothing was changed".to_owned();
        }
        let mut parts = vec![format!("{} done", count(*done))];
        if *skipped > 0 {
            parts.push(format!("{} skipped", count(*skipped)));
        }
        if *gone > 0 {
            parts.push(format!("{} no longer matched", count(*gone)));
        }
        let mut text = parts.join(", ");
        if self.interrupted {
            let last = self.last.map_or_else(String::new, |last| format!(", up to {last}"));
            text = format!("interrupted: {text} of {}{last}", count(*matched));
        }
        match &self.export {
            Some(export) => format!("{text}; exported to {}", export.display()),
            None => text,
        }
    }

    fn exit(&self) -> Exit {
        match self {
            Self { interrupted: true, .. } => Exit::Interrupted,
            Self { dry_run: false, skipped: 1.., .. } => Exit::Partial,
            _ => Exit::Done,
        }
    }
}
