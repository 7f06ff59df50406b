//! Ports on loopback for servers.

use std::{
    collections::BTreeSet,
    fs, io,
    net::TcpListener,
    sync::{Mutex, PoisonError},
};

use rand::RngExt;

use crate::error::StackError;

/// Lower ports are often used by other servers.
const FIRST: u16 = 10_000;

/// First ephemeral port of Linux by default.
const FIRST_EPHEMERAL: u16 = 32_768;

const TRIES: usize = 1_000;

/// Attempts to start a server, each on another port, in case another process takes the port first.
const START_TRIES: usize = 5;

/// Returns a loopback port without a listener, a different one on each call. The port is below the ephemeral range: the
/// system could assign an ephemeral port to a connection before the server binds it, and a client that connects too
/// early could be connected to itself.
///
/// Source of the last reason: simultaneous open, RFC 9293, 3.5; `ip_local_port_range`, `ip(7)`.
pub fn free_port() -> Result<u16, StackError> {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let end = first_ephemeral();
    let mut failed = io::Error::other("all of them have been used");
    for _ in 0..TRIES {
        let port = rand::rng().random_range(FIRST..end);
        if !given.insert(port) {
            continue;
        }
        match TcpListener::bind(("127.0.0.1", port)) {
            Ok(_) => return Ok(port),
            Err(error) => failed = error,
        }
    }
    Err(StackError::io(format!("no free port on loopback between {FIRST} and {end}"))(failed))
}

/// Starts a server on the requested port, or on a free port. Retries if another process takes the port first.
pub(crate) fn start_on_port<T>(
    requested: Option<u16>,
    start: impl Fn(u16) -> Result<T, StackError>,
) -> Result<(T, u16), StackError> {
    if let Some(port) = requested {
        return Ok((start(port)?, port));
    }
    let mut tries = 1;
    loop {
        let port = free_port()?;
        match start(port) {
            Ok(server) => return Ok((server, port)),
            Err(StackError::Ended { .. }) if tries < START_TRIES => tries += 1,
            Err(error) => return Err(error),
        }
    }
}

fn first_ephemeral() -> u16 {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let first = range.split_whitespace().next().and_then(|first| first.parse().ok());
    // If the range starts very low, an overlap is unavoidable.
    first.filter(|first| *first > 2 * FIRST).unwrap_or(FIRST_EPHEMERAL)
}
