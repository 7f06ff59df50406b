//! What goes to standard output, and in which form. Nothing else goes there: prompts, previews and progress are on
//! standard error.

use std::{
    io::{self, StdoutLock, Write},
    marker::PhantomData,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::{Args, ValueEnum};
use comfy_table::{CellAlignment, ColumnConstraint, Table, Width, presets};
use serde::Serialize;

use crate::{action::say, exit::CliError};

/// So many rows of a table share one look at how wide its columns are.
const TABLE_PAGE: usize = 500;

/// So long names, and other texts, may be in a table that should fit into 80 columns.
const NAME_CHARS: usize = 20;
const PROSE_CHARS: usize = 32;

/// Between two columns.
const GAP: u16 = 2;

/// In which form to print.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// A table for 80 columns
    Table,
    /// A table with all there is
    Wide,
    /// One JSON document
    Json,
    /// A JSON document a line
    Ndjson,
}

#[derive(Args, Clone, Copy)]
#[command(next_help_heading = "Output")]
pub(crate) struct OutputArgs {
    /// The form of the output
    #[arg(short, long, value_enum, default_value = "table", value_name = "FORMAT")]
    pub(crate) output: Format,
}

/// A column of a table.
pub(crate) struct Column {
    name: &'static str,
    kind: Kind,
    /// Only in the wide table.
    is_wide: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Names and ids: what differs is at their ends.
    Name,
    Number,
    /// Never cut.
    Whole,
    /// Begins with what matters.
    Prose,
}

impl Column {
    pub(crate) const fn text(name: &'static str) -> Self {
        Self { name, kind: Kind::Name, is_wide: false }
    }

    pub(crate) const fn whole(name: &'static str) -> Self {
        Self { name, kind: Kind::Whole, is_wide: false }
    }

    pub(crate) const fn number(name: &'static str) -> Self {
        Self { name, kind: Kind::Number, is_wide: false }
    }

    pub(crate) const fn prose(name: &'static str) -> Self {
        Self { name, kind: Kind::Prose, is_wide: false }
    }

    pub(crate) const fn wide(self) -> Self {
        Self { is_wide: true, ..self }
    }
}

/// Something that is a row of a table, and an element of a JSON array.
pub(crate) trait Row: Serialize {
    const COLUMNS: &'static [Column];

    /// One for each column.
    fn cells(&self) -> Vec<String>;
}

/// Rows on their way to standard output: any number of them, in bounded memory.
pub(crate) struct Rows<T> {
    format: Format,
    out: io::BufWriter<StdoutLock<'static>>,
    page: Vec<Vec<String>>,
    widths: Vec<u16>,
    printed: u64,
    of: PhantomData<T>,
}

impl<T: Row> Rows<T> {
    pub(crate) fn new(OutputArgs { output: format }: OutputArgs) -> Self {
        let out = io::BufWriter::new(io::stdout().lock());
        Self { format, out, page: Vec::new(), widths: Vec::new(), printed: 0, of: PhantomData }
    }

    pub(crate) fn push(&mut self, row: &T) -> Result<(), CliError> {
        self.printed += 1;
        match self.format {
            Format::Table | Format::Wide => {
                self.page.push(row.cells());
                if self.page.len() == TABLE_PAGE {
                    self.print_page()?;
                }
            }
            Format::Ndjson => {
                serde_json::to_writer(&mut self.out, row).map_err(io::Error::from)?;
                writeln!(self.out)?;
            }
            Format::Json => {
                write!(self.out, "{}", if self.printed == 1 { "[\n  " } else { ",\n  " })?;
                serde_json::to_writer(&mut self.out, row).map_err(io::Error::from)?;
            }
        }
        Ok(())
    }

    /// Prints what is left. That a table has no rows is said on standard error: it is no row.
    pub(crate) fn finish(mut self, none: &str) -> Result<(), CliError> {
        match (self.format, self.printed) {
            (Format::Table | Format::Wide, 0) => say(none),
            (Format::Table | Format::Wide, _) => self.print_page()?,
            (Format::Json, 0) => writeln!(self.out, "[]")?,
            (Format::Json, _) => writeln!(self.out, "\n]")?,
            (Format::Ndjson, _) => {}
        }
        Ok(self.out.flush()?)
    }

    fn print_page(&mut self) -> Result<(), CliError> {
        let page = std::mem::take(&mut self.page);
        if !page.is_empty() {
            let lines;
            (lines, self.widths) = render::<T>(page, self.format == Format::Wide, &self.widths);
            for line in lines {
                writeln!(self.out, "{line}")?;
            }
        }
        Ok(())
    }
}

/// Prints one document: as the text, or as data.
pub(crate) fn print_document<T: Serialize>(
    OutputArgs { output: format }: OutputArgs,
    document: &T,
    text: impl FnOnce(bool) -> String,
) -> Result<(), CliError> {
    let printed = match format {
        Format::Table | Format::Wide => text(format == Format::Wide),
        Format::Json => serde_json::to_string_pretty(document)?,
        Format::Ndjson => lines(serde_json::to_value(document)?),
    };
    let mut out = io::stdout().lock();
    writeln!(out, "{}", printed.trim_end())?;
    Ok(out.flush()?)
}

/// A document a line: of a list, each of its elements.
fn lines(document: serde_json::Value) -> String {
    match document {
        serde_json::Value::Array(elements) => {
            elements.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        }
        document => document.to_string(),
    }
}

/// A table as text.
pub(crate) fn table<T: Row>(rows: &[T], wide: bool) -> String {
    render::<T>(rows.iter().map(Row::cells).collect(), wide, &[]).0.join("\n")
}

/// The lines of a table, or of a page of it that goes on with the widths of the one before; and how wide its columns are.
fn render<T: Row>(page: Vec<Vec<String>>, wide: bool, widths: &[u16]) -> (Vec<String>, Vec<u16>) {
    let shown: Vec<(usize, &Column)> =
        T::COLUMNS.iter().enumerate().filter(|(_, column)| wide || !column.is_wide).collect();
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    if widths.is_empty() {
        table.set_header(shown.iter().map(|(_, column)| column.name));
    }
    for cells in page {
        let cell = |(index, column): &(usize, &Column)| {
            let cell = cells.get(*index).map(|cell| printable(cell)).unwrap_or_default();
            if wide { cell } else { shortened(cell, column.kind) }
        };
        table.add_row(shown.iter().map(cell).collect::<Vec<_>>());
    }
    for (position, (_, column)) in shown.iter().enumerate() {
        let Some(formatted) = table.column_mut(position) else { continue };
        formatted.set_padding((0, GAP));
        if column.kind == Kind::Number {
            formatted.set_cell_alignment(CellAlignment::Right);
        }
        if let Some(width) = widths.get(position) {
            formatted.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(*width)));
        }
    }
    let own = table.column_max_content_widths();
    let widths = own.iter().zip(widths.iter().chain(std::iter::repeat(&0)));
    let widths = widths.map(|(width, before)| (width + GAP).max(*before)).collect();
    (table.lines().map(|line| line.trim_end().to_owned()).collect(), widths)
}

/// Text from elsewhere, without what would move the cursor, colour the rest, or turn it around.
pub(crate) fn printable(text: &str) -> String {
    let is_harmful =
        |c: char| c.is_control() || matches!(c, '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}');
    let mut printed = String::with_capacity(text.len());
    for c in text.chars() {
        if is_harmful(c) { printed.extend(c.escape_default()) } else { printed.push(c) }
    }
    printed
}

fn shortened(cell: String, kind: Kind) -> String {
    let count = cell.chars().count();
    match kind {
        Kind::Name if count > NAME_CHARS => {
            let tail: String = cell.chars().skip(count - NAME_CHARS + 1).collect();
            format!("…{tail}")
        }
        Kind::Prose if count > PROSE_CHARS => {
            let head: String = cell.chars().take(PROSE_CHARS - 1).collect();
            format!("{head}…")
        }
        _ => cell,
    }
}

/// A duration in its two largest units, like `3m12s`.
pub(crate) fn age(ms: u64) -> String {
    let seconds = ms / 1_000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match ms {
        0..1_000 => format!("{ms}ms"),
        1_000..60_000 => format!("{seconds}s"),
        60_000..3_600_000 => format!("{minutes}m{}s", seconds % 60),
        3_600_000..86_400_000 => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

/// The same where it may be unknown.
pub(crate) fn age_or_none(ms: Option<u64>) -> String {
    ms.map_or_else(|| "-".to_owned(), age)
}

/// RFC 3339, in UTC.
pub(crate) fn time(unix_ms: u64) -> String {
    // The year 9999 is the last that can be written so.
    let time = UNIX_EPOCH + Duration::from_millis(unix_ms.min(253_402_300_799_999));
    humantime::format_rfc3339_millis(time).to_string()
}

/// Now, for names of files.
pub(crate) fn file_time() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string().replace(':', "")
}

/// So many of something, like `1 partition` or `1,000 entries`.
pub(crate) fn many(number: u64, one: &str, more: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { more })
}

/// A number with its thousands set apart.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_and_counts_are_short() {
        assert_eq!([age(0), age(999), age(1_000), age(61_500)], ["0ms", "999ms", "1s", "1m1s"]);
        assert_eq!([age(3_660_000), age(3 * 86_400_000 + 3_600_000 + 5_000)], ["1h1m", "3d1h"]);
        assert_eq!(
            [count(0), count(999), count(1_000), count(1_234_567)],
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!(time(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
        assert_eq!(time(u64::MAX), "9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn text_from_elsewhere_does_nothing_to_a_terminal() {
        assert_eq!(printable("a\x1b[31m\n\u{202E}é"), "a\\u{1b}[31m\\n\\u{202e}é");
    }

    #[test]
    fn long_names_keep_their_ends_and_other_texts_their_beginnings() {
        let name = |text: &str| shortened(text.to_owned(), Kind::Name);
        assert_eq!(name("consumer"), "consumer");
        assert_eq!(name("likestream-consumer-7f9c6d5b4-x2v8z"), "…mer-7f9c6d5b4-x2v8z");
        let prose = "db error: ERROR: duplicate key value".to_owned();
        assert_eq!(shortened(prose, Kind::Prose), "db error: ERROR: duplicate key …");
    }
}
