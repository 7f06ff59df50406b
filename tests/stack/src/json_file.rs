//! Report as a JSON file.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use devstack::StackError;
use serde::Serialize;

/// Creates the folder and checks that the file can be written, before the run that produces the report.
pub(crate) fn check(file: &Path) -> Result<(), StackError> {
    let folder = file.parent().map_or(Ok(()), fs::create_dir_all);
    let opened = folder.and_then(|()| File::options().append(true).create(true).open(file));
    opened.map(drop).map_err(StackError::io(format!("cannot write {}", file.display())))
}

pub(crate) fn write(file: &Path, figures: &impl Serialize) -> Result<(), StackError> {
    let json = serde_json::to_string_pretty(figures).map_err(io::Error::from);
    let written = json.and_then(|json| fs::write(file, json + "\n"));
    written.map_err(StackError::io(format!("cannot write {}", file.display())))
}
