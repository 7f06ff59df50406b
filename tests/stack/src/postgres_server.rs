//! A private Postgres.

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

use crate::{
    StackError, free_port,
    process::{self, Lifetime, ServerCommand, ServerFolder, ServerProcess, wait_until},
};

const PORT_TRIES: usize = 5;

/// Known homes of Postgres programs that are not on the PATH: Debian's and Red Hat's.
const HOMES: [&str; 2] = ["/usr/lib/postgresql", "/usr"];

/// How to run it.
#[derive(Clone, Debug, Default)]
pub struct PostgresOptions {
    /// A certain port, or any free one.
    pub port: Option<u16>,
    /// Settings over the defaults, like `("max_connections", "20")`.
    pub settings: Vec<(String, String)>,
    /// Files of its data folder, with their text, like a `pg_hba.conf` that doesn't let everybody in.
    pub files: Vec<(String, String)>,
}

/// A running Postgres on loopback, with commit timestamps, open to its superuser `postgres`. Its folder goes with it.
/// Where we are root it runs as another user, because it refuses to be root.
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
    /// Makes a new database cluster, starts it and waits until it takes connections.
    pub fn start(options: PostgresOptions, lifetime: Lifetime) -> Result<Self, StackError> {
        let programs = programs()?;
        let user = process::unprivileged_user()?;
        let folder = ServerFolder::make("likestream-postgres-", user.as_ref())?;
        init(&programs, folder.path(), user.as_ref())?;
        for (name, text) in &options.files {
            own_file(&folder.path().join("data").join(name), text, user.as_ref())?;
        }
        let (process, port) = first_launch(&options, &programs, folder.path(), user.as_ref(), lifetime)?;
        Ok(Self { process, options, programs, user, port, folder })
    }

    /// Where a database of it is: by its socket, if it doesn't let everybody in from the network.
    pub fn url(&self, database: &str) -> String {
        if self.options.files.iter().any(|(name, _)| name == "pg_hba.conf") {
            let folder = self.folder.path().display().to_string().replace('/', "%2F");
            return format!("postgres://postgres@{folder}:{}/{database}", self.port);
        }
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Where it listens, on loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its first process.
    pub fn pid(&self) -> i32 {
        self.process.pid().as_raw()
    }

    /// Its data and its log.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its last words, if it has ended.
    pub fn last_words_if_ended(&self) -> Option<String> {
        (!self.process.is_running()).then(|| process::last_words(&self.folder.path().join("postgres.log")))
    }

    /// Ends it in good order, with its connections. Its data stay.
    pub fn stop(&mut self) {
        self.process.stop();
    }

    /// Kills all of its processes at once, as a power cut would. Its data stay.
    pub fn kill(&mut self) {
        // So that it makes no more children.
        self.pause();
        let mut processes = self.children();
        processes.push(self.process.pid());
        for pid in &processes {
            let _ = kill(*pid, Signal::SIGKILL);
        }
        self.process.kill();
        wait_until(Duration::from_secs(10), || !processes.iter().any(|pid| process::is_running(*pid)));
    }

    /// Starts it again, after [`PostgresServer::stop`] or [`PostgresServer::kill`], where it was.
    pub fn start_again(&mut self) -> Result<(), StackError> {
        let (programs, user) = (&self.programs, self.user.as_ref());
        let folder = self.folder.path();
        self.process = launch(&self.options, self.port, programs, folder, user, Lifetime::Leashed)?;
        Ok(())
    }

    /// Lets a detached one live on after this value.
    pub fn detach(mut self) {
        self.process.release();
        self.folder.release();
    }

    /// Freezes all of its processes: connections stay, nothing is answered.
    pub fn pause(&self) {
        self.signal_all(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal_all(Signal::SIGCONT);
    }

    /// The first process first: a frozen one makes no more children.
    fn signal_all(&self, signal: Signal) {
        self.process.signal(signal);
        for pid in self.children() {
            let _ = kill(pid, signal);
        }
    }

    /// Of the first process; they are in sessions of their own.
    fn children(&self) -> Vec<Pid> {
        let first = self.process.pid();
        let children = fs::read_to_string(format!("/proc/{first}/task/{first}/children")).unwrap_or_default();
        children.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect()
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        // A frozen one could not end.
        self.resume();
    }
}

fn first_launch(
    options: &PostgresOptions,
    programs: &Path,
    folder: &Path,
    user: Option<&User>,
    lifetime: Lifetime,
) -> Result<(ServerProcess, u16), StackError> {
    let mut tries = 0;
    loop {
        tries += 1;
        let port = options.port.map_or_else(free_port, Ok)?;
        match launch(options, port, programs, folder, user, lifetime) {
            Ok(process) => return Ok((process, port)),
            // Somebody else may have taken the port meanwhile.
            Err(StackError::Ended { .. }) if options.port.is_none() && tries < PORT_TRIES => {}
            Err(error) => return Err(error),
        }
    }
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
    let own = [
        ("listen_addresses", "127.0.0.1".to_owned()),
        ("port", port.to_string()),
        ("unix_socket_directories", folder.display().to_string()),
        ("track_commit_timestamp", "on".to_owned()),
        ("max_connections", "200".to_owned()),
        ("logging_collector", "off".to_owned()),
    ];
    let own = own.iter().map(|(name, value)| format!("{name}={value}"));
    let given = options.settings.iter().map(|(name, value)| format!("{name}={value}"));
    let mut arguments =
        vec![programs.join("postgres").display().to_string(), "-D".to_owned(), "data".to_owned()];
    arguments.extend(own.chain(given).flat_map(|setting| ["-c".to_owned(), setting]));
    let command = ServerCommand { arguments, folder, log: &log, stop_signal: Signal::SIGINT, user };
    ServerProcess::start_answering(&command, lifetime, || answers(port))
}

fn init(programs: &Path, folder: &Path, user: Option<&User>) -> Result<(), StackError> {
    let mut command = Command::new(programs.join("initdb"));
    command
        .args(["--pgdata=data", "--auth=trust", "--username=postgres", "--no-sync"])
        .args(["--encoding=UTF8", "--locale=C"])
        .current_dir(folder)
        .stdin(Stdio::null());
    if let Some(user) = user {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    let output =
        command.output().map_err(|source| StackError::Spawn { program: "initdb".to_owned(), source })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let says_why = |line: &&str| ["error:", "FATAL:", "PANIC:"].iter().any(|word| line.contains(word));
    let last = || said.lines().rfind(|line| !line.is_empty());
    let last_words = said.lines().find(says_why).or_else(last).unwrap_or_default().to_owned();
    Err(StackError::Ended { program: "initdb".to_owned(), last_words })
}

/// A file that nobody but Postgres can read, as it wants its keys to be.
fn own_file(path: &Path, text: &str, user: Option<&User>) -> Result<(), StackError> {
    let written = fs::write(path, text).and_then(|()| {
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        user.map_or(Ok(()), |user| Ok(chown(path, Some(user.uid), Some(user.gid))?))
    });
    written.map_err(StackError::io("a file for Postgres can't be written"))
}

/// Where the newest Postgres has its programs.
fn programs() -> Result<PathBuf, StackError> {
    let has_server = |folder: &PathBuf| folder.join("initdb").is_file() && folder.join("postgres").is_file();
    let version = |folder: &PathBuf| -> u32 {
        let digits = folder.iter().rev().nth(1).map(|name| name.to_string_lossy().replace("pgsql-", ""));
        digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
    };
    let homes = HOMES.iter().filter_map(|home| fs::read_dir(home).ok()).flatten().flatten();
    let newest = homes.map(|entry| entry.path().join("bin")).filter(has_server).max_by_key(version);
    let on_path = || env::split_paths(&env::var_os("PATH").unwrap_or_default()).find(has_server);
    newest.or_else(on_path).ok_or(StackError::Missing("Postgres (initdb and postgres)"))
}

/// Whether it takes connections: sends a startup packet for its superuser and looks for the answer "authentication
/// ok", or that it doesn't let this one in: it gives neither while it starts up or shuts down.
///
/// Source: Postgres manual, "Message Formats".
fn answers(port: u16) -> bool {
    let parameters = b"user\0postgres\0database\0postgres\0\0";
    let ask = || -> std::io::Result<bool> {
        let mut connection = TcpStream::connect(("127.0.0.1", port))?;
        connection.set_read_timeout(Some(Duration::from_secs(1)))?;
        let length = u32::try_from(8 + parameters.len()).unwrap_or_default();
        let startup = [&length.to_be_bytes()[..], &196_608_u32.to_be_bytes(), parameters].concat();
        connection.write_all(&startup)?;
        let mut answer = [0; 64];
        let length = connection.read(&mut answer)?;
        let answer = &answer[..length];
        // An error has fields that end with a zero, its SQLSTATE after a C.
        Ok(answer.starts_with(b"R") || answer.split(|byte| *byte == 0).any(|field| field == b"C28000"))
    };
    ask().unwrap_or(false)
}
