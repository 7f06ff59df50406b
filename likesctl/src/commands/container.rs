//! `likesctl ready` and `likesctl idle`, for containers without a shell.

use std::{
    io::{self, Write},
    net::SocketAddr,
    time::Duration,
};

use clap::Args;
use reqwest::{StatusCode, redirect::Policy};
use shared::{
    error_chain::one_line,
    settings::args::{address, positive_duration},
};
use tokio_util::sync::CancellationToken;

use crate::{
    exit::{CliError, Exit},
    output::printable,
};

/// Maximum length of a response, more than any admin port sends.
const MAX_ANSWER_BYTES: usize = 64 << 10;

#[derive(Args)]
pub(crate) struct ReadyOptions {
    /// Admin address of ingest or of a consumer, such as 127.0.0.1:8081
    #[arg(value_name = "ADDRESS", value_parser = address)]
    address: SocketAddr,

    /// Maximum time to wait for the response
    #[arg(long, default_value = "3s", value_name = "DURATION", value_parser = positive_duration)]
    timeout: Duration,
}

/// Prints the response of `/readyz`.
pub(crate) async fn ready(ReadyOptions { address, timeout }: ReadyOptions) -> Result<Exit, CliError> {
    let failed = |error: reqwest::Error| {
        CliError::failed(format!("no response from {address}: {}", one_line(&error.without_url())))
    };
    let client = reqwest::Client::builder().no_proxy().redirect(Policy::none()).timeout(timeout);
    let client = client.build().map_err(failed)?;
    let mut answer = client.get(format!("http://{address}/readyz?verbose")).send().await.map_err(failed)?;
    let status = answer.status();
    let mut text = Vec::new();
    while let Some(part) = answer.chunk().await.map_err(failed)?
        && text.len() < MAX_ANSWER_BYTES
    {
        text.extend_from_slice(&part);
    }
    let text = String::from_utf8_lossy(&text);
    let exit = match (status, text.lines().last()) {
        (StatusCode::OK, Some("ready")) => Exit::Done,
        (StatusCode::SERVICE_UNAVAILABLE, Some("not ready")) => Exit::Failure,
        _ => {
            let line = format!(
                "{address} is not an admin port: /readyz returned {status}; use INGEST_ADMIN_LISTEN or CONSUMER_ADMIN_LISTEN"
            );
            return Err(CliError::failed(line));
        }
    };
    for line in text.lines() {
        writeln!(io::stdout(), "{}", printable(line))?;
    }
    Ok(exit)
}

/// Waits for a signal.
pub(crate) async fn idle(interrupt: &CancellationToken) -> Exit {
    interrupt.cancelled().await;
    Exit::Done
}
