//! The ratios as a picture.

use std::path::Path;

use crate::{BenchError, figures::Figures, machine::Machine};

pub(crate) fn draw(_file: &Path, _machine: &Machine, _figures: &Figures) -> Result<(), BenchError> {
    Ok(())
}
