//! The documentation of settings is generated from the options of the programs: the tables of docs/configuration.md,
//! .env.example, and a golden file of `--help`.

use std::{cmp::Reverse, collections::BTreeSet, fmt::Write as _};

use clap::{Arg, Command, CommandFactory};
use shared::{settings::headings, telemetry::otel_variables::otel_variables};

use crate::{golden, harness::run};

const PROGRAMS: [&str; 3] = ["ingest", "consumer", "likesctl"];

const OPENTELEMETRY: &str = "OpenTelemetry";

const EXAMPLE_INTRO: &str = "\
# All settings of ingest, consumer and likesctl, with their defaults. Settings without a constant
# default are commented out. docs/configuration.md explains all of them.
# Generated from the programs: see tests/integration/configuration.rs.
";

struct Setting {
    name: String,
    heading: &'static str,
    /// With the name of its value.
    flag: Option<String>,
    default: Option<String>,
    /// The default if it is not a constant.
    computed_default: Option<String>,
    programs: Vec<&'static str>,
    /// Summary and details per text, with the programs that have it.
    texts: Vec<(Vec<&'static str>, String, String)>,
}

impl Setting {
    fn summary(&self) -> String {
        self.text(|(_, summary, _)| summary.clone())
    }

    fn meaning(&self) -> String {
        self.text(
            |(_, summary, details)| {
                if details.is_empty() { summary.clone() } else { format!("{summary}. {details}") }
            },
        )
    }

    fn text(&self, of: impl Fn(&(Vec<&'static str>, String, String)) -> String) -> String {
        match &self.texts[..] {
            [one] => of(one),
            several => {
                let texts = several.iter().map(|text| format!("{}: {}", text.0.join(", "), of(text)));
                texts.collect::<Vec<_>>().join("; ")
            }
        }
    }
}

/// Collects the settings of all programs in the order of their options. Texts of likesctl count only for settings that no
/// service has.
fn settings() -> Vec<Setting> {
    let mut settings = Vec::new();
    let commands =
        [ingest::config::Settings::command(), consumer::config::Settings::command(), likesctl::command()];
    for (program, mut command) in PROGRAMS.into_iter().zip(commands) {
        command.build();
        collect(program, &command, &mut settings);
    }
    for variable in otel_variables() {
        let (summary, computed_default) = without_default(&variable.help);
        let programs = vec![PROGRAMS[0], PROGRAMS[1]];
        settings.push(Setting {
            name: variable.name,
            heading: OPENTELEMETRY,
            flag: None,
            default: variable.default.map(str::to_owned),
            computed_default,
            texts: vec![(programs.clone(), summary, String::new())],
            programs,
        });
    }
    settings
}

fn collect(program: &'static str, command: &Command, settings: &mut Vec<Setting>) {
    for arg in command.get_arguments() {
        let Some(name) = arg.get_env() else { continue };
        let name = name.to_str().unwrap();
        let (summary, computed_default) = without_default(&arg.get_help().unwrap().to_string());
        let default = match arg.get_default_values() {
            [] => None,
            [value] => Some(value.to_str().unwrap().to_owned()),
            several => panic!("{name}: {several:?}"),
        };
        let details = details(arg);
        let Some(known) = settings.iter_mut().find(|known| known.name == name) else {
            // Commands of likesctl have headings of their own. What only they have is how long they wait.
            let heading = match program {
                "likesctl" => headings::LIFECYCLE,
                _ => arg.get_help_heading().unwrap_or_else(|| panic!("{name} has no heading")),
            };
            let heading = headings::ALL.into_iter().find(|known| *known == heading);
            settings.push(Setting {
                name: name.to_owned(),
                heading: heading.unwrap_or_else(|| panic!("the heading of {name} is not listed")),
                flag: Some(flag(arg)),
                default,
                computed_default,
                programs: vec![program],
                texts: vec![(vec![program], summary, details)],
            });
            continue;
        };
        assert_eq!((&known.default, known.flag.as_ref()), (&default, Some(&flag(arg))), "{program}: {name}");
        if known.programs.contains(&program) {
            continue;
        }
        known.programs.push(program);
        if program != "likesctl" {
            let same = known.texts.iter_mut().find(|text| (&text.1, &text.2) == (&summary, &details));
            match same {
                Some(text) => text.0.push(program),
                None => known.texts.push((vec![program], summary, details)),
            }
        }
    }
    for subcommand in command.get_subcommands() {
        collect(program, subcommand, settings);
    }
}

fn flag(arg: &Arg) -> String {
    let values = arg.get_value_names().unwrap().join(" ");
    format!("--{} <{values}>", arg.get_long().unwrap())
}

/// Splits a summary from the default in brackets at its end.
fn without_default(help: &str) -> (String, Option<String>) {
    let help = help.trim().trim_end_matches('.');
    match help.strip_suffix(']').and_then(|help| help.split_once(" [default: ")) {
        Some((summary, default)) => (summary.to_owned(), Some(default.to_owned())),
        None => (help.to_owned(), None),
    }
}

/// Returns the help after the summary, and the values of an enumeration.
fn details(arg: &Arg) -> String {
    let long = arg.get_long_help().map(ToString::to_string).unwrap_or_default();
    let mut details: Vec<String> = long.split("\n\n").skip(1).map(str::to_owned).collect();
    let values = arg.get_possible_values();
    let documented = values.iter().filter_map(|value| Some((value.get_name(), value.get_help()?)));
    let documented: Vec<String> = documented.map(|(name, help)| format!("{name}: {help}.")).collect();
    let summary = arg.get_help().unwrap().to_string();
    if !documented.is_empty() {
        details.extend(documented);
    } else if !values.iter().all(|value| summary.contains(value.get_name())) {
        let names: Vec<&str> = values.iter().map(clap::builder::PossibleValue::get_name).collect();
        details.push(format!("Values: {}.", names.join(", ")));
    }
    details.join(" ")
}

/// Renders the tables of docs/configuration.md.
fn tables(settings: &[Setting]) -> String {
    let mut text = String::new();
    for heading in headings::ALL {
        write!(
            text,
            "\n## {heading}\n\n| variable | flag | default | programs | meaning |\n|---|---|---|---|---|\n"
        )
        .unwrap();
        for setting in settings.iter().filter(|setting| setting.heading == heading) {
            writeln!(
                text,
                "| `{}` | `{}` | {} | {} | {} |",
                setting.name,
                setting.flag.as_deref().unwrap().replace('|', "\\|"),
                default_cell(setting),
                setting.programs.join(", "),
                markdown(&setting.meaning())
            )
            .unwrap();
        }
    }
    write!(
        text,
        "\n## {OPENTELEMETRY}\n\nThese are environment variables of `ingest` and `consumer`, and not flags: see\n\
         [telemetry.md](telemetry.md).\n\n| variable | default | meaning |\n|---|---|---|\n"
    )
    .unwrap();
    for setting in settings.iter().filter(|setting| setting.heading == OPENTELEMETRY) {
        writeln!(
            text,
            "| `{}` | {} | {} |",
            setting.name,
            default_cell(setting),
            markdown(&setting.meaning())
        )
        .unwrap();
    }
    text + "\n"
}

fn default_cell(setting: &Setting) -> String {
    let constant = setting.default.as_ref().map(|default| format!("`{default}`"));
    constant.or_else(|| setting.computed_default.as_deref().map(markdown)).unwrap_or_default()
}

/// Marks URLs, paths and names of variables as code.
fn markdown(text: &str) -> String {
    let word = |word: &str| {
        let core = word.trim_end_matches(['.', ',', ';', ':', ')']);
        let rest = &word[core.len()..];
        let open = core.len() - core.trim_start_matches('(').len();
        let (open, core) = core.split_at(open);
        let is_name = core.contains('_') && core.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
        let is_code = is_name
            || core == "*"
            || (core.starts_with('/') && core[1..].starts_with(|c: char| c.is_ascii_lowercase()))
            || (core.len() > 1 && core.contains(['=', '[']))
            || core.contains("://");
        if is_code { format!("{open}`{core}`{rest}") } else { word.to_owned() }
    };
    text.split_whitespace().map(word).collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

/// Renders .env.example, grouped by programs and headings.
fn example(settings: &[Setting]) -> String {
    let mut groups: Vec<&[&str]> = settings.iter().map(|setting| &setting.programs[..]).collect();
    groups.sort_by_key(|programs| {
        let positions = programs.iter().map(|program| PROGRAMS.iter().position(|known| known == program));
        (Reverse(programs.len()), positions.collect::<Vec<_>>())
    });
    groups.dedup();
    let mut text = EXAMPLE_INTRO.to_owned();
    for programs in groups {
        for heading in headings::ALL.into_iter().chain([OPENTELEMETRY]) {
            let of_group =
                settings.iter().filter(|setting| setting.programs == programs && setting.heading == heading);
            let lines: String = of_group.map(example_lines).collect();
            if !lines.is_empty() {
                write!(text, "\n## {}: {heading}\n\n{lines}", programs.join(", ")).unwrap();
            }
        }
    }
    text
}

fn example_lines(setting: &Setting) -> String {
    let computed = setting
        .computed_default
        .as_ref()
        .map_or_else(String::new, |default| format!(" [default: {default}]"));
    let value = setting.default.as_deref().unwrap_or_default();
    // A variable of OpenTelemetry can switch on exports even if it is set to its default.
    let comment = if setting.default.is_none() || setting.heading == OPENTELEMETRY { "# " } else { "" };
    format!("# {}{computed}\n{comment}{}={value}\n", setting.summary(), setting.name)
}

#[test]
fn configuration_reference_is_up_to_date() {
    golden::check_region("docs/configuration.md", "settings", &tables(&settings()));
}

#[test]
fn env_example_is_up_to_date() {
    let settings = settings();
    assert!(settings.len() >= 100, "{}", settings.len());
    golden::check(".env.example", &example(&settings));
}

#[test]
fn service_help_matches_the_golden_file() {
    let mut text = String::new();
    for program in ["ingest", "consumer"] {
        for argument in ["-h", "--help"] {
            let help = run(program, &[argument], &[("COLUMNS", "100")]);
            assert_eq!(help.code, Some(0), "{}", help.stderr);
            assert!(help.stdout.contains("docs/telemetry.md"), "{}", help.stdout);
            // All OTEL_* variables share one line.
            assert!(!help.stdout.contains("[env: OTEL_"), "{}", help.stdout);
            assert!(help.stdout.lines().all(|line| line.chars().count() <= 100), "{program} {argument}");
            writeln!(text, "$ {program} {argument}\n{}", help.stdout).unwrap();
        }
    }
    golden::check("tests/integration/golden/services_help.txt", &text);
}

#[test]
fn setting_summaries_are_one_line() {
    for setting in settings().iter().filter(|setting| setting.heading != OPENTELEMETRY) {
        let summary = setting.summary();
        assert!(
            summary.starts_with(|c: char| c.is_ascii_uppercase() || setting.texts.len() > 1),
            "{summary}"
        );
        for (_, summary, _) in &setting.texts {
            assert!(summary.len() <= 110 && !summary.contains(". "), "{}: {summary}", setting.name);
        }
    }
}

/// The variables in the tables of docs/telemetry.md: the second one has those of the exporter without their prefix.
fn documented_for_opentelemetry() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let first_cells =
        include_str!("../../docs/telemetry.md").lines().filter_map(|line| line.split('|').nth(1));
    for name in first_cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)) {
        if name.starts_with("OTEL_") && !name.ends_with('…') {
            names.insert(name.to_owned());
        } else if name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_') {
            names.extend(
                ["", "TRACES_", "METRICS_"].map(|signal| format!("OTEL_EXPORTER_OTLP_{signal}{name}")),
            );
        }
    }
    names
}

/// docs/telemetry.md explains the same variables that are read and listed.
#[test]
fn opentelemetry_variables_are_documented() {
    let listed = otel_variables().into_iter().map(|variable| variable.name).collect();
    assert_eq!(documented_for_opentelemetry(), listed);
}
