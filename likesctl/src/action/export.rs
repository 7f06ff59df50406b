//! The file to which removed entries are written.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufWriter, Write},
    path::PathBuf,
    process,
};

use clap::Args;

use crate::{dead_letter_record::DeadLetterRecord, exit::CliError, output::file_time};

#[derive(Args, Clone)]
pub(crate) struct ExportArgs {
    /// File for removed entries, as NDJSON; must not exist [default: a new file in the current directory]
    #[arg(long, value_name = "FILE", conflicts_with = "no_export", help_heading = "Safety")]
    export: Option<PathBuf>,

    /// No file with removed entries
    #[arg(long, help_heading = "Safety")]
    no_export: bool,
}

/// Destination of removed entries, and the conversion to records.
pub(crate) type ExportTarget<'a, T> = (&'a ExportArgs, &'a dyn Fn(&T) -> DeadLetterRecord);

/// An open export file.
pub(super) struct Export {
    pub(super) path: PathBuf,
    file: BufWriter<File>,
}

impl Export {
    /// Creates a new file. Returns `None` with `--no-export`.
    pub(super) fn create(args: &ExportArgs, command: &str) -> Result<Option<Self>, CliError> {
        if args.no_export {
            return Ok(None);
        }
        let default = || {
            let command = command.replace(' ', "-");
            format!("likesctl-{command}-{}-{}.ndjson", file_time(), process::id()).into()
        };
        let path = args.export.clone().unwrap_or_else(default);
        let file = OpenOptions::new().write(true).create_new(true).open(&path).map_err(|why| {
            CliError::Refused(format!("nothing was changed: cannot create '{}': {why}", path.display()))
        })?;
        Ok(Some(Self { path, file: BufWriter::new(file) }))
    }

    /// Writes records and syncs the file to disk.
    pub(super) fn write(&mut self, records: impl Iterator<Item = DeadLetterRecord>) -> Result<(), CliError> {
        for record in records {
            serde_json::to_writer(&mut self.file, &record).map_err(io::Error::from)?;
            writeln!(self.file)?;
        }
        self.file.flush()?;
        Ok(self.file.get_ref().sync_data()?)
    }
}
