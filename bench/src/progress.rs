//! A line for people, apart from the figures.

use std::io::{self, Write};

pub(crate) fn say(line: &str) {
    // Nobody reads it where it can't be written.
    let _ = writeln!(io::stderr(), "{line}");
}
