//! Tables: columns, rows, and their layout.

use std::io::{self, StdoutLock, Write};

use comfy_table::{CellAlignment, ColumnConstraint, Table, Width, presets};
use serde::Serialize;
use shared::stderr::eprint_line;

use super::{Format, OutputArgs, printable};
use crate::exit::CliError;

/// Number of rows that are buffered to calculate column widths.
const TABLE_PAGE: usize = 500;

/// Maximum length of a name in a table for 80 columns.
const NAME_CHARS: usize = 20;

/// Maximum length of prose in a table for 80 columns.
const PROSE_CHARS: usize = 32;

/// Space between two columns.
const GAP: u16 = 2;

/// A column of a table.
pub(crate) struct Column {
    name: &'static str,
    kind: Kind,
    /// Whether the column is only in the wide table.
    is_wide: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Name or id, truncated at the start: consumer names differ at the end.
    Name,
    Number,
    /// Text that is never truncated.
    Whole,
    /// Text that is truncated at the end.
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

/// A row of a table, and an element of a JSON array.
pub(crate) trait Row: Serialize {
    const COLUMNS: &'static [Column];

    /// Returns one cell per column.
    fn cells(&self) -> Vec<String>;
}

/// Prints any number of rows in bounded memory.
pub(crate) struct Rows {
    format: Format,
    columns: &'static [Column],
    out: io::BufWriter<StdoutLock<'static>>,
    page: Vec<Vec<String>>,
    widths: Vec<u16>,
    printed: u64,
}

impl Rows {
    pub(crate) fn new(OutputArgs { output: format }: OutputArgs, columns: &'static [Column]) -> Self {
        let out = io::BufWriter::new(io::stdout().lock());
        Self { format, columns, out, page: Vec::new(), widths: Vec::new(), printed: 0 }
    }

    pub(crate) fn push(&mut self, row: &impl Row) -> Result<(), CliError> {
        self.printed += 1;
        match self.format {
            Format::Table | Format::Wide => {
                self.page.push(row.cells());
                if self.page.len() == TABLE_PAGE {
                    self.print_page()?;
                }
            }
            Format::Ndjson => writeln!(self.out, "{}", serde_json::to_string(row)?)?,
            Format::Json => {
                let before = if self.printed == 1 { "[\n  " } else { ",\n  " };
                write!(self.out, "{before}{}", serde_json::to_string(row)?)?;
            }
        }
        Ok(())
    }

    /// Prints the remaining rows. For a table without rows, prints `none` to standard error.
    pub(crate) fn finish(mut self, none: &str) -> Result<(), CliError> {
        match (self.format, self.printed) {
            (Format::Table | Format::Wide, 0) => eprint_line(none),
            (Format::Table | Format::Wide, _) => self.print_page()?,
            (Format::Json, 0) => writeln!(self.out, "[]")?,
            (Format::Json, _) => writeln!(self.out, "\n]")?,
            (Format::Ndjson, _) => {}
        }
        Ok(self.out.flush()?)
    }

    fn print_page(&mut self) -> Result<(), CliError> {
        let page = std::mem::take(&mut self.page);
        if page.is_empty() {
            return Ok(());
        }
        let (lines, widths) = render(self.columns, page, self.format == Format::Wide, &self.widths);
        self.widths = widths;
        for line in lines {
            writeln!(self.out, "{line}")?;
        }
        Ok(())
    }
}

/// Returns a table as text.
pub(crate) fn table<T: Row>(rows: &[T], wide: bool) -> String {
    render(T::COLUMNS, rows.iter().map(Row::cells).collect(), wide, &[]).0.join("\n")
}

/// Returns the lines of one page of a table, and its column widths. Pages after the first have no header, and are at
/// least as wide as `widths`, the columns of the previous page.
fn render(columns: &[Column], page: Vec<Vec<String>>, wide: bool, widths: &[u16]) -> (Vec<String>, Vec<u16>) {
    let shown: Vec<(usize, &Column)> =
        columns.iter().enumerate().filter(|(_, column)| wide || !column.is_wide).collect();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_are_cut_at_the_start_and_other_texts_at_the_end() {
        let name = |text: &str| shortened(text.to_owned(), Kind::Name);
        assert_eq!(name("consumer"), "consumer");
        assert_eq!(name("likestream-consumer-7f9c6d5b4-x2v8z"), "…mer-7f9c6d5b4-x2v8z");
        let prose = "db error: ERROR: duplicate key value".to_owned();
        assert_eq!(shortened(prose, Kind::Prose), "db error: ERROR: duplicate key …");
    }
}
