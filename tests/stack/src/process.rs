//! Server processes that can't be left behind.

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

use crate::StackError;

/// Runs a server beside a shell that waits on a pipe from us. When the pipe closes, however this process ended, the
/// shell ends the server and removes its folder, unless it was told to keep it.
///
/// Arguments: the signal to end it with, the folder, the server and its arguments.
const LEASH: &str = r#"
# The system hangs up on us when whoever started us dies while the server is frozen: just then we are needed.
trap : HUP
signal=$1 folder=$2; shift 2
"$@" </dev/null & server=$!
echo "$server"
read -r word || word=remove
# One that was frozen could not end.
kill -s CONT "$server" $(cat "/proc/$server/task/$server/children" 2>/dev/null) 2>/dev/null
kill -s "$signal" "$server" 2>/dev/null
wait "$server"
[ "$word" = keep ] || rm -rf "$folder"
"#;

/// Waits on a pipe from us beside a process that is our own child, and kills it when the pipe closes unless it was
/// told that nothing is left to be killed.
///
/// Arguments: the process.
const WATCHDOG: &str = r#"read -r word; [ "$word" = done ] || kill -s KILL "$1" 2>/dev/null"#;

const POLL: Duration = Duration::from_millis(10);

/// How long a server may take until it answers.
const START_SECONDS: u64 = 60;

/// How a server lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// No longer than this process.
    Leashed,
    /// On its own, until somebody ends it.
    Detached,
}

/// What to run, and where.
pub(crate) struct ServerCommand<'a> {
    pub(crate) arguments: Vec<String>,
    pub(crate) folder: &'a Path,
    pub(crate) log: &'a Path,
    pub(crate) stop_signal: Signal,
    pub(crate) user: Option<&'a User>,
}

/// A running server. Dropped, it ends, unless it was let go.
#[derive(Debug)]
pub(crate) struct ServerProcess {
    child: Child,
    leash: Option<ChildStdin>,
    pid: Pid,
    stop_signal: Signal,
    /// Whether nothing is left to be ended: it has ended, or was let go.
    released: bool,
}

impl ServerProcess {
    pub(crate) fn start(command: &ServerCommand<'_>, lifetime: Lifetime) -> Result<Self, StackError> {
        let log = append_to(command.log)?;
        let program = command.arguments.first().cloned().unwrap_or_default();
        let mut process = match lifetime {
            Lifetime::Leashed => {
                let mut shell = Command::new("sh");
                shell.args(["-c", LEASH, "leash", command.stop_signal.as_str().trim_start_matches("SIG")]);
                shell.arg(command.folder).args(&command.arguments);
                shell.stdin(Stdio::piped()).stdout(Stdio::piped());
                shell
            }
            Lifetime::Detached => {
                let mut server = Command::new(&program);
                server.args(&command.arguments[1..]).stdin(Stdio::null());
                server.stdout(log.try_clone().map_err(StackError::io("the log can't be shared"))?);
                server
            }
        };
        process.stderr(log).current_dir(command.folder).process_group(0);
        if let Some(user) = command.user {
            process.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        let mut child =
            process.spawn().map_err(|source| StackError::Spawn { program: program.clone(), source })?;
        let leash = child.stdin.take();
        let pid = match child.stdout.take() {
            None => child.id().cast_signed(),
            Some(stdout) => {
                let mut line = String::new();
                BufReader::new(stdout).read_line(&mut line).map_err(StackError::io("the leash is broken"))?;
                line.trim().parse().map_err(|_| StackError::Missing("sh"))?
            }
        };
        let pid = Pid::from_raw(pid);
        Ok(Self { child, leash, pid, stop_signal: command.stop_signal, released: false })
    }

    /// Starts a server and waits until it answers.
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
            return Err(StackError::Ended { program, last_words: last_words(&log) });
        }
        if up {
            Ok(server)
        } else {
            Err(StackError::Timeout { program, what: "answer", seconds: START_SECONDS, log })
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    pub(crate) fn is_running(&self) -> bool {
        is_running(self.pid)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // One that is gone has nothing to obey.
        let _ = kill(self.pid, signal);
    }

    /// Ends the server in good order.
    pub(crate) fn stop(&mut self) {
        self.end(self.stop_signal);
    }

    /// Kills the server.
    pub(crate) fn kill(&mut self) {
        self.end(Signal::SIGKILL);
    }

    /// Lets a server without a leash live on after this value.
    pub(crate) fn release(&mut self) {
        self.released = true;
    }

    fn end(&mut self, signal: Signal) {
        if self.released {
            return;
        }
        self.signal(signal);
        if let Some(mut leash) = self.leash.take() {
            // The folder is not the leash's to remove while we are here. A leash that is gone has done so already.
            let _ = leash.write_all(b"keep\n");
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

/// Kills a child of ours when we end without a word, however that is. Dropped, it does nothing any more.
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
            // One that is gone needs no word.
            let _ = pipe.write_all(b"done\n");
        }
        let _ = self.shell.wait();
    }
}

/// A private folder for a server's data. Dropped, it is removed, unless it was let go.
#[derive(Debug)]
pub(crate) struct ServerFolder {
    path: PathBuf,
    released: bool,
}

impl ServerFolder {
    /// Makes one that the server's user may work in.
    pub(crate) fn make(prefix: &str, user: Option<&User>) -> Result<Self, StackError> {
        let made = tempfile::Builder::new().prefix(prefix).tempdir();
        let path = made.map_err(StackError::io("no temporary folder can be made"))?.keep();
        let folder = Self { path, released: false };
        if let Some(user) = user {
            chown(&folder.path, Some(user.uid), Some(user.gid))
                .map_err(|errno| StackError::io("the temporary folder can't be given away")(errno.into()))?;
        }
        Ok(folder)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Lets it stay after this value.
    pub(crate) fn release(&mut self) {
        self.released = true;
    }
}

impl Drop for ServerFolder {
    fn drop(&mut self) {
        if !self.released {
            // One that is gone needs no removing.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Whether there is such a program.
pub(crate) fn is_on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// Whether a process is there and not a zombie.
pub fn is_running(pid: Pid) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| !rest.starts_with(['Z', 'X'])))
}

/// When a process was started, in clock ticks since boot: with its id, that names a process for ever.
///
/// Source: `proc_pid_stat(5)`, field 22.
pub fn started_at_ticks(pid: Pid) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(") ").next()?.split(' ').nth(19)?.parse().ok()
}

/// Ends a process that is not our child: the signal, then SIGKILL when the time is up. Tells whether it is gone.
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

/// Lets this process, and those that it starts from now on, have as many open files as the system allows it at most.
pub fn raise_open_files() -> Result<(), StackError> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)
        .map_err(|errno| StackError::io("the limit of open files is not known")(errno.into()))?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)
        .map_err(|errno| StackError::io("the limit of open files can't be raised")(errno.into()))
}

/// Polls until it is so, or the time is up.
pub fn wait_until(limit: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let give_up_at = Instant::now() + limit;
    loop {
        if is_so() {
            return true;
        }
        if Instant::now() >= give_up_at {
            return false;
        }
        thread::sleep(POLL);
    }
}

/// Whom a server runs as that refuses to be root: nobody else unless we are root.
pub(crate) fn unprivileged_user() -> Result<Option<User>, StackError> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let user = ["postgres", "nobody"].into_iter().find_map(|name| User::from_name(name).ok().flatten());
    user.map(Some).ok_or(StackError::Missing("a user postgres or nobody"))
}

/// The last line of a log that isn't empty.
pub(crate) fn last_words(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing").to_owned()
}

pub(crate) fn append_to(log: &Path) -> Result<File, StackError> {
    let file = OpenOptions::new().create(true).append(true).open(log);
    file.map_err(StackError::io(format!("{} can't be written", log.display())))
}
