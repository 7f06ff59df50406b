//! The audit log in Redis: one record before each change, and one with its outcome.

use std::env;

use crate::{context::Context, exit::CliError};

/// A change that is about to be made.
pub(crate) struct Intent<'a> {
    /// Command name, such as `dead purge`.
    pub(crate) command: &'a str,
    /// Selection in the operator's notation.
    pub(crate) selection: &'a str,
    /// Value of `--reason-text`, or empty.
    pub(crate) reason: &'a str,
    /// Number of matching items.
    pub(crate) matched: u64,
}

/// Records an intent and returns its id. If this fails, the change is not applied.
pub(crate) async fn begin(context: &Context, intent: &Intent<'_>) -> Result<String, CliError> {
    let who = user_at_host();
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
pub(crate) async fn end(context: &Context, id: &str, outcome: &str) -> Result<(), CliError> {
    let record = ["of", id, "outcome", outcome].map(str::to_owned).into();
    context.streams.audit(record).await?;
    Ok(())
}

/// Returns the operator as `user@host`.
pub(crate) fn user_at_host() -> String {
    let names = ["SUDO_USER", "USER", "LOGNAME"];
    let user = names.iter().find_map(|name| env::var(name).ok()).filter(|user| !user.is_empty());
    let host = gethostname::gethostname();
    format!("{}@{}", user.unwrap_or_else(|| "unknown".to_owned()), host.to_string_lossy())
}
