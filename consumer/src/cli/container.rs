//! `likesctl ready` and `likesctl idle`: for containers, whose image has no shell.

use std::{
    io::{self, Write},
    net::SocketAddr,
    time::Duration,
};

use clap::Args;
use shared::{
    config::{address, positive_duration},
    service::one_line,
};
use tokio_util::sync::CancellationToken;

use super::exit::{CliError, Exit};

#[derive(Args)]
pub(super) struct ReadyOptions {
    /// The admin port of ingest or of a consumer, like 127.0.0.1:8081
    #[arg(value_name = "ADDRESS", value_parser = address)]
    address: SocketAddr,

    /// How long it may take to answer
    #[arg(long, default_value = "3s", value_name = "DURATION", value_parser = positive_duration)]
    timeout: Duration,
}

/// Tells what `/readyz` says.
pub(super) async fn ready(ReadyOptions { address, timeout }: ReadyOptions) -> Result<Exit, CliError> {
    let failed = |error: reqwest::Error| {
        CliError::failed(format!("{address} does not answer: {}", one_line(&error.without_url())))
    };
    let client = reqwest::Client::builder().no_proxy().timeout(timeout).build().map_err(failed)?;
    let answer = client.get(format!("http://{address}/readyz?verbose")).send().await.map_err(failed)?;
    let status = answer.status();
    let text = answer.text().await.map_err(failed)?;
    if !status.is_success() && status != reqwest::StatusCode::SERVICE_UNAVAILABLE {
        return Err(CliError::failed(format!("{address} answers {status}: it is no admin port")));
    }
    io::stdout().write_all(text.as_bytes())?;
    Ok(if status.is_success() { Exit::Done } else { Exit::Unwell })
}

/// Does nothing until told to end.
pub(super) async fn idle(interrupt: &CancellationToken) -> Exit {
    interrupt.cancelled().await;
    Exit::Done
}
