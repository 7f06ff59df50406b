//! A private Redis.

use std::{
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    time::Duration,
};

use nix::sys::signal::Signal;

use crate::{
    LocalError, free_port,
    process::{self, Lifetime, ServerCommand, ServerFolder, ServerProcess, wait_until},
};

const START_SECONDS: u64 = 20;
const PORT_TRIES: usize = 5;

/// How to run it.
#[derive(Clone, Debug, Default)]
pub struct RedisOptions {
    /// A certain port, or any free one.
    pub port: Option<u16>,
    /// More arguments for `redis-server`, like `--appendonly yes`.
    pub arguments: Vec<String>,
}

/// A running Redis on loopback, without persistence unless asked for, which never drops keys to make room. Its folder
/// goes with it.
#[derive(Debug)]
pub struct RedisServer {
    process: ServerProcess,
    options: RedisOptions,
    port: u16,
    folder: ServerFolder,
}

impl RedisServer {
    /// Starts it and waits until it answers.
    pub fn start(options: RedisOptions, lifetime: Lifetime) -> Result<Self, LocalError> {
        if !process::is_on_path("redis-server") {
            return Err(LocalError::Missing("redis-server"));
        }
        let folder = ServerFolder::make("likestream-redis-", None)?;
        let mut tries = 0;
        loop {
            tries += 1;
            let port = options.port.map_or_else(free_port, Ok)?;
            match launch(&options, port, folder.path(), lifetime) {
                Ok(process) => return Ok(Self { process, options, port, folder }),
                // Somebody else may have taken the port meanwhile.
                Err(LocalError::Ended { .. }) if options.port.is_none() && tries < PORT_TRIES => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Where it listens, on loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its process.
    pub fn pid(&self) -> i32 {
        self.process.pid().as_raw()
    }

    /// Its data and its log.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its last words, if it has ended.
    pub fn last_words_if_ended(&self) -> Option<String> {
        (!self.process.is_running()).then(|| process::last_words(&self.folder.path().join("redis.log")))
    }

    /// Ends it in good order. Its data stay.
    pub fn stop(&mut self) {
        self.process.stop();
    }

    /// Kills it. Its data stay.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again, after [`RedisServer::stop`] or [`RedisServer::kill`], where it was.
    pub fn start_again(&mut self) -> Result<(), LocalError> {
        self.process = launch(&self.options, self.port, self.folder.path(), Lifetime::Leashed)?;
        Ok(())
    }

    /// Lets a detached one live on after this value.
    pub fn detach(mut self) {
        self.process.release();
        self.folder.release();
    }

    /// Freezes it: connections stay, nothing is answered.
    pub fn pause(&self) {
        self.process.signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.process.signal(Signal::SIGCONT);
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // A frozen one could not end.
        self.resume();
    }
}

fn launch(
    options: &RedisOptions,
    port: u16,
    folder: &Path,
    lifetime: Lifetime,
) -> Result<ServerProcess, LocalError> {
    let log = folder.join("redis.log");
    let mut arguments: Vec<String> = ["redis-server", "--bind", "127.0.0.1", "--port", &port.to_string()]
        .into_iter()
        .chain(["--dir", ".", "--save", "", "--maxmemory-policy", "noeviction", "--logfile", "redis.log"])
        .map(str::to_owned)
        .collect();
    arguments.extend(options.arguments.iter().cloned());
    let command = ServerCommand { arguments, folder, log: &log, stop_signal: Signal::SIGTERM, user: None };
    let mut server = ServerProcess::start(&command, lifetime)?;
    let limit = Duration::from_secs(START_SECONDS);
    let up = wait_until(limit, || !server.is_running() || answers(port));
    let program = "redis-server".to_owned();
    if !server.is_running() {
        server.kill();
        return Err(LocalError::Ended { program, last_words: process::last_words(&log) });
    }
    if up {
        Ok(server)
    } else {
        Err(LocalError::Timeout { program, what: "answer", seconds: START_SECONDS, log })
    }
}

fn answers(port: u16) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut connection = TcpStream::connect(("127.0.0.1", port))?;
        connection.set_read_timeout(Some(Duration::from_secs(1)))?;
        connection.write_all(b"PING\r\n")?;
        let mut pong = [0; 5];
        connection.read_exact(&mut pong)?;
        // One that wants a password first is there all the same.
        Ok(&pong == b"+PONG" || &pong == b"-NOAU")
    };
    ask().unwrap_or(false)
}
