//! Lines on standard error, for people.

use std::{
    fmt::Display,
    io::{self, Write},
};

/// Prints a line to standard error. A failure is ignored: there is nowhere left to report it.
pub fn eprint_line(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}
