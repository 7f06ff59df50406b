//! The likestream programs as processes.

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
    StackError,
    admin::{self, Metrics},
    process::{Watchdog, append_to, is_running, last_words, wait_until},
};

const START_SECONDS: u64 = 60;

/// Ends with the value, by SIGKILL, unless it was let go; and with this process, however that ends.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Option<Child>,
    watchdog: Option<Watchdog>,
    pid: Pid,
    log: PathBuf,
    addresses: Addresses,
}

/// What a program says of itself when it listens.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Addresses {
    #[serde(default)]
    listen: Option<SocketAddr>,
    admin_listen: SocketAddr,
}

/// The folder of the likestream programs: that of the running program, or the one above for a test.
pub fn programs_folder() -> Result<PathBuf, StackError> {
    let own = env::current_exe().map_err(StackError::io("the folder of this program is not known"))?;
    let folders = own.ancestors().skip(1).take(2);
    let found = folders.filter(|folder| folder.join("ingest").is_file()).map(Path::to_path_buf).next();
    found.ok_or(StackError::Missing("ingest, consumer and likesctl beside this program"))
}

/// A command of a likestream program, in an environment of nothing but these settings.
pub fn command(name: &str, settings: &[(&str, String)]) -> Result<Command, StackError> {
    let mut command = Command::new(programs_folder()?.join(name));
    command.env_clear().envs(settings.iter().map(|(name, value)| (name, value))).stdin(Stdio::null());
    if let Some(path) = env::var_os("PATH") {
        command.env("PATH", path);
    }
    Ok(command)
}

/// Runs a program to its end, which has to be a good one.
pub fn run(name: &str, arguments: &[&str], settings: &[(&str, String)]) -> Result<(), StackError> {
    let output = command(name, settings)?.args(arguments).output();
    let output = output.map_err(|source| StackError::Spawn { program: name.to_owned(), source })?;
    if output.status.success() {
        return Ok(());
    }
    let last_words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(StackError::Ended { program: format!("{name} {}", arguments.join(" ")), last_words })
}

impl Program {
    /// Starts a service in a process group of its own and waits until it says where it listens. It writes its log,
    /// as JSON, to the file.
    pub fn start(name: &str, settings: &[(&str, String)], log: &Path) -> Result<Self, StackError> {
        // The file may hold the words of an earlier process.
        let old_words = fs::metadata(log).map_or(0, |file| file.len());
        let mut command = command(name, settings)?;
        command.env("LOG_FORMAT", "json").stdout(Stdio::null()).stderr(append_to(log)?).process_group(0);
        let child =
            command.spawn().map_err(|source| StackError::Spawn { program: name.to_owned(), source })?;
        let pid = Pid::from_raw(child.id().cast_signed());
        let mut started = Unstarted { name, child: Some(child), log };
        let watchdog = Some(Watchdog::start(pid)?);
        let addresses = started.addresses(usize::try_from(old_words).unwrap_or_default())?;
        let child = started.child.take();
        Ok(Self { name: name.to_owned(), child, watchdog, pid, log: log.to_owned(), addresses })
    }

    /// Where callers reach it; only ingest has that.
    ///
    /// # Panics
    /// For another program.
    pub fn listen(&self) -> SocketAddr {
        #[expect(clippy::expect_used, reason = "a mistake in the code that asks, for developers to see")]
        self.addresses.listen.expect("only ingest listens for callers")
    }

    /// Where its admin port is.
    pub fn admin(&self) -> SocketAddr {
        self.addresses.admin_listen
    }

    /// Its process.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Its last words, if it has ended.
    pub fn last_words_if_ended(&self) -> Option<String> {
        (!is_running(self.pid)).then(|| last_words(&self.log))
    }

    /// What it wrote so far.
    pub fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it is ready.
    pub fn wait_ready(&self, limit: Duration) -> Result<(), StackError> {
        let ready =
            wait_until(limit, || admin::get(self.admin(), "/readyz").is_ok_and(|(status, _)| status == 200));
        if ready { Ok(()) } else { Err(self.timeout("become ready", limit)) }
    }

    /// Its metrics.
    pub fn metrics(&self) -> Result<Metrics, StackError> {
        Metrics::read(self.admin())
            .map_err(StackError::io(format!("{} does not tell its metrics", self.name)))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        // One that is gone has nothing to obey.
        let _ = kill(self.pid, signal);
    }

    /// Waits until it ends.
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
        status.ok_or_else(|| self.timeout("end", limit))
    }

    /// SIGTERM, and then it has to end in time.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus, StackError> {
        self.signal(Signal::SIGTERM);
        self.wait_exit(limit)
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        self.watchdog = None;
    }

    /// The most memory that it has had in RAM, in bytes.
    ///
    /// Source: `proc_pid_status(5)`, `VmHWM`.
    pub fn peak_resident_bytes(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
    }

    /// How many files and sockets it has open.
    pub fn open_files(&self) -> Option<usize> {
        fs::read_dir(format!("/proc/{}/fd", self.pid)).ok().map(Iterator::count)
    }

    /// Lets it live on after this value.
    pub fn detach(mut self) {
        self.child = None;
        self.watchdog = None;
    }

    fn timeout(&self, what: &'static str, limit: Duration) -> StackError {
        StackError::Timeout {
            program: self.name.clone(),
            what,
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

/// A process that has not said where it listens. It is killed if it never does.
struct Unstarted<'a> {
    name: &'a str,
    child: Option<Child>,
    log: &'a Path,
}

impl Unstarted<'_> {
    fn addresses(&mut self, old_words: usize) -> Result<Addresses, StackError> {
        let mut found = None;
        let mut ended = false;
        wait_until(Duration::from_secs(START_SECONDS), || {
            ended = self.child.as_mut().is_some_and(|child| child.try_wait().ok().flatten().is_some());
            found = listening(fs::read(self.log).unwrap_or_default().get(old_words..).unwrap_or_default());
            ended || found.is_some()
        });
        let program = self.name.to_owned();
        match found {
            Some(addresses) if !ended => Ok(addresses),
            _ if ended => Err(StackError::Ended { program, last_words: last_words(self.log) }),
            _ => Err(StackError::Timeout {
                program,
                what: "listen",
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
