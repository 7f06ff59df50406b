//! The way of one command to the server that executes it: redirections and retries.

use std::{sync::Arc, time::Duration};

use fred::prelude::Error;
use tokio::time::{Instant, sleep};

use super::{
    Connection,
    errors::{Outcome, error_code, outcome, redirected},
    nodes::{Destination, Nodes},
};

/// Delay between two attempts at one command.
const RETRY_DELAY: Duration = Duration::from_millis(25);

/// Number of redirections that are followed at once: MOVED to the owner of a slot, and ASK to its next owner. More of them
/// mean that servers disagree.
const PROMPT_REDIRECTIONS: u32 = 2;

/// Whether a command may be sent again after its reply was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Sent again only if it was certainly not executed.
    NonIdempotent,
    /// Sent again even if it may have been executed.
    Idempotent,
}

/// Error of a command after its last attempt.
#[derive(Debug)]
pub struct Failed {
    /// The error of the last attempt that reached a server, or else why none was reached.
    pub error: Error,
    /// Whether any attempt may have been executed.
    pub may_be_executed: bool,
}

/// The attempts at one command.
pub(super) struct Route<'a> {
    nodes: &'a Arc<Nodes>,
    slot: u16,
    retry: Retry,
    destination: Destination,
    /// End of the time in which the command is sent again.
    pub(super) deadline: Instant,
    /// Number of attempts.
    pub(super) sent: u64,
    redirections: u32,
    pub(super) may_be_executed: bool,
    last: Option<Error>,
}

impl<'a> Route<'a> {
    pub(super) fn new(nodes: &'a Arc<Nodes>, slot: u16, retry: Retry, limit: Duration) -> Self {
        Self {
            nodes,
            slot,
            retry,
            destination: Destination::Owner(slot),
            deadline: Instant::now() + limit,
            sent: 0,
            redirections: 0,
            may_be_executed: false,
            last: None,
        }
    }

    /// Returns where the next attempt has to go.
    pub(super) fn destination(&self) -> &Destination {
        &self.destination
    }

    /// Returns whether ASKING must be sent right before the command, on the same connection.
    pub(super) fn is_asked(&self) -> bool {
        matches!(self.destination, Destination::Asked(_))
    }

    /// Returns the final error of a command that is not sent again.
    pub(super) fn failed(&self, error: Error) -> Failed {
        let may_be_executed = self.may_be_executed || outcome(&error) == Outcome::Unknown;
        Failed { error, may_be_executed }
    }

    /// Returns the final error of a command whose destination is not connected.
    pub(super) fn not_sent(&mut self, error: Error) -> Failed {
        // A server's reply to an earlier attempt says more than a lost connection, unless it was a redirection.
        let replied =
            self.last.take().filter(|last| !matches!(error_code(last), None | Some("ASK" | "MOVED")));
        Failed { error: replied.unwrap_or(error), may_be_executed: self.may_be_executed }
    }

    /// Prepares the next attempt after a failed connection, and waits for its time.
    ///
    /// # Errors
    /// When a further attempt would be refused as well, or the time is over.
    pub(super) async fn not_connected(&mut self, error: Error) -> Result<(), Failed> {
        self.nodes.suspect_change();
        if outcome(&error) == Outcome::Refused || Instant::now() + RETRY_DELAY >= self.deadline {
            return Err(self.not_sent(error));
        }
        self.destination = Destination::Owner(self.slot);
        sleep(RETRY_DELAY).await;
        Ok(())
    }

    /// Prepares the next attempt after an error, and waits for its time.
    ///
    /// # Errors
    /// When the command must not be sent again, or its time is over.
    pub(super) async fn answered(&mut self, error: Error, from: &Connection) -> Result<(), Failed> {
        let outcome = outcome(&error);
        self.may_be_executed |= outcome == Outcome::Unknown;
        let again = match outcome {
            Outcome::Refused => false,
            Outcome::NotExecuted => true,
            Outcome::Unknown => self.retry == Retry::Idempotent,
        };
        self.nodes.report_error(&error, from);
        let host = &from.server.host;
        let asked = redirected(&error, "ASK", host);
        let is_redirected = asked.is_some() || redirected(&error, "MOVED", host).is_some();
        self.redirections += u32::from(is_redirected);
        self.destination =
            asked.map_or(Destination::Owner(self.slot), |(_, server)| Destination::Asked(server));
        let delay = if is_redirected && self.redirections <= PROMPT_REDIRECTIONS {
            Duration::ZERO
        } else {
            RETRY_DELAY
        };
        if !again || Instant::now() + delay >= self.deadline {
            return Err(Failed { error, may_be_executed: self.may_be_executed });
        }
        self.last = Some(error);
        sleep(delay).await;
        Ok(())
    }
}
