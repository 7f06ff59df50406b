//! A private Redis, or a Valkey in its place.

use std::{
    env, fs,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use nix::sys::signal::Signal;

use crate::{
    StackError, free_port,
    process::{self, Lifetime, ServerCommand, ServerFolder, ServerProcess},
};

const PORT_TRIES: usize = 5;

/// How to run it.
#[derive(Clone, Debug, Default)]
pub struct RedisOptions {
    /// A certain port, or any free one.
    pub port: Option<u16>,
    /// More arguments for `redis-server`, like `--appendonly yes`.
    pub arguments: Vec<String>,
    /// The text of a configuration file, where the server needs one to write to.
    pub config: Option<String>,
    /// TLS, and no plain text.
    pub tls: Option<RedisTls>,
}

/// Files in PEM for a Redis with TLS.
#[derive(Clone, Debug)]
pub struct RedisTls {
    /// The authority of its certificate, and of those of its clients.
    pub ca: PathBuf,
    /// Its certificate, which its own command line shows it, too.
    pub certificate: PathBuf,
    /// The key of that.
    pub key: PathBuf,
    /// Whether it asks clients for one.
    pub asks_clients: bool,
}

/// The server program: `redis-server`, or what `REDIS_SERVER` names, like `valkey-server`.
fn server_program() -> String {
    env::var("REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned())
}

/// The command line that comes with the server program.
fn cli_program() -> String {
    let server = server_program();
    server.strip_suffix("-server").map_or_else(|| "redis-cli".to_owned(), |name| format!("{name}-cli"))
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
    pub fn start(options: RedisOptions, lifetime: Lifetime) -> Result<Self, StackError> {
        let program = server_program();
        if !Path::new(&program).is_file() && !process::is_on_path(&program) {
            return Err(StackError::Missing("redis-server"));
        }
        let folder = ServerFolder::make("likestream-redis-", None)?;
        let mut tries = 0;
        loop {
            tries += 1;
            let port = options.port.map_or_else(free_port, Ok)?;
            match launch(&options, port, folder.path(), lifetime) {
                Ok(process) => return Ok(Self { process, options, port, folder }),
                // Somebody else may have taken the port meanwhile.
                Err(StackError::Ended { .. }) if options.port.is_none() && tries < PORT_TRIES => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Where it is.
    pub fn url(&self) -> String {
        let scheme = if self.options.tls.is_some() { "rediss" } else { "redis" };
        format!("{scheme}://127.0.0.1:{}", self.port)
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
    pub fn start_again(&mut self) -> Result<(), StackError> {
        self.process = launch(&self.options, self.port, self.folder.path(), Lifetime::Leashed)?;
        Ok(())
    }

    /// Lets a detached one live on after this value.
    pub fn detach(mut self) {
        self.process.release();
        self.folder.release();
    }

    /// Sends it a command by its own command line, and returns what that prints.
    ///
    /// # Errors
    /// When there is no answer, or an error.
    pub fn command(&self, words: &[&str]) -> Result<String, StackError> {
        cli(&self.options, self.port, words)
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
) -> Result<ServerProcess, StackError> {
    let log = folder.join("redis.log");
    let mut arguments = vec![server_program()];
    if let Some(config) = &options.config {
        let file = folder.join("redis.conf");
        // One that was started before has written to it.
        if !file.exists() {
            fs::write(&file, config).map_err(StackError::io("the configuration can't be written"))?;
        }
        arguments.push("redis.conf".to_owned());
    }
    let port_text = port.to_string();
    let ports: &[&str] = match options.tls {
        Some(_) => &["--port", "0", "--tls-port", &port_text],
        None => &["--port", &port_text],
    };
    let common = ["--bind", "127.0.0.1", "--dir", ".", "--save", "", "--maxmemory-policy", "noeviction"];
    // There is one replica at most: nobody else comes whom it could wait for.
    let more = ["--repl-diskless-sync-delay", "0", "--logfile", "redis.log"];
    let common = ports.iter().chain(&common).chain(&more);
    arguments.extend(common.map(|&word| word.to_owned()));
    if let Some(RedisTls { ca, certificate, key, asks_clients }) = &options.tls {
        for (option, file) in
            [("--tls-ca-cert-file", ca), ("--tls-cert-file", certificate), ("--tls-key-file", key)]
        {
            arguments.extend([option.to_owned(), file.display().to_string()]);
        }
        let asks = if *asks_clients { "yes" } else { "no" };
        arguments.extend(["--tls-auth-clients", asks].map(str::to_owned));
    }
    arguments.extend(options.arguments.iter().cloned());
    let command = ServerCommand { arguments, folder, log: &log, stop_signal: Signal::SIGTERM, user: None };
    let answers =
        || if options.tls.is_some() { cli(options, port, &["PING"]).is_ok() } else { answers(port) };
    ServerProcess::start_answering(&command, lifetime, answers)
}

/// Sends a command by the command line of Redis.
fn cli(options: &RedisOptions, port: u16, words: &[&str]) -> Result<String, StackError> {
    let program = cli_program();
    let mut command = Command::new(&program);
    command.args(["-e", "-p", &port.to_string()]);
    if let Some(RedisTls { ca, certificate, key, .. }) = &options.tls {
        command.arg("--tls").arg("--cacert").arg(ca).arg("--cert").arg(certificate).arg("--key").arg(key);
    }
    let output = command.args(words).output();
    let output = output.map_err(|source| StackError::Spawn { program: program.clone(), source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let last_words = [output.stdout, output.stderr].concat();
    let last_words = String::from_utf8_lossy(&last_words).trim().to_owned();
    Err(StackError::Ended { program: format!("{program} {}", words.join(" ")), last_words })
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
