//! Server processes that end with the process that started them, unless they are detached.

use std::{
    env,
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        signal::{Signal, kill},
    },
    unistd::{Pid, User, chown, geteuid},
};

use crate::error::StackError;

/// Supervisor shell of an attached server. It starts the server and reads a pipe from this process. The pipe closes
/// when this process ends for any reason. The shell then stops the server and removes its folder, unless it has read
/// `keep`.
///
/// Arguments: the stop signal, the folder, the server and its arguments.
const SUPERVISOR: &str = r#"
# When the parent dies while the server is frozen, the kernel sends SIGHUP to the orphaned process group.
trap : HUP
signal=$1 folder=$2; shift 2
"$@" </dev/null & server=$!
echo "$server"
read -r word || word=remove
# A frozen process does not handle the stop signal.
kill -s CONT "$server" $(cat "/proc/$server/task/$server/children" 2>/dev/null) 2>/dev/null
kill -s "$signal" "$server" 2>/dev/null
wait "$server"
[ "$word" = keep ] || rm -rf "$folder"
"#;

/// Watchdog shell of a child process. It reads a pipe from this process and kills the child when the pipe closes,
/// unless it has read `done`.
///
/// Arguments: the process id.
const WATCHDOG: &str = r#"read -r word; [ "$word" = done ] || kill -s KILL "$1" 2>/dev/null"#;

const POLL: Duration = Duration::from_millis(10);

/// Time limit for a server to respond after its start.
const START_SECONDS: u64 = 60;

/// Lifetime of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// Ends with this process at the latest.
    Attached,
    /// Runs until it is stopped.
    Detached,
}

/// Command line and environment of a server.
pub(crate) struct ServerCommand<'a> {
    pub(crate) arguments: Vec<String>,
    pub(crate) folder: &'a Path,
    pub(crate) log: &'a Path,
    pub(crate) stop_signal: Signal,
    pub(crate) user: Option<&'a User>,
}

/// Running server. Dropped, it is stopped, unless it was released.
#[derive(Debug)]
pub(crate) struct ServerProcess {
    child: Child,
    supervisor: Option<ChildStdin>,
    pid: Pid,
    stop_signal: Signal,
    /// Whether the server needs no stop on drop, because it has ended or was released.
    released: bool,
}

impl ServerProcess {
    pub(crate) fn start(command: &ServerCommand<'_>, lifetime: Lifetime) -> Result<Self, StackError> {
        let log = append_to(command.log)?;
        let program = command.arguments.first().cloned().unwrap_or_default();
        let mut process = match lifetime {
            Lifetime::Attached => {
                let mut shell = Command::new("sh");
                let stop_signal = command.stop_signal.as_str().trim_start_matches("SIG");
                shell.args(["-c", SUPERVISOR, "supervisor", stop_signal]);
                shell.arg(command.folder).args(&command.arguments);
                shell.stdin(Stdio::piped()).stdout(Stdio::piped());
                shell
            }
            Lifetime::Detached => {
                let mut server = Command::new(&program);
                server.args(&command.arguments[1..]).stdin(Stdio::null());
                server.stdout(
                    log.try_clone().map_err(StackError::io("cannot duplicate the handle of the log"))?,
                );
                server
            }
        };
        process.stderr(log).current_dir(command.folder).process_group(0);
        if let Some(user) = command.user {
            process.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        let mut child =
            process.spawn().map_err(|source| StackError::Spawn { program: program.clone(), source })?;
        let supervisor = child.stdin.take();
        let pid = match child.stdout.take() {
            None => child.id().cast_signed(),
            Some(stdout) => {
                let mut line = String::new();
                let read = BufReader::new(stdout).read_line(&mut line);
                read.map_err(StackError::io("the supervisor shell did not report a process id"))?;
                line.trim().parse().map_err(|_| StackError::Missing("sh"))?
            }
        };
        let pid = Pid::from_raw(pid);
        Ok(Self { child, supervisor, pid, stop_signal: command.stop_signal, released: false })
    }

    /// Starts a server and waits until it responds.
    pub(crate) fn start_answering(
        command: &ServerCommand<'_>,
        lifetime: Lifetime,
        answers: impl Fn() -> bool,
    ) -> Result<Self, StackError> {
        let mut server = Self::start(command, lifetime)?;
        let up = wait_until(Duration::from_secs(START_SECONDS), || !server.is_running() || answers());
        let program = command.arguments.first().map(Path::new).and_then(Path::file_name);
        let program = program.unwrap_or_default().to_string_lossy().into_owned();
        let log = command.log.to_owned();
        if !server.is_running() {
            server.kill();
            return Err(StackError::Ended { program, last_output: last_line(&log) });
        }
        if up {
            Ok(server)
        } else {
            Err(StackError::Timeout { program, action: "respond", seconds: START_SECONDS, log })
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    pub(crate) fn is_running(&self) -> bool {
        is_running(self.pid)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // The process may have ended.
        let _ = kill(self.pid, signal);
    }

    /// Sends the stop signal and waits for the end.
    pub(crate) fn stop(&mut self) {
        self.end(self.stop_signal);
    }

    /// Sends SIGKILL and waits for the end.
    pub(crate) fn kill(&mut self) {
        self.end(Signal::SIGKILL);
    }

    /// Leaves a detached server running when this value is dropped.
    pub(crate) fn release(&mut self) {
        self.released = true;
    }

    fn end(&mut self, signal: Signal) {
        if self.released {
            return;
        }
        self.signal(signal);
        if let Some(mut supervisor) = self.supervisor.take() {
            // While this process runs, the owner of the folder removes it. A supervisor that has ended has removed it.
            let _ = supervisor.write_all(b"keep\n");
        }
        let _ = self.child.wait();
        self.released = true;
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Kills a child of this process if this process ends without dropping the value.
#[derive(Debug)]
pub(crate) struct Watchdog {
    shell: Child,
    pipe: Option<ChildStdin>,
}

impl Watchdog {
    pub(crate) fn start(pid: Pid) -> Result<Self, StackError> {
        let mut shell = Command::new("sh")
            .args(["-c", WATCHDOG, "watchdog", &pid.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|source| StackError::Spawn { program: "sh".to_owned(), source })?;
        let pipe = shell.stdin.take();
        Ok(Self { shell, pipe })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        if let Some(mut pipe) = self.pipe.take() {
            // The shell may have ended.
            let _ = pipe.write_all(b"done\n");
        }
        let _ = self.shell.wait();
    }
}

/// Private folder for the data of a server. Dropped, it is removed, unless it was released.
#[derive(Debug)]
pub(crate) struct ServerFolder {
    path: PathBuf,
    released: bool,
}

impl ServerFolder {
    /// Creates a folder that belongs to the user of the server.
    pub(crate) fn make(prefix: &str, user: Option<&User>) -> Result<Self, StackError> {
        let made = tempfile::Builder::new().prefix(prefix).tempdir();
        let path = made.map_err(StackError::io("cannot create a temporary folder"))?.keep();
        let folder = Self { path, released: false };
        if let Some(user) = user {
            chown(&folder.path, Some(user.uid), Some(user.gid)).map_err(|errno| {
                StackError::io("cannot change the owner of the temporary folder")(errno.into())
            })?;
        }
        Ok(folder)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps the folder when this value is dropped.
    pub(crate) fn release(&mut self) {
        self.released = true;
    }
}

impl Drop for ServerFolder {
    fn drop(&mut self) {
        if !self.released {
            // It may have been removed.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Returns whether a program is on the PATH.
pub(crate) fn is_on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// Returns whether a process exists and is not a zombie.
pub fn is_running(pid: Pid) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| !rest.starts_with(['Z', 'X'])))
}

/// Start time of a process in clock ticks since boot, which together with its id identifies it uniquely.
///
/// Source: `proc_pid_stat(5)`, field 22.
pub fn started_at_ticks(pid: Pid) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(") ").next()?.split(' ').nth(19)?.parse().ok()
}

/// Ends a process that is not a child of this process: sends the signal and, after the time limit, SIGKILL. Returns
/// whether the process has ended.
pub fn end_by_pid(pid: Pid, signal: Signal, limit: Duration) -> bool {
    for signal in [signal, Signal::SIGKILL] {
        if kill(pid, signal) == Err(Errno::ESRCH) {
            return true;
        }
        if wait_until(limit, || !is_running(pid)) {
            return true;
        }
    }
    false
}

/// Raises the soft limit of open files to the hard limit, for this process and its future children.
pub fn raise_open_files() -> Result<(), StackError> {
    let (_, hard_limit) = getrlimit(Resource::RLIMIT_NOFILE)
        .map_err(|errno| StackError::io("cannot read the limit of open files")(errno.into()))?;
    setrlimit(Resource::RLIMIT_NOFILE, hard_limit, hard_limit)
        .map_err(|errno| StackError::io("cannot raise the limit of open files")(errno.into()))
}

/// Polls a condition until it holds or the time limit has passed. Returns whether it holds.
pub fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(POLL);
    }
}

/// User for a server that refuses to run as root, if this process runs as root.
pub(crate) fn unprivileged_user() -> Result<Option<User>, StackError> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let user = ["postgres", "nobody"].into_iter().find_map(|name| User::from_name(name).ok().flatten());
    user.map(Some).ok_or(StackError::Missing("user postgres or nobody"))
}

/// Last non-empty line of a log.
pub(crate) fn last_line(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no output").to_owned()
}

pub(crate) fn append_to(log: &Path) -> Result<File, StackError> {
    let file = OpenOptions::new().create(true).append(true).open(log);
    file.map_err(StackError::io(format!("cannot write {}", log.display())))
}
