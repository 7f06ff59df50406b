//! A private PgBouncer.

use std::{fs, net::TcpStream, path::PathBuf};

use nix::{
    sys::signal::Signal,
    unistd::{User, chown},
};

use crate::{
    StackError, free_port,
    process::{self, Lifetime, ServerCommand, ServerFolder, ServerProcess},
};

const PORT_TRIES: usize = 5;
const CONFIG: &str = "pgbouncer.ini";

/// Where Debian has it, which is not on everybody's PATH.
const DEBIANS: &str = "/usr/sbin/pgbouncer";

/// What it shares its server connections among.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolMode {
    /// Clients: each has one for as long as it is connected.
    Session,
    /// Transactions.
    Transaction,
}

/// How to run it.
#[derive(Clone, Copy, Debug)]
pub struct PgbouncerOptions {
    /// The Postgres behind it, on loopback.
    pub postgres_port: u16,
    /// What they are shared among.
    pub pool_mode: PoolMode,
    /// How many there are for each database.
    pub server_connections: usize,
}

/// A running PgBouncer on loopback, which lets everybody in. Its folder goes with it. Where we are root it runs as
/// another user, because it refuses to be root.
#[derive(Debug)]
pub struct PgbouncerServer {
    process: ServerProcess,
    user: Option<User>,
    port: u16,
    folder: ServerFolder,
}

impl PgbouncerServer {
    /// Starts it and waits until it takes connections.
    pub fn start(options: PgbouncerOptions) -> Result<Self, StackError> {
        let user = process::unprivileged_user()?;
        let folder = ServerFolder::make("likestream-pgbouncer-", user.as_ref())?;
        let mut tries = 0;
        loop {
            tries += 1;
            let port = free_port()?;
            match launch(options, port, &folder, user.as_ref()) {
                Ok(process) => return Ok(Self { process, user, port, folder }),
                // Somebody else may have taken the port meanwhile.
                Err(StackError::Ended { .. }) if tries < PORT_TRIES => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Where a database behind it is, for the user `postgres`.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Kills it, and with it the connections on both of its sides.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again, after [`PgbouncerServer::kill`], where it was.
    pub fn start_again(&mut self, options: PgbouncerOptions) -> Result<(), StackError> {
        self.process = launch(options, self.port, &self.folder, self.user.as_ref())?;
        Ok(())
    }
}

fn configure(
    options: PgbouncerOptions,
    port: u16,
    folder: &ServerFolder,
    user: Option<&User>,
) -> Result<(), StackError> {
    let PgbouncerOptions { postgres_port, pool_mode, server_connections } = options;
    let pool_mode = match pool_mode {
        PoolMode::Session => "session",
        PoolMode::Transaction => "transaction",
    };
    let config = format!(
        "[databases]
* = host=127.0.0.1 port={postgres_port} user=postgres

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {pool_mode}
default_pool_size = {server_connections}
"
    );
    let path = folder.path().join(CONFIG);
    fs::write(&path, config).map_err(StackError::io("PgBouncer's settings can't be written"))?;
    let Some(user) = user else { return Ok(()) };
    chown(&path, Some(user.uid), Some(user.gid))
        .map_err(|errno| StackError::io("PgBouncer's settings can't be given away")(errno.into()))
}

fn launch(
    options: PgbouncerOptions,
    port: u16,
    folder: &ServerFolder,
    user: Option<&User>,
) -> Result<ServerProcess, StackError> {
    configure(options, port, folder, user)?;
    let log = folder.path().join("pgbouncer.log");
    let arguments = vec![program()?.display().to_string(), CONFIG.to_owned()];
    let command =
        ServerCommand { arguments, folder: folder.path(), log: &log, stop_signal: Signal::SIGTERM, user };
    ServerProcess::start_answering(&command, Lifetime::Leashed, || {
        TcpStream::connect(("127.0.0.1", port)).is_ok()
    })
}

fn program() -> Result<PathBuf, StackError> {
    let debians = PathBuf::from(DEBIANS);
    if debians.is_file() {
        Ok(debians)
    } else if process::is_on_path("pgbouncer") {
        Ok(PathBuf::from("pgbouncer"))
    } else {
        Err(StackError::Missing("pgbouncer"))
    }
}
