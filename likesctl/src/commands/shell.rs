//! `likesctl completions` and `likesctl man`: print shell completions and manual pages.

use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
};

use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::exit::{CliError, Exit};

#[derive(Args)]
pub(crate) struct CompletionsOptions {
    /// Shell of the completion script
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

#[derive(Args)]
pub(crate) struct ManOptions {
    /// Directory for the pages of all commands [default: only the main page, to standard output]
    #[arg(long, value_name = "DIRECTORY")]
    out: Option<PathBuf>,
}

pub(crate) fn completions(
    CompletionsOptions { shell }: &CompletionsOptions,
    mut command: Command,
) -> Result<Exit, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(*shell, &mut command, "likesctl", &mut script);
    io::stdout().write_all(&script)?;
    Ok(Exit::Done)
}

pub(crate) fn man(ManOptions { out }: ManOptions, mut command: Command) -> Result<Exit, CliError> {
    match out {
        None => Man::new(command).render(&mut io::stdout())?,
        Some(folder) => {
            let failed = |why| CliError::failed(format!("cannot write to '{}': {why}", folder.display()));
            fs::create_dir_all(&folder).map_err(failed)?;
            command.build();
            clap_mangen::generate_to(command, &folder).map_err(failed)?;
        }
    }
    Ok(Exit::Done)
}
