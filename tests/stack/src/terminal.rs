//! Lines on standard output.

use std::io::{self, Write};

/// Prints a line to standard output. A closed pipe is ignored.
pub fn print_line(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}
