//! Lines on standard error.

use std::{
    fmt::Display,
    io::{self, Write},
};

/// Prints a line to standard error. Ignores failures, which could not be reported.
pub fn eprint_line(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}
