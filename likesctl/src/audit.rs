//! The audit log of changes by `likesctl`, in Redis.

use std::env;

use crate::{context::Context, exit::CliError};

/// What is about to be changed.
pub(crate) struct Intent<'a> {
    /// The command, like `dead purge`.
    pub(crate) command: &'a str,
    /// The selection, as the operator wrote it.
    pub(crate) selection: &'a str,
    /// The operator's own words, or empty.
    pub(crate) reason: &'a str,
    /// Number of items that match.
    pub(crate) matched: u64,
}

/// Records an intent and returns its id. What can't be recorded is not done.
pub(crate) async fn begin(context: &Context, intent: &Intent<'_>) -> Result<String, CliError> {
    let who = who();
    let matched = intent.matched.to_string();
    let record = [
        ("who", who.as_str()),
        ("command", intent.command),
        ("selection", intent.selection),
        ("matched", &matched),
        ("group", context.streams.group()),
        ("reason", intent.reason),
    ];
    let record = record.iter().flat_map(|(name, value)| [(*name).to_owned(), (*value).to_owned()]);
    Ok(context.streams.audit(record.collect()).await?)
}

/// Records the outcome of an intent.
pub(crate) async fn end(context: &Context, begun: &str, outcome: &str) -> Result<(), CliError> {
    let record = ["of", begun, "outcome", outcome].map(str::to_owned).into();
    context.streams.audit(record).await?;
    Ok(())
}

/// Returns the user as far as the system knows it.
fn who() -> String {
    let names = ["SUDO_USER", "USER", "LOGNAME"];
    let user = names.iter().find_map(|name| env::var(name).ok()).filter(|user| !user.is_empty());
    let host = gethostname::gethostname();
    format!("{}@{}", user.unwrap_or_else(|| "unknown".to_owned()), host.to_string_lossy())
}
