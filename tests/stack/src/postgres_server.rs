//! Private Postgres server.

use std::{
    env,
    fs::{self, Permissions},
    io::{Read, Write},
    net::TcpStream,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, User, chown},
};
use tokio_postgres::{Client, NoTls};

use crate::{
    error::StackError,
    free_port::start_on_port,
    process::{self, Lifetime, ServerCommand, ServerFolder, ServerProcess, wait_until},
};

/// Folders of Postgres installations outside the PATH, on Debian and Red Hat.
const INSTALLATIONS: [&str; 2] = ["/usr/lib/postgresql", "/usr"];

#[derive(Clone, Debug, Default)]
pub struct PostgresOptions {
    /// Fixed port [default: any free port].
    pub port: Option<u16>,
    /// Settings that override the defaults, like `("max_connections", "20")`.
    pub settings: Vec<(String, String)>,
    /// Names and texts of files for the data folder, like a `pg_hba.conf` that requires passwords.
    pub files: Vec<(String, String)>,
}

/// Running Postgres on loopback with commit timestamps and trust authentication. Dropped, it stops and its folder is
/// removed. Started by root, it runs as another user, because Postgres refuses to run as root.
#[derive(Debug)]
pub struct PostgresServer {
    process: ServerProcess,
    options: PostgresOptions,
    programs: PathBuf,
    user: Option<User>,
    port: u16,
    folder: ServerFolder,
}

impl PostgresServer {
    /// Creates a database cluster, starts the server and waits until it accepts connections.
    pub fn start(options: PostgresOptions, lifetime: Lifetime) -> Result<Self, StackError> {
        let programs = programs()?;
        let user = process::unprivileged_user()?;
        let folder = ServerFolder::make("likestream-postgres-", user.as_ref())?;
        init(&programs, folder.path(), user.as_ref())?;
        for (name, text) in &options.files {
            write_private_file(&folder.path().join("data").join(name), text, user.as_ref())?;
        }
        let launch = |port| launch(&options, port, &programs, folder.path(), user.as_ref(), lifetime);
        let (process, port) = start_on_port(options.port, launch)?;
        Ok(Self { process, options, programs, user, port, folder })
    }

    /// Starts a standby that streams from a primary. It uses the port of the primary's former standby, if there is one.
    pub fn standby_of(primary: &Self, port: Option<u16>) -> Result<Self, StackError> {
        let (programs, user) = (primary.programs.clone(), primary.user.clone());
        let folder = ServerFolder::make("likestream-postgres-", user.as_ref())?;
        let source = format!("--port={}", primary.port);
        let arguments = ["--pgdata=data", "--host=127.0.0.1", &source, "--username=postgres", "--no-sync"];
        let arguments = [&arguments[..], &["--checkpoint=fast", "--write-recovery-conf"]].concat();
        run(&programs, "pg_basebackup", &arguments, folder.path(), user.as_ref())?;
        let options = PostgresOptions { port, ..primary.options.clone() };
        let launch =
            |port| launch(&options, port, &programs, folder.path(), user.as_ref(), Lifetime::Attached);
        let (process, port) = start_on_port(options.port, launch)?;
        Ok(Self { process, options, programs, user, port, folder })
    }

    /// Promotes a standby to a primary and waits until it is one.
    pub fn promote(&self) -> Result<(), StackError> {
        let arguments = ["promote", "--wait", "--pgdata=data"];
        run(&self.programs, "pg_ctl", &arguments, self.folder.path(), self.user.as_ref())
    }

    /// Connection string of a database. It uses the Unix socket if the options contain a `pg_hba.conf`.
    pub fn url(&self, database: &str) -> String {
        if self.options.files.iter().any(|(name, _)| name == "pg_hba.conf") {
            let folder = self.folder.path().display().to_string().replace('/', "%2F");
            return format!("postgres://postgres@{folder}:{}/{database}", self.port);
        }
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Process id of the postmaster.
    pub fn pid(&self) -> i32 {
        self.process.pid().as_raw()
    }

    /// Folder of data and log.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Last line of the log, if the server has exited.
    pub fn last_output_if_ended(&self) -> Option<String> {
        (!self.process.is_running()).then(|| process::last_line(&self.folder.path().join("postgres.log")))
    }

    /// Performs a fast shutdown, which closes all connections. The data are kept.
    pub fn stop(&mut self) {
        self.process.stop();
    }

    /// Kills all processes at once, like a power failure. The data are kept.
    pub fn kill(&mut self) {
        // A frozen postmaster forks no children.
        self.pause();
        let mut processes = self.children();
        processes.push(self.process.pid());
        for pid in &processes {
            let _ = kill(*pid, Signal::SIGKILL);
        }
        self.process.kill();
        wait_until(Duration::from_secs(10), || !processes.iter().any(|pid| process::is_running(*pid)));
    }

    /// Starts the server on the same port after [`PostgresServer::stop`] or [`PostgresServer::kill`].
    pub fn start_again(&mut self) -> Result<(), StackError> {
        let user = self.user.as_ref();
        let folder = self.folder.path();
        self.process = launch(&self.options, self.port, &self.programs, folder, user, Lifetime::Attached)?;
        Ok(())
    }

    /// Leaves a detached server running when this value is dropped.
    pub fn detach(mut self) {
        self.process.release();
        self.folder.release();
    }

    /// Freezes all processes (SIGSTOP): connections stay open and get no response.
    pub fn pause(&self) {
        self.signal_all(Signal::SIGSTOP);
    }

    /// Resumes a frozen server.
    pub fn resume(&self) {
        self.signal_all(Signal::SIGCONT);
    }

    /// Signals the postmaster first, because a frozen postmaster forks no children.
    fn signal_all(&self, signal: Signal) {
        self.process.signal(signal);
        for pid in self.children() {
            let _ = kill(pid, signal);
        }
    }

    /// Children of the postmaster. Each runs in a separate session.
    fn children(&self) -> Vec<Pid> {
        let first = self.process.pid();
        let children = fs::read_to_string(format!("/proc/{first}/task/{first}/children")).unwrap_or_default();
        children.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect()
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        // A frozen process does not handle SIGINT.
        self.resume();
    }
}

/// Connects to a database and drives the connection in a separate task.
pub async fn connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

fn launch(
    options: &PostgresOptions,
    port: u16,
    programs: &Path,
    folder: &Path,
    user: Option<&User>,
    lifetime: Lifetime,
) -> Result<ServerProcess, StackError> {
    let log = folder.join("postgres.log");
    let defaults = [
        ("listen_addresses", "127.0.0.1".to_owned()),
        ("port", port.to_string()),
        ("unix_socket_directories", folder.display().to_string()),
        ("track_commit_timestamp", "on".to_owned()),
        ("max_connections", "200".to_owned()),
        ("logging_collector", "off".to_owned()),
    ];
    let defaults = defaults.iter().map(|(name, value)| format!("{name}={value}"));
    let overrides = options.settings.iter().map(|(name, value)| format!("{name}={value}"));
    let mut arguments =
        vec![programs.join("postgres").display().to_string(), "-D".to_owned(), "data".to_owned()];
    arguments.extend(defaults.chain(overrides).flat_map(|setting| ["-c".to_owned(), setting]));
    let command = ServerCommand { arguments, folder, log: &log, stop_signal: Signal::SIGINT, user };
    ServerProcess::start_answering(&command, lifetime, || accepts_connections(port))
}

fn init(programs: &Path, folder: &Path, user: Option<&User>) -> Result<(), StackError> {
    let arguments = ["--pgdata=data", "--auth=trust", "--username=postgres", "--no-sync"];
    let arguments = [&arguments[..], &["--encoding=UTF8", "--locale=C"]].concat();
    run(programs, "initdb", &arguments, folder, user)
}

/// Runs a program of Postgres in a folder as another user.
fn run(
    programs: &Path,
    name: &str,
    arguments: &[&str],
    folder: &Path,
    user: Option<&User>,
) -> Result<(), StackError> {
    let mut command = Command::new(programs.join(name));
    command.args(arguments).current_dir(folder).stdin(Stdio::null());
    if let Some(user) = user {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    let output = command.output().map_err(|source| StackError::Spawn { program: name.to_owned(), source })?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let is_error = |line: &&str| ["error:", "FATAL:", "PANIC:"].iter().any(|word| line.contains(word));
    let last = || stderr.lines().rfind(|line| !line.is_empty());
    let last_output = stderr.lines().find(is_error).or_else(last).unwrap_or_default().to_owned();
    Err(StackError::Ended { program: name.to_owned(), last_output })
}

/// Writes a file that only the server's user can read, as Postgres requires of private keys.
fn write_private_file(path: &Path, text: &str, user: Option<&User>) -> Result<(), StackError> {
    let written = fs::write(path, text).and_then(|()| {
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        user.map_or(Ok(()), |user| Ok(chown(path, Some(user.uid), Some(user.gid))?))
    });
    written.map_err(StackError::io("cannot write a file for Postgres"))
}

/// Folder of `postgres` and `initdb`: the one named by `POSTGRES_BIN` [default: that of the newest version].
fn programs() -> Result<PathBuf, StackError> {
    if let Some(folder) = env::var_os("POSTGRES_BIN") {
        return Ok(folder.into());
    }
    let has_server = |folder: &PathBuf| folder.join("initdb").is_file() && folder.join("postgres").is_file();
    let version = |folder: &PathBuf| -> u32 {
        let digits = folder.iter().rev().nth(1).map(|name| name.to_string_lossy().replace("pgsql-", ""));
        digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
    };
    let folders = INSTALLATIONS.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
    let newest = folders.map(|entry| entry.path().join("bin")).filter(has_server).max_by_key(version);
    let on_path = || env::split_paths(&env::var_os("PATH").unwrap_or_default()).find(has_server);
    newest.or_else(on_path).ok_or(StackError::Missing("Postgres (initdb and postgres)"))
}

/// Returns whether the server accepts connections. It then answers a startup packet of the superuser with
/// "authentication ok" or with an authorization error, and with neither of them during startup and shutdown.
///
/// Source: Postgres manual, "Message Formats".
fn accepts_connections(port: u16) -> bool {
    let parameters = b"user\0postgres\0database\0postgres\0\0";
    let connect = || -> std::io::Result<bool> {
        let mut connection = TcpStream::connect(("127.0.0.1", port))?;
        connection.set_read_timeout(Some(Duration::from_secs(1)))?;
        let length = u32::try_from(8 + parameters.len()).unwrap_or_default();
        let startup = [&length.to_be_bytes()[..], &196_608_u32.to_be_bytes(), parameters].concat();
        connection.write_all(&startup)?;
        let mut answer = [0; 64];
        let length = connection.read(&mut answer)?;
        let answer = &answer[..length];
        // Fields of an error end with a zero byte; the SQLSTATE follows the letter C.
        Ok(answer.starts_with(b"R") || answer.split(|byte| *byte == 0).any(|field| field == b"C28000"))
    };
    connect().unwrap_or(false)
}
