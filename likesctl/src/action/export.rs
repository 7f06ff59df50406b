//! The file to which removed entries are written.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
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

/// Entries that may be removed: they are on disk, or the operator wants no file. Only [`Export::save`] creates this type.
pub(crate) struct Exported<T>(Vec<T>);

impl<T> Exported<T> {
    pub(crate) fn into_entries(self) -> Vec<T> {
        self.0
    }
}

/// Where removed entries are saved.
pub(super) enum Export {
    /// A file whose folder is on disk, so that a power failure does not lose the name of the file.
    File { path: PathBuf, file: BufWriter<File> },
    /// Nowhere: the operator wants no file, or the command removes nothing.
    Nowhere,
}

impl Export {
    /// Creates a new file, unless `--no-export` is given.
    pub(super) fn create(args: &ExportArgs, command: &str) -> Result<Self, CliError> {
        if args.no_export {
            return Ok(Self::Nowhere);
        }
        let default = || {
            let command = command.replace(' ', "-");
            format!("likesctl-{command}-{}-{}.ndjson", file_time(), process::id()).into()
        };
        let path = args.export.clone().unwrap_or_else(default);
        let refused = |why: io::Error| {
            CliError::Refused(format!("nothing was changed: cannot create '{}': {why}", path.display()))
        };
        let file = OpenOptions::new().write(true).create_new(true).open(&path).map_err(refused)?;
        if let Err(why) = sync_folder(&path) {
            let _ = fs::remove_file(&path);
            return Err(refused(why));
        }
        Ok(Self::File { path, file: BufWriter::new(file) })
    }

    /// Path of the file, if there is one.
    pub(super) fn path(&self) -> Option<&Path> {
        match self {
            Self::File { path, .. } => Some(path),
            Self::Nowhere => None,
        }
    }

    /// Writes entries and waits until they are on disk.
    pub(super) fn save<T>(
        &mut self,
        entries: Vec<T>,
        record: &dyn Fn(&T) -> DeadLetterRecord,
    ) -> Result<Exported<T>, CliError> {
        if let Self::File { path, file } = self {
            write(file, entries.iter().map(record)).map_err(|why| {
                CliError::failed(format!(
                    "cannot write '{}': {why}; the entries of the failed part were not removed",
                    path.display()
                ))
            })?;
        }
        Ok(Exported(entries))
    }
}

fn write(file: &mut BufWriter<File>, records: impl Iterator<Item = DeadLetterRecord>) -> io::Result<()> {
    for record in records {
        serde_json::to_writer(&mut *file, &record)?;
        writeln!(file)?;
    }
    file.flush()?;
    file.get_ref().sync_all()
}

/// Waits until the entry of a file in its folder is on disk: syncing a file does not include its name.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(entry: &&str) -> DeadLetterRecord {
        DeadLetterRecord {
            entry: (*entry).to_owned(),
            reason: "rejected".to_owned(),
            detail: String::new(),
            origin: "likes:{0} 1-0".to_owned(),
            deliveries: 1,
            consumer: "a".to_owned(),
            dead_at: 0,
            likes: Vec::new(),
            l: String::new(),
            original: None,
        }
    }

    fn args(path: &Path) -> ExportArgs {
        ExportArgs { export: Some(path.to_owned()), no_export: false }
    }

    #[test]
    fn saved_entries_can_be_read_from_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("removed.ndjson");
        let mut export = Export::create(&args(&path), "dead purge").unwrap();
        assert_eq!(export.path(), Some(path.as_path()));
        for (part, lines) in [(["1-0", "2-0"], 2), (["3-0", "4-0"], 4)] {
            let saved = export.save(part.to_vec(), &record).unwrap();
            assert_eq!(saved.into_entries(), part);
            assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), lines);
        }
        assert!(Export::create(&args(&path), "dead purge").is_err(), "an existing file is kept");
    }

    #[test]
    fn a_failed_write_does_not_allow_to_remove_the_entries() {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut export = Export::File { path: "/dev/full".into(), file: BufWriter::new(full) };
        assert!(export.save(vec!["1-0"], &record).is_err());
    }

    #[test]
    fn the_folder_of_a_file_is_synced() {
        let folder = tempfile::tempdir().unwrap();
        sync_folder(&folder.path().join("removed.ndjson")).unwrap();
        sync_folder(Path::new("removed.ndjson")).unwrap();
        assert!(sync_folder(&folder.path().join("missing/removed.ndjson")).is_err());
    }
}
