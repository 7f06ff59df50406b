//! Settings from the command line and the environment.
//!
//! Purpose: parse flags and variables with clap, and report an invalid one in one line that names it. `args` has the groups
//! of options that several programs share, `secret_source` the secrets that files can hold, `server_url` the checks of URLs
//! with a password. May depend on `wire`. Must not know Redis, Postgres or the services.

pub mod args;
pub mod headings;
pub mod secret_source;
pub(crate) mod server_url;

use std::{borrow::Cow, fmt, process};

use clap::{
    Parser,
    error::{ContextKind, ContextValue, ErrorKind},
};
use thiserror::Error;

use crate::stderr::eprint_line;

/// The exit code of an invalid setting or command line.
pub const EXIT_USAGE: u8 = 2;

/// An invalid setting. The text never contains a secret.
#[derive(Debug, Error)]
#[error("{setting}: {problem}")]
pub struct SettingError {
    setting: Cow<'static, str>,
    problem: String,
}

impl SettingError {
    /// `setting` is the environment variable. `problem` is the value (unless it is secret), why it is invalid, and the
    /// expected value: `'x' is not a number; expected an integer from 1 to 1024`.
    pub fn new(setting: impl Into<Cow<'static, str>>, problem: impl fmt::Display) -> Self {
        Self { setting: setting.into(), problem: problem.to_string() }
    }
}

/// Settings that clap parses, and that have to be consistent with each other.
pub trait Settings: Parser {
    /// Checks the rules between several settings.
    fn check(&self) -> Result<(), SettingError>;
}

/// Parses flags and environment. Help and version are printed in full and end the program with 0. An error ends it with
/// [`EXIT_USAGE`] and one line.
pub fn parse<S: Settings>() -> S {
    match S::try_parse() {
        Ok(settings) => match settings.check() {
            Ok(()) => settings,
            Err(error) => refuse(&error),
        },
        Err(error) if error.exit_code() == 0 => error.exit(),
        Err(error) if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => error.exit(),
        Err(error) => refuse(&one_line(&error, &S::command())),
    }
}

/// Prints an error of the settings and ends the program.
pub fn refuse(error: &dyn fmt::Display) -> ! {
    let line = error.to_string().replace(char::is_control, " ");
    eprint_line(format_args!("error: {line}"));
    process::exit(EXIT_USAGE.into())
}

fn one_line(error: &clap::Error, command: &clap::Command) -> String {
    let named = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    if let (Some(arg), Some(value)) = (named(ContextKind::InvalidArg), named(ContextKind::InvalidValue)) {
        let setting = environment_name(command, arg).unwrap_or_else(|| arg.to_owned());
        let problem = match (error.get(ContextKind::ValidValue), std::error::Error::source(error)) {
            (Some(ContextValue::Strings(values)), _) if !values.is_empty() => {
                format!("is not valid; expected {}", alternatives(values))
            }
            (_, Some(source)) => problem(&source.to_string()),
            _ if value.is_empty() => "is empty; expected a value".to_owned(),
            _ => "is not valid".to_owned(),
        };
        return format!("{setting}: '{value}' {problem}");
    }
    let text = error.to_string();
    let first = text.split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = first.trim_start_matches("error:").split_whitespace().collect();
    format!("{}; see --help", words.join(" "))
}

/// Completes the error of a value parser, which is `expected …`, or `is …; expected …` with a more specific problem.
fn problem(error: &str) -> String {
    if error.starts_with("is ") { error.to_owned() } else { format!("is not valid; {error}") }
}

/// Returns `a, b or c`.
fn alternatives(values: &[String]) -> String {
    match values {
        [others @ .., last] if !others.is_empty() => format!("{} or {last}", others.join(", ")),
        _ => values.concat(),
    }
}

/// Returns the environment variable of the option that clap displays as `--flag <VALUE>`.
fn environment_name(command: &clap::Command, usage: &str) -> Option<String> {
    let long = usage.trim_start_matches("--").split([' ', '=']).next()?;
    let own = command.get_arguments().find(|arg| arg.get_long() == Some(long));
    let env = own.and_then(|arg| arg.get_env()).map(|env| env.to_string_lossy().into_owned());
    env.or_else(|| command.get_subcommands().find_map(|sub| environment_name(sub, usage)))
}
