//! Stack that keeps running after the command ends: `devstack up`, `down`, `status` and `logs`.

use std::{
    error::Error,
    fs::{self, File},
    io,
    net::{SocketAddr, TcpListener},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use devstack::{
    StackError, admin,
    process::{self, Lifetime},
    program::Program,
    terminal::print_line,
};
use nix::{
    sys::signal::Signal,
    unistd::{Pid, geteuid},
};
use serde::{Deserialize, Serialize};

use crate::stack::{Stack, StackOptions};

const EXIT_UNHEALTHY: u8 = 3;
const STOP_LIMIT: Duration = Duration::from_secs(40);

/// Content of the state file.
#[derive(Serialize, Deserialize)]
struct State {
    redis_url: String,
    database_url: String,
    ingest_url: String,
    folders: Vec<PathBuf>,
    parts: Vec<Part>,
}

/// One process; the state file lists them in the order in which they are stopped.
#[derive(Serialize, Deserialize)]
struct Part {
    name: String,
    pid: i32,
    started_at_ticks: Option<u64>,
    admin: Option<SocketAddr>,
    log: PathBuf,
    stop_signal: StopSignal,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
enum StopSignal {
    Term,
    Int,
}

impl Part {
    /// Returns whether the process runs and its id has not been reused by another process.
    fn is_running(&self) -> bool {
        let pid = Pid::from_raw(self.pid);
        let ticks = process::started_at_ticks(pid);
        process::is_running(pid) && ticks.is_some() && ticks == self.started_at_ticks
    }

    fn health(&self) -> &'static str {
        match self.admin {
            _ if !self.is_running() => "not running",
            None => "running",
            Some(address) => match admin::get(address, "/readyz") {
                Ok((200, _)) => "ready",
                Ok(_) => "not ready",
                Err(_) => "not responding",
            },
        }
    }

    fn is_healthy(&self) -> bool {
        is_healthy(self.health())
    }
}

fn is_healthy(health: &str) -> bool {
    matches!(health, "running" | "ready")
}

/// Starts the stack unless it is running. `interrupted` returns whether a signal has arrived during the start.
pub(crate) async fn up(
    file: &Path,
    interrupted: impl AsyncFnOnce() -> bool,
) -> Result<ExitCode, Box<dyn Error>> {
    let _lock = lock(file)?;
    if let Some(state) = read(file)? {
        if state.parts.iter().all(Part::is_healthy) {
            print_line("the stack is already running");
            print_urls(&state);
            return Ok(ExitCode::SUCCESS);
        }
        // The data may be needed, so only `down` removes them.
        print_line(
            "the stack is running but unhealthy: run make status for details, or make down to remove it with its data",
        );
        return Ok(ExitCode::from(EXIT_UNHEALTHY));
    }
    let options = StackOptions {
        redis_port: preferred(6379),
        postgres_port: preferred(5432),
        ingest_port: preferred(8080).unwrap_or(0),
        ingest_admin_port: preferred(8081).unwrap_or(0),
        consumer_admin_ports: [8082, 8083].map(|port| preferred(port).unwrap_or(0)).to_vec(),
        ..StackOptions::default()
    };
    let stack = Stack::start(options, Lifetime::Detached)?;
    if interrupted().await {
        return Ok(crate::interrupted());
    }
    let state = describe(&stack);
    let json = serde_json::to_string_pretty(&state).map_err(io::Error::from);
    let written = json.and_then(|json| fs::write(file, json));
    written.map_err(StackError::io(format!("cannot write {}", file.display())))?;
    stack.detach();
    print_urls(&state);
    Ok(ExitCode::SUCCESS)
}

/// Locks the state file. Two concurrent calls would start two stacks, and the file could describe only one of them.
fn lock(file: &Path) -> Result<File, StackError> {
    let path = file.with_extension("lock");
    let failed = || format!("cannot lock {}", path.display());
    let lock = File::create(&path).map_err(StackError::io(failed()))?;
    lock.lock().map_err(StackError::io(failed()))?;
    Ok(lock)
}

pub(crate) fn down(file: &Path) -> Result<ExitCode, Box<dyn Error>> {
    let Some(state) = read(file)? else {
        print_line("the stack is not running");
        return Ok(ExitCode::SUCCESS);
    };
    stop(&state, file)?;
    print_line("stack stopped, data removed");
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn status(file: &Path) -> Result<ExitCode, Box<dyn Error>> {
    let Some(state) = read(file)? else {
        print_line("the stack is not running: run make up");
        return Ok(ExitCode::from(EXIT_UNHEALTHY));
    };
    let mut all_healthy = true;
    for part in &state.parts {
        let health = part.health();
        let admin = part.admin.map_or_else(String::new, |address| format!("admin http://{address}"));
        print_line(&format!("{:<11} pid {:<8} {health:<15} {admin}", part.name, part.pid));
        all_healthy &= is_healthy(health);
    }
    print_urls(&state);
    Ok(if all_healthy { ExitCode::SUCCESS } else { ExitCode::from(EXIT_UNHEALTHY) })
}

pub(crate) fn logs(file: &Path, follow: bool) -> Result<ExitCode, Box<dyn Error>> {
    let Some(state) = read(file)? else {
        print_line("the stack is not running: run make up");
        return Ok(ExitCode::from(EXIT_UNHEALTHY));
    };
    let mut tail = Command::new("tail");
    tail.args(["-n", "20"]).args(state.parts.iter().map(|part| &part.log));
    if follow {
        tail.arg("-F");
    }
    Err(StackError::Spawn { program: "tail".to_owned(), source: tail.exec() }.into())
}

/// Builds the content of the state file.
fn describe(stack: &Stack) -> State {
    let part = |name: &str, pid, admin, log: PathBuf, stop_signal| Part {
        name: name.to_owned(),
        pid,
        started_at_ticks: process::started_at_ticks(Pid::from_raw(pid)),
        admin,
        log,
        stop_signal,
    };
    let logs = stack.logs.path();
    let program = |name: &str, program: &Program| {
        part(name, program.pid(), Some(program.admin()), logs.join(format!("{name}.log")), StopSignal::Term)
    };
    let postgres_folder = stack.postgres.folder();
    let mut parts = vec![program("ingest", &stack.ingest)];
    let consumers = stack.consumers.iter().zip(1..);
    parts.extend(consumers.map(|(consumer, number)| program(&format!("consumer-{number}"), consumer)));
    let mut folders = vec![postgres_folder.to_owned(), logs.to_owned()];
    for server in stack.redis.servers() {
        parts.push(part("redis", server.pid(), None, server.folder().join("redis.log"), StopSignal::Term));
        folders.push(server.folder().to_owned());
    }
    let postgres_log = postgres_folder.join("postgres.log");
    parts.push(part("postgres", stack.postgres.pid(), None, postgres_log, StopSignal::Int));
    State {
        redis_url: stack.redis.url(),
        database_url: stack.postgres.url("postgres"),
        ingest_url: format!("http://{}", stack.ingest.listen()),
        folders,
        parts,
    }
}

fn stop(state: &State, file: &Path) -> Result<(), StackError> {
    for part in state.parts.iter().filter(|part| part.is_running()) {
        let signal = match part.stop_signal {
            StopSignal::Term => Signal::SIGTERM,
            StopSignal::Int => Signal::SIGINT,
        };
        if !process::end_by_pid(Pid::from_raw(part.pid), signal, STOP_LIMIT) {
            return Err(StackError::Timeout {
                program: part.name.clone(),
                action: "exit",
                seconds: STOP_LIMIT.as_secs(),
                log: part.log.clone(),
            });
        }
    }
    for folder in &state.folders {
        // The folder may have been removed.
        let _ = fs::remove_dir_all(folder);
    }
    fs::remove_file(file).map_err(StackError::io(format!("cannot remove {}", file.display())))
}

fn print_urls(state: &State) {
    print_line(&format!("send likes to POST {}/likes", state.ingest_url));
    print_line(&format!("export REDIS_URL={} DATABASE_URL={}", state.redis_url, state.database_url));
}

fn read(file: &Path) -> Result<Option<State>, StackError> {
    let failed = || format!("cannot read the state file {}; remove it if it is damaged", file.display());
    match fs::read_to_string(file) {
        Ok(json) => {
            serde_json::from_str(&json).map(Some).map_err(io::Error::from).map_err(StackError::io(failed()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StackError::io(failed())(error)),
    }
}

/// State file of this build folder and user.
pub(crate) fn default_state_file() -> Result<PathBuf, StackError> {
    let folder = devstack::program::programs_folder()?;
    Ok(folder.join(format!("devstack-{}.json", geteuid())))
}

/// Returns the well-known port if it is free.
fn preferred(port: u16) -> Option<u16> {
    TcpListener::bind(("127.0.0.1", port)).is_ok().then_some(port)
}
