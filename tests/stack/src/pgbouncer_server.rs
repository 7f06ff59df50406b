//! Private PgBouncer server.

use std::{fs, net::TcpStream, path::PathBuf};

use nix::{
    sys::signal::Signal,
    unistd::{User, chown},
};

use crate::{
    error::StackError,
    free_port::start_on_port,
    process::{self, Lifetime, ServerCommand, ServerFolder, ServerProcess},
};

const CONFIG: &str = "pgbouncer.ini";

/// Path on Debian, in a folder that is not on every PATH.
const DEBIAN_PROGRAM: &str = "/usr/sbin/pgbouncer";

/// Unit to which a server connection is assigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolMode {
    /// A client, until it disconnects.
    Session,
    Transaction,
}

#[derive(Clone, Copy, Debug)]
pub struct PgbouncerOptions {
    /// Loopback port of the Postgres server behind the pooler.
    pub postgres_port: u16,
    pub pool_mode: PoolMode,
    /// Pool size of each database.
    pub server_connections: usize,
}

/// Running PgBouncer on loopback without authentication. Dropped, it stops and its folder is removed. Started by root,
/// it runs as another user, because PgBouncer refuses to run as root.
#[derive(Debug)]
pub struct PgbouncerServer {
    process: ServerProcess,
    user: Option<User>,
    port: u16,
    folder: ServerFolder,
}

impl PgbouncerServer {
    /// Starts the server and waits until it accepts connections.
    pub fn start(options: PgbouncerOptions) -> Result<Self, StackError> {
        let user = process::unprivileged_user()?;
        let folder = ServerFolder::make("likestream-pgbouncer-", user.as_ref())?;
        let (process, port) = start_on_port(None, |port| launch(options, port, &folder, user.as_ref()))?;
        Ok(Self { process, user, port, folder })
    }

    /// Connection string of a database behind the pooler, for the user `postgres`.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Kills the server, which closes the connections of clients and servers.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts the server on the same port after [`PgbouncerServer::kill`].
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
    fs::write(&path, config).map_err(StackError::io("cannot write the configuration of PgBouncer"))?;
    let Some(user) = user else { return Ok(()) };
    chown(&path, Some(user.uid), Some(user.gid)).map_err(|errno| {
        StackError::io("cannot change the owner of the PgBouncer configuration")(errno.into())
    })
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
    ServerProcess::start_answering(&command, Lifetime::Attached, || {
        TcpStream::connect(("127.0.0.1", port)).is_ok()
    })
}

fn program() -> Result<PathBuf, StackError> {
    let debian_program = PathBuf::from(DEBIAN_PROGRAM);
    if debian_program.is_file() {
        Ok(debian_program)
    } else if process::is_on_path("pgbouncer") {
        Ok(PathBuf::from("pgbouncer"))
    } else {
        Err(StackError::Missing("pgbouncer"))
    }
}
