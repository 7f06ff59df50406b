//! The reference in docs/likesctl.md is generated from the command tree.

use std::{collections::BTreeMap, fmt::Write};

use clap::{Arg, Command};

use crate::golden;

/// Number of commands that must share an option for it to be listed once, as a common option.
const COMMON: usize = 3;

const COLUMNS: usize = 100;

#[test]
fn the_reference_is_generated_from_the_command_tree() {
    golden::check_region("docs/likesctl.md", "reference", &reference());
}

fn reference() -> String {
    let mut root = likesctl::command();
    root.build();
    let mut commands = Vec::new();
    collect("", &root, &mut commands);
    let common = common_options(&commands);
    let mut text = "\n| command | |\n|---|---|\n".to_owned();
    for (name, command) in &commands {
        writeln!(text, "| [`{name}`](#{}) | {} |", name.replace(' ', "-"), about(command)).unwrap();
    }
    text += &common_section(&common);
    for (name, command) in &commands {
        text += &section(name, command, &common);
    }
    text
}

/// Collects the commands that have no subcommands, with their names.
fn collect<'a>(parent: &str, command: &'a Command, commands: &mut Vec<(String, &'a Command)>) {
    for child in command.get_subcommands().filter(|child| child.get_name() != "help") {
        let name = format!("{parent} {}", child.get_name()).trim().to_owned();
        if child.has_subcommands() {
            collect(&name, child, commands);
        } else {
            commands.push((name, child));
        }
    }
}

fn about(command: &Command) -> String {
    command.get_about().unwrap().to_string()
}

/// Returns the arguments without `--help` and without settings, which docs/configuration.md describes.
fn options(command: &Command) -> impl Iterator<Item = &Arg> {
    let is_listed = |arg: &&Arg| arg.get_id() != "help" && arg.get_env().is_none();
    command.get_arguments().filter(is_listed)
}

/// Heading, name and list item of each common option.
type Common = Vec<(String, String, String)>;

/// Returns the options that at least [`COMMON`] commands have, in the order of the help.
fn common_options(commands: &[(String, &Command)]) -> Common {
    let mut headings = BTreeMap::new();
    let mut common = Common::new();
    for arg in commands.iter().flat_map(|(_, command)| options(command)) {
        let item = item(arg);
        let heading = arg.get_help_heading().unwrap_or("General").to_owned();
        let (heading, count) = headings.entry(item.clone()).or_insert((heading, 0));
        *count += 1;
        if *count == COMMON {
            common.push((heading.clone(), short_name(arg), item));
        }
    }
    common
}

fn common_section(common: &Common) -> String {
    let mut text = "\n### Common options\n".to_owned();
    for heading in ["General", "Selection", "Safety", "Output"] {
        write!(text, "\n{heading}:\n\n").unwrap();
        for (_, _, item) in common.iter().filter(|(of, ..)| of == heading) {
            text += item;
        }
    }
    assert!(common.iter().all(|(_, _, item)| text.contains(item.as_str())), "unknown heading: {common:?}");
    text
}

fn section(name: &str, command: &Command, common: &Common) -> String {
    let usage = command.clone().render_usage().to_string();
    let usage = usage.strip_prefix("Usage: ").unwrap();
    let description = command.get_long_about().map(ToString::to_string).unwrap_or_default();
    let description = description.split_once("\n\n").map(|(_, rest)| format!(" {rest}")).unwrap_or_default();
    let mut text = format!("\n### {name}\n\n");
    text += &wrapped(&format!("{}.{description}", about(command)), "");
    write!(text, "\n```\n{usage}\n```\n").unwrap();
    let mut own = String::new();
    let mut shared = Vec::new();
    for arg in options(command) {
        let item = item(arg);
        match common.iter().find(|(_, _, other)| *other == item) {
            Some((_, name, _)) => shared.push(name.clone()),
            None => own += &item,
        }
    }
    if !own.is_empty() {
        write!(text, "\n{own}").unwrap();
    }
    if !shared.is_empty() {
        text += "\n";
        text += &wrapped(&format!("[Common options](#common-options): {}.", shared.join(", ")), "");
    }
    let connects = |id: &str| command.get_arguments().any(|arg| arg.get_id() == id);
    let servers = match (connects("redis_url"), connects("database_url")) {
        (true, true) => "Redis and Postgres",
        (true, false) => "Redis",
        (false, true) => "Postgres",
        (false, false) => "",
    };
    if !servers.is_empty() {
        write!(text, "\nConnects to {servers}.\n").unwrap();
    }
    let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let examples = after.strip_prefix("Examples:\n").unwrap_or_else(|| panic!("{name} has no examples"));
    let examples: Vec<&str> = examples.lines().map(str::trim).collect();
    text + &format!("\n```sh\n{}\n```\n", examples.join("\n"))
}

/// Returns the name of an option in a list, such as `--partition`.
fn short_name(arg: &Arg) -> String {
    let name = arg.get_long().map(|long| format!("--{long}"));
    format!("`{}`", name.unwrap_or_else(|| value_name(arg)))
}

fn value_name(arg: &Arg) -> String {
    arg.get_value_names().unwrap_or_default().join(" ")
}

/// Returns the list item of an option, wrapped.
fn item(arg: &Arg) -> String {
    let mut names: Vec<String> = arg.get_short().map(|short| format!("`-{short}`")).into_iter().collect();
    let value = if arg.get_action().takes_values() { value_name(arg) } else { String::new() };
    match arg.get_long() {
        None => names.push(format!("`{value}`")),
        Some(long) if value.is_empty() => names.push(format!("`--{long}`")),
        Some(long) if arg.is_require_equals_set() => names.push(format!("`--{long}[={value}]`")),
        Some(long) => names.push(format!("`--{long} {value}`")),
    }
    let mut text = format!("- {}: {}", names.join(", "), arg.get_help().unwrap());
    let defaults: Vec<String> =
        arg.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
    if arg.get_action().takes_values() && !defaults.is_empty() {
        write!(text, " [default: {}]", defaults.join(",")).unwrap();
    }
    let values: Vec<String> = if arg.get_action().takes_values() {
        arg.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())).collect()
    } else {
        Vec::new()
    };
    if !values.is_empty() {
        write!(text, " [values: {}]", values.join(", ")).unwrap();
    }
    wrapped(&text, "  ")
}

/// Wraps a paragraph. Code spans are not broken; lines after the first are indented.
fn wrapped(paragraph: &str, indent: &str) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut in_code = false;
    for word in paragraph.split_whitespace() {
        match words.last_mut() {
            Some(last) if in_code => *last = format!("{last} {word}"),
            _ => words.push(word.to_owned()),
        }
        in_code ^= word.matches('`').count() % 2 == 1;
    }
    let mut lines = vec![String::new()];
    for word in words {
        let line = lines.last_mut().unwrap();
        if line.trim().is_empty() {
            line.push_str(&word);
        } else if line.chars().count() + 1 + word.chars().count() <= COLUMNS {
            line.push(' ');
            line.push_str(&word);
        } else {
            lines.push(format!("{indent}{word}"));
        }
    }
    lines.join("\n") + "\n"
}
