//! Figures as a file of JSON, for other programs.

use std::{fs, io, path::Path};

use devstack::StackError;
use serde::Serialize;

/// Whether they can be written there, to be asked before the work that makes them.
pub(crate) fn check_file(file: &Path) -> Result<(), StackError> {
    let failed = || format!("{} can't be written", file.display());
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).map_err(StackError::io(failed()))?;
    }
    fs::OpenOptions::new().append(true).create(true).open(file).map(drop).map_err(StackError::io(failed()))
}

/// Writes them, and makes the folder that they go to.
pub(crate) fn write_json(figures: &impl Serialize, file: &Path) -> Result<(), StackError> {
    let failed = || format!("{} can't be written", file.display());
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).map_err(StackError::io(failed()))?;
    }
    let json =
        serde_json::to_string_pretty(figures).map_err(io::Error::from).map_err(StackError::io(failed()))?;
    fs::write(file, json + "\n").map_err(StackError::io(failed()))
}
