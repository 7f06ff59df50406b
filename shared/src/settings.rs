//! Settings from the command line and the environment.
//!
//! Purpose: parse flags and variables with clap, and report a bad one in one line that names it. `args` are the groups of
//! flags that several programs have. May depend on `wire`. Must not know Redis, Postgres or the services.

pub mod args;

use std::{borrow::Cow, fmt, process};

use clap::{
    Parser,
    error::{ContextKind, ContextValue, ErrorKind},
};
use thiserror::Error;

use crate::stderr::eprint_line;

/// The exit code of a bad setting or a bad command line.
pub const EXIT_USAGE: u8 = 2;

/// A setting that can't be used, in words that never repeat a secret.
#[derive(Debug, Error)]
#[error("{setting}: {problem}")]
pub struct SettingError {
    setting: Cow<'static, str>,
    problem: String,
}

impl SettingError {
    /// `setting` is the environment variable's name, `problem` the value (unless secret) and what is allowed.
    pub fn new(setting: impl Into<Cow<'static, str>>, problem: impl fmt::Display) -> Self {
        Self { setting: setting.into(), problem: problem.to_string() }
    }
}

/// Settings that clap can fill and that then have rules between one another.
pub trait Settings: Parser {
    /// Checks what a single flag's parser can't see.
    fn check(&self) -> Result<(), SettingError>;
}

/// Reads flags and environment. Help and version are printed whole and end the program with 0; anything wrong
/// ends it with [`EXIT_USAGE`] and one line.
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

/// Ends the program over a setting.
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
        let allowed = match (error.get(ContextKind::ValidValue), std::error::Error::source(error)) {
            (Some(ContextValue::Strings(values)), _) if !values.is_empty() => {
                format!("allowed are {}", values.join(", "))
            }
            (_, Some(source)) => source.to_string(),
            _ => "a value is needed".to_owned(),
        };
        return format!("{setting}: '{value}' is not valid: {allowed}");
    }
    let text = error.to_string();
    let first = text.split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = first.trim_start_matches("error:").split_whitespace().collect();
    format!("{} (see --help)", words.join(" "))
}

/// The environment variable of the flag that clap calls `--flag <VALUE>`.
fn environment_name(command: &clap::Command, usage: &str) -> Option<String> {
    let long = usage.trim_start_matches("--").split([' ', '=']).next()?;
    let own = command.get_arguments().find(|arg| arg.get_long() == Some(long));
    let env = own.and_then(|arg| arg.get_env()).map(|env| env.to_string_lossy().into_owned());
    env.or_else(|| command.get_subcommands().find_map(|sub| environment_name(sub, usage)))
}
