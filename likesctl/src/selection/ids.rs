//! Ids from the command line and from standard input.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, BufRead, IsTerminal},
};

use consumer::entry::EntryId;

use crate::{context::Context, exit::CliError, selection::EntryRef};

/// Maximum number of ids on standard input.
const MAX_IDS: usize = 1_000_000;

/// Ids by partition.
pub(crate) type Ids = BTreeMap<u16, BTreeSet<EntryId>>;

/// Parses ids. A hyphen reads them from standard input.
pub(super) fn read(context: &Context, arguments: &[String]) -> Result<Ids, CliError> {
    let mut ids = Ids::new();
    for argument in arguments {
        if argument == "-" {
            read_stdin(context, &mut ids)?;
        } else {
            insert(context, &mut ids, argument)?;
        }
    }
    Ok(ids)
}

fn read_stdin(context: &Context, ids: &mut Ids) -> Result<(), CliError> {
    if io::stdin().is_terminal() {
        let line = "cannot read entries from standard input: it is a terminal; pipe them in, or pass them as arguments";
        return Err(CliError::Usage(line.to_owned()));
    }
    for (number, line) in io::stdin().lock().lines().enumerate() {
        let line = line?;
        if number >= MAX_IDS {
            return Err(CliError::Usage(format!(
                "more than {MAX_IDS} entries on standard input; select them with options instead"
            )));
        }
        let id = id_of_line(line.trim());
        // ENTRY is the header of a table.
        if !id.is_empty() && id != "ENTRY" {
            insert(context, ids, id)?;
        }
    }
    Ok(())
}

fn insert(context: &Context, ids: &mut Ids, text: &str) -> Result<(), CliError> {
    let entry: EntryRef =
        text.parse().map_err(|why| CliError::Usage(format!("'{text}' is not an entry; {why}")))?;
    context.partition(entry.partition)?;
    ids.entry(entry.partition).or_default().insert(entry.id);
    Ok(())
}

/// Returns the id in a line, which is a plain id, a table row, or a line of `-o ndjson`.
fn id_of_line(line: &str) -> &str {
    if line.starts_with('{')
        && let Some((_, rest)) = line.split_once("\"entry\":\"")
    {
        return rest.split('"').next().unwrap_or_default();
    }
    line.split_whitespace().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_in_lines_of_any_format() {
        assert_eq!(id_of_line("7/1-0"), "7/1-0");
        assert_eq!(id_of_line("7/1-0   consumer-1   5s"), "7/1-0");
        assert_eq!(id_of_line(r#"{"entry":"7/1-0","consumer":"c"}"#), "7/1-0");
    }
}
