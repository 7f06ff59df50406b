//! Private Redis or Valkey server.

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
    error::StackError,
    free_port::start_on_port,
    process::{self, Lifetime, ServerCommand, ServerFolder, ServerProcess},
};

#[derive(Clone, Debug, Default)]
pub struct RedisOptions {
    /// Fixed port [default: any free port].
    pub port: Option<u16>,
    /// Additional arguments of `redis-server`, like `--appendonly yes`.
    pub arguments: Vec<String>,
    /// Text of a configuration file, for servers that rewrite it.
    pub config: Option<String>,
    /// TLS instead of plain text.
    pub tls: Option<RedisTls>,
}

/// PEM files of a Redis with TLS.
#[derive(Clone, Debug)]
pub struct RedisTls {
    /// Certificate authority of the server and of its clients.
    pub ca: PathBuf,
    /// Server certificate. `redis-cli` also presents it as the client certificate.
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Whether clients must present a certificate.
    pub require_client_certificates: bool,
}

/// Program named by `REDIS_SERVER`, like `valkey-server` [default: `redis-server`].
fn server_program() -> String {
    env::var("REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned())
}

/// Command-line client that belongs to the server program.
fn cli_program() -> String {
    let server = server_program();
    server.strip_suffix("-server").map_or_else(|| "redis-cli".to_owned(), |name| format!("{name}-cli"))
}

/// Running Redis on loopback with the `noeviction` policy and, by default, without persistence. Dropped, it stops and
/// its folder is removed.
#[derive(Debug)]
pub struct RedisServer {
    process: ServerProcess,
    options: RedisOptions,
    port: u16,
    folder: ServerFolder,
}

impl RedisServer {
    /// Starts the server and waits until it responds.
    pub fn start(options: RedisOptions, lifetime: Lifetime) -> Result<Self, StackError> {
        let program = server_program();
        if !Path::new(&program).is_file() && !process::is_on_path(&program) {
            return Err(StackError::Missing("redis-server"));
        }
        let folder = ServerFolder::make("likestream-redis-", None)?;
        let launch = |port| launch(&options, port, folder.path(), lifetime);
        let (process, port) = start_on_port(options.port, launch)?;
        Ok(Self { process, options, port, folder })
    }

    /// Connection URL.
    pub fn url(&self) -> String {
        let scheme = if self.options.tls.is_some() { "rediss" } else { "redis" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn pid(&self) -> i32 {
        self.process.pid().as_raw()
    }

    /// Folder of data and log.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Last line of the log, if the server has exited.
    pub fn last_output_if_ended(&self) -> Option<String> {
        (!self.process.is_running()).then(|| process::last_line(&self.folder.path().join("redis.log")))
    }

    /// Shuts the server down gracefully. The data are kept.
    pub fn stop(&mut self) {
        self.process.stop();
    }

    /// Kills the server. The data are kept.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts the server on the same port after [`RedisServer::stop`] or [`RedisServer::kill`].
    pub fn start_again(&mut self) -> Result<(), StackError> {
        self.process = launch(&self.options, self.port, self.folder.path(), Lifetime::Attached)?;
        Ok(())
    }

    /// Leaves a detached server running when this value is dropped.
    pub fn detach(mut self) {
        self.process.release();
        self.folder.release();
    }

    /// Sends a command with `redis-cli` and returns its output.
    ///
    /// # Errors
    /// When the server does not respond, or returns an error.
    pub fn command(&self, words: &[&str]) -> Result<String, StackError> {
        cli(&self.options, self.port, words)
    }

    /// Freezes the server (SIGSTOP): connections stay open and get no response.
    pub fn pause(&self) {
        self.process.signal(Signal::SIGSTOP);
    }

    /// Resumes a frozen server.
    pub fn resume(&self) {
        self.process.signal(Signal::SIGCONT);
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // A frozen process does not handle SIGTERM.
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
        // A restarted server has rewritten the file.
        if !file.exists() {
            fs::write(&file, config).map_err(StackError::io("cannot write the configuration of Redis"))?;
        }
        arguments.push("redis.conf".to_owned());
    }
    let port_text = port.to_string();
    let ports: &[&str] = match options.tls {
        Some(_) => &["--port", "0", "--tls-port", &port_text],
        None => &["--port", &port_text],
    };
    let common = ["--bind", "127.0.0.1", "--dir", ".", "--save", "", "--maxmemory-policy", "noeviction"];
    // There is at most one replica, so a transfer need not wait for other replicas.
    let more = ["--repl-diskless-sync-delay", "0", "--logfile", "redis.log"];
    let defaults = ports.iter().chain(&common).chain(&more);
    arguments.extend(defaults.map(|&word| word.to_owned()));
    if let Some(RedisTls { ca, certificate, key, require_client_certificates }) = &options.tls {
        for (option, file) in
            [("--tls-ca-cert-file", ca), ("--tls-cert-file", certificate), ("--tls-key-file", key)]
        {
            arguments.extend([option.to_owned(), file.display().to_string()]);
        }
        let clients = if *require_client_certificates { "yes" } else { "no" };
        arguments.extend(["--tls-auth-clients", clients].map(str::to_owned));
    }
    arguments.extend(options.arguments.iter().cloned());
    let command = ServerCommand { arguments, folder, log: &log, stop_signal: Signal::SIGTERM, user: None };
    let answers =
        || if options.tls.is_some() { cli(options, port, &["PING"]).is_ok() } else { answers(port) };
    ServerProcess::start_answering(&command, lifetime, answers)
}

/// Runs `redis-cli`.
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
    let text = [output.stdout, output.stderr].concat();
    let last_output = String::from_utf8_lossy(&text).trim().to_owned();
    Err(StackError::Ended { program: format!("{program} {}", words.join(" ")), last_output })
}

fn answers(port: u16) -> bool {
    let ping = || -> std::io::Result<bool> {
        let mut connection = TcpStream::connect(("127.0.0.1", port))?;
        connection.set_read_timeout(Some(Duration::from_secs(1)))?;
        connection.write_all(b"PING\r\n")?;
        let mut pong = [0; 5];
        connection.read_exact(&mut pong)?;
        // A server that requires a password responds with an error.
        Ok(&pong == b"+PONG" || &pong == b"-NOAU")
    };
    ping().unwrap_or(false)
}
