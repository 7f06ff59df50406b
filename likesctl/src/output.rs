//! Standard output: documents and tables, as text or JSON.
//!
//! Purpose: print a result as a table or as JSON (`print_document`, `table`), and format numbers, times and untrusted text
//! (`text`). May depend on `exit`. Must not know any command. Results go to standard output; prompts, previews and
//! progress go to standard error.

mod table;
mod text;

use std::io::{self, Write};

use clap::{Args, ValueEnum};
use serde::Serialize;

pub(crate) use self::{
    table::{Column, Row, Rows, table},
    text::{age, age_or_none, count, file_time, many, number_or_unknown, printable, time},
};
use crate::exit::CliError;

/// Output format.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// Table for a terminal of 80 columns
    Table,
    /// Table with all columns
    Wide,
    /// One JSON document
    Json,
    /// One JSON document per line
    Ndjson,
}

#[derive(Args, Clone, Copy)]
#[command(next_help_heading = "Output")]
pub(crate) struct OutputArgs {
    /// Output format
    #[arg(short, long, value_enum, default_value = "table", value_name = "FORMAT")]
    pub(crate) output: Format,
}

/// Prints one document as JSON, or as `text`, whose argument is true for the wide format.
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

/// Formats each element of an array on a separate line.
fn lines(document: serde_json::Value) -> String {
    match document {
        serde_json::Value::Array(elements) => {
            elements.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        }
        document => document.to_string(),
    }
}
