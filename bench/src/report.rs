//! Figures as text tables and as JSON.

use std::{fs, path::Path};

use comfy_table::{CellAlignment, Table, presets::NOTHING};
use serde::Serialize;
use shared::thousands::group_thousands;

use crate::{
    BenchError, Settings,
    figures::{Bound, Figure, Figures, Target},
    machine::Machine,
};

/// Content of `results.json`.
#[derive(Serialize)]
struct Results<'a> {
    measured_at: String,
    machine: &'a Machine,
    likes: u64,
    runs: u32,
    seconds_per_run: f64,
    targets: Vec<Target>,
    figures: &'a [Figure],
}

pub(crate) fn write_json(
    file: &Path,
    settings: &Settings,
    machine: &Machine,
    figures: &Figures,
) -> Result<(), BenchError> {
    let results = Results {
        measured_at: humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string(),
        machine,
        likes: settings.likes,
        runs: settings.runs,
        seconds_per_run: settings.duration.as_secs_f64(),
        targets: figures.targets(),
        figures: figures.all(),
    };
    Ok(fs::write(file, serde_json::to_string_pretty(&results)? + "\n")?)
}

/// Returns the tables of figures and targets.
pub(crate) fn tables(machine: &Machine, figures: &Figures) -> String {
    let mut table = table(["row", "case", "measure", "median", "min", "max"]);
    let mut previous = ("", "");
    for figure in figures.all() {
        let repeats_row = previous.0 == figure.row;
        let repeats_case = repeats_row && previous.1 == figure.case;
        let unless_repeated =
            |repeats: bool, name: &str| if repeats { String::new() } else { name.to_owned() };
        table.add_row([
            unless_repeated(repeats_row, figure.row),
            unless_repeated(repeats_case, &figure.case),
            figure.measure.to_owned(),
            number(figure.median),
            number(figure.min),
            number(figure.max),
        ]);
        previous = (figure.row, &figure.case);
    }
    align_right(&mut table, 3..6);
    format!("{}\n{table}\n\n{}", machine.summary(), targets(&figures.targets()))
}

fn targets(targets: &[Target]) -> String {
    let mut table = table(["target", "bound", "measured", "met"]);
    for Target { figure, bound, measured, holds } in targets {
        let bound = match bound {
            Bound::AtLeast(bound) => format!("≥ {}", number(*bound)),
            Bound::AtMost(bound) => format!("≤ {}", number(*bound)),
        };
        table.add_row([
            figure.clone(),
            bound,
            number(*measured),
            if *holds { "yes" } else { "NO" }.to_owned(),
        ]);
    }
    align_right(&mut table, 1..3);
    table.to_string()
}

fn table<const COLUMNS: usize>(head: [&str; COLUMNS]) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(head);
    table
}

fn align_right(table: &mut Table, columns: std::ops::Range<usize>) {
    for column in columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

/// Formats a number with at least three significant digits and all integer digits.
fn number(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        size if size >= 0.01 => 3,
        _ => 5,
    };
    let text = format!("{value:.digits$}");
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    group_thousands(whole) + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_formatted_with_three_significant_digits() {
        let texts = [1_234_567.8, 161_000.0, 99.44, 1.234_5, 0.712_3, 0.000_51].map(number);
        assert_eq!(texts, ["1,234,568", "161,000", "99.4", "1.23", "0.712", "0.00051"]);
    }
}
