//! The likestream programs as child processes.

use std::{
    env, fs,
    net::SocketAddr,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::Deserialize;

use crate::{
    admin::{self, Metrics},
    error::StackError,
    process::{Watchdog, append_to, is_running, last_line, wait_until},
};

/// Time limit for a program to log its addresses after its start.
const START_SECONDS: u64 = 60;

/// Time limit for a graceful shutdown.
const STOP_LIMIT: Duration = Duration::from_secs(40);

/// Running program. Dropped, it is killed, unless it was detached. A watchdog kills it if this process ends without
/// dropping it.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Option<Child>,
    watchdog: Option<Watchdog>,
    pid: Pid,
    log: PathBuf,
    addresses: Addresses,
}

/// Addresses that a program logs once it listens.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Addresses {
    #[serde(default)]
    listen: Option<SocketAddr>,
    admin_listen: SocketAddr,
}

/// Folder of the likestream programs: the folder of this executable, or its parent for a test.
pub fn programs_folder() -> Result<PathBuf, StackError> {
    let own = env::current_exe().map_err(StackError::io("cannot determine the folder of this program"))?;
    let folders = own.ancestors().skip(1).take(2);
    let found = folders.filter(|folder| folder.join("ingest").is_file()).map(Path::to_path_buf).next();
    found.ok_or(StackError::Missing(
        "ingest, consumer or likesctl in the folder of this program (run make build)",
    ))
}

/// Command of a likestream program. Its environment consists of these settings and the PATH.
pub fn command(name: &str, settings: &[(&str, String)]) -> Result<Command, StackError> {
    let mut command = Command::new(programs_folder()?.join(name));
    command.env_clear().envs(settings.iter().map(|(name, value)| (name, value))).stdin(Stdio::null());
    if let Some(path) = env::var_os("PATH") {
        command.env("PATH", path);
    }
    Ok(command)
}

/// Runs a program to its end.
///
/// # Errors
/// When its exit code is not 0.
pub fn run(name: &str, arguments: &[&str], settings: &[(&str, String)]) -> Result<(), StackError> {
    let output = command(name, settings)?.args(arguments).output();
    let output = output.map_err(|source| StackError::Spawn { program: name.to_owned(), source })?;
    if output.status.success() {
        return Ok(());
    }
    let last_output = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(StackError::Ended { program: format!("{name} {}", arguments.join(" ")), last_output })
}

impl Program {
    /// Starts a service in a separate process group and waits until it has logged its addresses. Its log is appended to
    /// the file as JSON.
    pub fn start(name: &str, settings: &[(&str, String)], log: &Path) -> Result<Self, StackError> {
        // The file may contain the log of an earlier process.
        let offset = fs::metadata(log).map_or(0, |file| file.len());
        let mut command = command(name, settings)?;
        command.env("LOG_FORMAT", "json").stdout(Stdio::null()).stderr(append_to(log)?).process_group(0);
        let child =
            command.spawn().map_err(|source| StackError::Spawn { program: name.to_owned(), source })?;
        let pid = Pid::from_raw(child.id().cast_signed());
        let mut started = Unstarted { name, child: Some(child), log };
        let watchdog = Some(Watchdog::start(pid)?);
        let addresses = started.addresses(usize::try_from(offset).unwrap_or_default())?;
        let child = started.child.take();
        Ok(Self { name: name.to_owned(), child, watchdog, pid, log: log.to_owned(), addresses })
    }

    /// Address for clients. Only ingest has one.
    ///
    /// # Panics
    /// If the program is not ingest.
    pub fn listen(&self) -> SocketAddr {
        #[expect(clippy::expect_used, reason = "a mistake of the calling code")]
        self.addresses.listen.expect("only ingest listens for clients")
    }

    /// Address of the admin port.
    pub fn admin(&self) -> SocketAddr {
        self.addresses.admin_listen
    }

    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Last line of the log, if the program has exited.
    pub fn last_output_if_ended(&self) -> Option<String> {
        (!is_running(self.pid)).then(|| last_line(&self.log))
    }

    /// Log so far.
    pub fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until `/readyz` returns 200.
    pub fn wait_ready(&self, limit: Duration) -> Result<(), StackError> {
        let ready =
            wait_until(limit, || admin::get(self.admin(), "/readyz").is_ok_and(|(status, _)| status == 200));
        if ready { Ok(()) } else { Err(self.timeout("become ready", limit)) }
    }

    pub fn metrics(&self) -> Result<Metrics, StackError> {
        Metrics::read(self.admin())
            .map_err(StackError::io(format!("cannot read the metrics of {}", self.name)))
    }

    pub fn signal(&self, signal: Signal) {
        // The process may have ended.
        let _ = kill(self.pid, signal);
    }

    pub fn wait_exit(&mut self, limit: Duration) -> Result<ExitStatus, StackError> {
        let mut status = None;
        if let Some(child) = &mut self.child {
            wait_until(limit, || {
                status = child.try_wait().ok().flatten();
                status.is_some()
            });
        }
        if status.is_some() {
            self.watchdog = None;
        }
        status.ok_or_else(|| self.timeout("exit", limit))
    }

    /// Sends SIGTERM and waits for the exit.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus, StackError> {
        self.signal(Signal::SIGTERM);
        self.wait_exit(limit)
    }

    /// Sends SIGTERM and waits for the exit.
    ///
    /// # Errors
    /// When the program does not exit in time with exit code 0.
    pub fn stop(&mut self) -> Result<(), StackError> {
        let status = self.terminate(STOP_LIMIT)?;
        if status.success() {
            return Ok(());
        }
        let program = format!("{} ({status})", self.name);
        Err(StackError::Ended { program, last_output: last_line(&self.log) })
    }

    /// Sends SIGKILL.
    pub fn kill(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        self.watchdog = None;
    }

    /// Peak resident set size in bytes.
    ///
    /// Source: `proc_pid_status(5)`, `VmHWM`.
    pub fn peak_resident_bytes(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
    }

    /// Number of open files and sockets.
    pub fn open_files(&self) -> Option<usize> {
        fs::read_dir(format!("/proc/{}/fd", self.pid)).ok().map(Iterator::count)
    }

    /// Leaves the program running when this value is dropped.
    pub fn detach(mut self) {
        self.child = None;
        self.watchdog = None;
    }

    fn timeout(&self, action: &'static str, limit: Duration) -> StackError {
        StackError::Timeout {
            program: self.name.clone(),
            action,
            seconds: limit.as_secs(),
            log: self.log.clone(),
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Process that has not logged its addresses yet. Dropped, it is killed.
struct Unstarted<'a> {
    name: &'a str,
    child: Option<Child>,
    log: &'a Path,
}

impl Unstarted<'_> {
    fn addresses(&mut self, offset: usize) -> Result<Addresses, StackError> {
        let mut found = None;
        let mut ended = false;
        wait_until(Duration::from_secs(START_SECONDS), || {
            ended = self.child.as_mut().is_some_and(|child| child.try_wait().ok().flatten().is_some());
            found = listening(fs::read(self.log).unwrap_or_default().get(offset..).unwrap_or_default());
            ended || found.is_some()
        });
        let program = self.name.to_owned();
        match found {
            Some(addresses) if !ended => Ok(addresses),
            _ if ended => Err(StackError::Ended { program, last_output: last_line(self.log) }),
            _ => Err(StackError::Timeout {
                program,
                action: "listen",
                seconds: START_SECONDS,
                log: self.log.to_owned(),
            }),
        }
    }
}

impl Drop for Unstarted<'_> {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn listening(log: &[u8]) -> Option<Addresses> {
    String::from_utf8_lossy(log).lines().find_map(|line| serde_json::from_str(line).ok())
}
