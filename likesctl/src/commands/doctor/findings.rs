//! Findings of the checks, and their output.

use std::{
    fmt::Write as _,
    io::{self, Write},
};

use serde::Serialize;
use shared::error_chain::one_line;

use crate::{
    exit::{CliError, Exit},
    output::{Format, OutputArgs, many, print_document, printable},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    Ok,
    Warn,
    Fail,
}

/// Result of one check.
#[derive(Serialize)]
struct Finding {
    check: &'static str,
    state: State,
    seen: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

/// Collected findings. The table format prints each finding as soon as it is added.
pub(super) struct Findings {
    output: OutputArgs,
    findings: Vec<Finding>,
}

impl Findings {
    pub(super) fn new(output: OutputArgs) -> Self {
        Self { output, findings: Vec::new() }
    }

    pub(super) fn ok(&mut self, check: &'static str, seen: impl Into<String>) -> Result<(), CliError> {
        self.add(Finding { check, state: State::Ok, seen: seen.into(), advice: None })
    }

    pub(super) fn warn(
        &mut self,
        check: &'static str,
        seen: impl Into<String>,
        advice: impl Into<String>,
    ) -> Result<(), CliError> {
        self.bad(check, State::Warn, seen, advice)
    }

    pub(super) fn fail(
        &mut self,
        check: &'static str,
        seen: impl Into<String>,
        advice: impl Into<String>,
    ) -> Result<(), CliError> {
        self.bad(check, State::Fail, seen, advice)
    }

    pub(super) fn bad(
        &mut self,
        check: &'static str,
        state: State,
        seen: impl Into<String>,
        advice: impl Into<String>,
    ) -> Result<(), CliError> {
        self.add(Finding { check, state, seen: seen.into(), advice: Some(advice.into()) })
    }

    /// Adds a failure if a check could not run.
    pub(super) fn record_failure(
        &mut self,
        check: &'static str,
        checked: Result<(), CliError>,
    ) -> Result<(), CliError> {
        match checked {
            Err(CliError::Failed(error)) => {
                let advice = "the check could not run; fix the cause, and run likesctl doctor again";
                self.fail(check, one_line(&*error), advice)
            }
            checked => checked,
        }
    }

    fn add(&mut self, finding: Finding) -> Result<(), CliError> {
        if matches!(self.output.output, Format::Table | Format::Wide) {
            writeln!(anstream::stdout(), "{}", finding.text())?;
            io::stdout().flush()?;
        }
        self.findings.push(finding);
        Ok(())
    }

    /// Prints the summary, or all findings as JSON.
    pub(super) fn finish(self) -> Result<Exit, CliError> {
        let number = |state| self.findings.iter().filter(|finding| finding.state == state).count() as u64;
        let warnings = number(State::Warn);
        let failures = number(State::Fail);
        print_document(self.output, &self.findings, |_| {
            let warnings = many(warnings, "warning", "warnings");
            format!("{} checks: {warnings}, {}", self.findings.len(), many(failures, "failure", "failures"))
        })?;
        Ok(if failures > 0 { Exit::Failure } else { Exit::Done })
    }
}

impl Finding {
    fn text(&self) -> String {
        // Green, yellow and red: ECMA-48, SGR. anstream strips them if the output is not a colour terminal.
        let state = match self.state {
            State::Ok => "\x1b[32mok\x1b[0m  ",
            State::Warn => "\x1b[33mwarn\x1b[0m",
            State::Fail => "\x1b[31mfail\x1b[0m",
        };
        let mut text = format!("{state}  {:<14}{}", self.check, printable(&self.seen));
        if let Some(advice) = &self.advice {
            // Writing to a String never fails.
            let _ = write!(text, "\n{:20}→ {}", "", printable(advice));
        }
        text
    }
}
