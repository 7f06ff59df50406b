//! Confirmation on the terminal.

use std::io::{self, IsTerminal};

use dialoguer::Confirm;

use super::Action;
use crate::exit::CliError;

impl Action<'_> {
    /// Asks for confirmation, except with `--yes`.
    ///
    /// # Errors
    /// When the answer is no, or without a terminal.
    pub(crate) async fn confirm(&self, number: u64) -> Result<(), CliError> {
        if self.args.yes {
            return Ok(());
        }
        if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            let line = "nothing was changed: confirmation requires a terminal; preview with --dry-run, confirm with --yes";
            return Err(CliError::Refused(line.to_owned()));
        }
        let question =
            if number == 1 { "Continue?".to_owned() } else { format!("Apply to {}?", self.items(number)) };
        // On a separate thread, so that signals are still handled.
        let answer = tokio::task::spawn_blocking(|| ask(question));
        match self.interrupt.run_until_cancelled(answer).await {
            Some(Ok(Ok(Some(true)))) => Ok(()),
            Some(Ok(Ok(_))) => Err(CliError::Refused("nothing was changed: not confirmed".to_owned())),
            Some(Ok(Err(dialoguer::Error::IO(why)))) if why.kind() == io::ErrorKind::Interrupted => {
                Err(CliError::Interrupted)
            }
            None => Err(CliError::Interrupted),
            Some(Ok(Err(error))) => Err(CliError::failed(format!("cannot ask for confirmation: {error}"))),
            Some(Err(error)) => Err(CliError::failed(error.to_string())),
        }
    }
}

fn ask(question: String) -> dialoguer::Result<Option<bool>> {
    let answer = Confirm::new().with_prompt(question).default(false).interact_opt();
    if answer.is_err() {
        let _ = dialoguer::console::Term::stderr().show_cursor();
    }
    answer
}
