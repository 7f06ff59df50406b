//! Ports for servers.

use std::{
    collections::BTreeSet,
    fs, io,
    net::TcpListener,
    sync::{Mutex, PoisonError},
};

use rand::RngExt;

use crate::StackError;

/// Those below are often other servers'.
const FIRST: u16 = 10_000;

/// What Linux begins its own ports with, if it doesn't say.
const FIRST_OF_SYSTEM: u16 = 32_768;

const TRIES: usize = 1_000;

/// A port on loopback that nobody listens on just now, another one with each call. It is below those that the system
/// takes for the near ends of connections: such a one could be gone before the server has it, and whoever asks there for
/// the server too early can come to be connected to himself.
///
/// Source of the last: simultaneous open, RFC 9293, 3.5; `ip_local_port_range`, `ip(7)`.
pub fn free_port() -> Result<u16, StackError> {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let end = first_of_system();
    let mut failed = io::Error::other("all were given away");
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

/// Where the ports begin that the system gives away by itself.
fn first_of_system() -> u16 {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let first = range.split_whitespace().next().and_then(|first| first.parse().ok());
    // Where it takes nearly all there is no better choice than to share.
    first.filter(|first| *first > 2 * FIRST).unwrap_or(FIRST_OF_SYSTEM)
}
