//! Connections that serve the commands of one key only.

use std::{mem, sync::Arc, time::Duration};

use fred::prelude::{Error, FromValue, Value};
use futures_util::future::BoxFuture;

use super::{
    Connection,
    nodes::{Destination, Nodes},
    route::{Failed, Retry, Route},
};

/// A command with its arguments.
pub(super) type Command = (&'static str, Vec<Value>);

/// Connections for the commands of one key, routed as those of shared connections. `WAIT` and `WAITAOF` cover only writes of
/// the same connection, and would cover those of others on a shared one.
pub struct Dedicated {
    nodes: Arc<Nodes>,
    slot: u16,
    /// One connection, or two while the slot moves: to its owner and to its next owner.
    open: Vec<Connection>,
}

impl Dedicated {
    pub(super) fn new(nodes: Arc<Nodes>, slot: u16) -> Self {
        Self { nodes, slot, open: Vec::new() }
    }

    /// Sends a command and its confirmation, one right after the other, on the same connection. Both are sent again as by
    /// [`Connections::run`](super::Connections::run) until `retry_for` is over. Each attempt has twice `REDIS_TIMEOUT` for its
    /// replies. Also returns the number of attempts.
    ///
    /// # Errors
    /// The error of either command. After that of the confirmation, the command has been executed.
    pub async fn run<R: FromValue, C: FromValue>(
        &mut self,
        retry_for: Duration,
        command: (&'static str, Vec<Value>),
        confirmation: (&'static str, Vec<Value>),
    ) -> Result<(R, C, u64), Failed> {
        let (answer, confirmed, sent) = self.run_boxed(retry_for, [command, confirmation]).await?;
        let unexpected = |error| Failed { error, may_be_executed: true };
        Ok((answer.convert().map_err(unexpected)?, confirmed.convert().map_err(unexpected)?, sent))
    }

    fn run_boxed(
        &mut self,
        retry_for: Duration,
        commands: [Command; 2],
    ) -> BoxFuture<'_, Result<(Value, Value, u64), Failed>> {
        Box::pin(self.run_both(retry_for, commands))
    }

    async fn run_both(
        &mut self,
        retry_for: Duration,
        commands: [Command; 2],
    ) -> Result<(Value, Value, u64), Failed> {
        let nodes = Arc::clone(&self.nodes);
        let mut route = Route::new(&nodes, self.slot, Retry::Idempotent, retry_for);
        // Connections that this command does not use are closed: the slot has left their servers.
        let mut before = mem::take(&mut self.open);
        loop {
            let connection =
                match connection_to(&nodes, route.destination(), &mut before, &mut self.open).await {
                    Ok(connection) => connection,
                    Err(error) => {
                        route.not_connected(error).await?;
                        continue;
                    }
                };
            route.sent += 1;
            let error = match connection.send_both(route.is_asked(), commands.clone()).await {
                (Ok(answer), Ok(confirmed)) => return Ok((answer, confirmed, route.sent)),
                (Err(error), _) => error,
                (Ok(_), Err(error)) => {
                    route.may_be_executed = true;
                    error
                }
            };
            route.answered(error, connection).await?;
        }
    }
}

/// Returns the connection to a destination among those of this command, those of the command before, or a further one.
async fn connection_to<'a>(
    nodes: &Nodes,
    destination: &Destination,
    before: &mut Vec<Connection>,
    open: &'a mut Vec<Connection>,
) -> Result<&'a Connection, Error> {
    let server = nodes.server_of(destination)?;
    let is_usable = |connection: &Connection| connection.server == server && !connection.has_ended();
    open.retain(|connection| !connection.has_ended());
    if let Some(position) = open.iter().position(is_usable) {
        return Ok(&open[position]);
    }
    let connection = match before.iter().position(is_usable) {
        Some(position) => before.swap_remove(position),
        None => nodes.redis.with_timeout(nodes.redis.timeout * 2).open(&server).await?,
    };
    Ok(open.push_mut(connection))
}
