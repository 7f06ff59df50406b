//! `devstack run`: a command with a private Redis and ingest.

use std::{
    error::Error,
    io,
    os::unix::process::CommandExt,
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
    time::Duration,
};

use devstack::{
    StackError,
    process::Lifetime,
    program::Program,
    redis_server::{RedisOptions, RedisServer},
};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::time::sleep;

use crate::stack::{READY, loopback};

const POLL: Duration = Duration::from_millis(20);

#[derive(clap::Args)]
pub(crate) struct RunOptions {
    /// Setting of ingest
    #[arg(long = "ingest", value_name = "NAME=VALUE", value_parser = setting)]
    ingest_settings: Vec<(String, String)>,

    /// Command and its arguments. Its environment contains LIKES_URL (ingest), LIKES_ADMIN_URL (admin port of ingest) and
    /// REDIS_URL
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
}

fn setting(text: &str) -> Result<(String, String), &'static str> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Runs the command to its end. Dropping the future ends all processes that it has started.
pub(crate) async fn run(options: &RunOptions) -> Result<ExitCode, Box<dyn Error>> {
    let logs = tempfile::Builder::new().prefix("likestream-logs-").tempdir();
    let logs = logs.map_err(StackError::io("cannot create a temporary folder"))?;
    let redis = RedisServer::start(RedisOptions::default(), Lifetime::Attached)?;
    let mut settings = vec![
        ("REDIS_URL", redis.url()),
        ("INGEST_LISTEN", loopback(0)),
        ("INGEST_ADMIN_LISTEN", loopback(0)),
    ];
    settings.extend(options.ingest_settings.iter().map(|(name, value)| (name.as_str(), value.clone())));
    let mut ingest = Program::start("ingest", &settings, &logs.path().join("ingest.log"))?;
    ingest.wait_ready(READY)?;

    let (program, arguments) = options.command.split_first().ok_or(StackError::Missing("command"))?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("LIKES_URL", format!("http://{}", ingest.listen()))
        .env("LIKES_ADMIN_URL", format!("http://{}", ingest.admin()))
        .env("REDIS_URL", redis.url())
        .stdin(Stdio::null())
        .process_group(0);
    let child = command.spawn().map_err(|source| StackError::Spawn { program: program.clone(), source })?;
    let status = ProcessGroup(child).wait().await?;
    if let Some(last_output) = ingest.last_output_if_ended() {
        return Err(StackError::Ended { program: "ingest".to_owned(), last_output }.into());
    }
    ingest.stop()?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Command and all processes of its group. Dropped, they are killed.
struct ProcessGroup(Child);

impl ProcessGroup {
    async fn wait(mut self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(status);
            }
            sleep(POLL).await;
        }
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        // The group may have ended.
        let _ = killpg(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGKILL);
        let _ = self.0.wait();
    }
}
