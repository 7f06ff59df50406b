"""Helpers of all suites: paths, commands, servers, and settings parsed from --help."""

import contextlib
import functools
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target").resolve()
# Folder of the programs in the virtual environment.
TOOLS = pathlib.Path(sys.executable).parent
TIMEOUT_S = 120
# Maximum number of characters that an error quotes from the output of a command.
QUOTED = 4_000
STOP_S = 30
# Lower ports often belong to other servers.
FIRST_PORT = 10_000
PORT_TRIES = 1_000
UNITS_S = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}


def run(*command, timeout=TIMEOUT_S, **options):
    """Runs a command, captures its output, and accepts any exit code."""
    command = [str(word) for word in command]
    options = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, **options}
    return subprocess.run(command, timeout=timeout, check=False, **options)


def output(*command, **options):
    """Returns the standard output of a command. Fails unless its exit code is 0."""
    ended = run(*command, **options)
    quoted = f"{ended.stdout[-QUOTED:]}{ended.stderr[-QUOTED:]}"
    words = " ".join(map(str, command))
    assert ended.returncode == 0, f"{words} exited with {ended.returncode}: {quoted}"
    return ended.stdout


def wait_until(goal, condition, seconds, process=None):
    """Returns the first true value of the condition. Fails on timeout or if the process exits."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        if process and process.poll() is not None:
            raise RuntimeError(
                f"{process.args} exited before: {goal}; log: {last_lines(process.log)}"
            )
        if time.monotonic() > end:
            raise TimeoutError(f"timed out after {seconds} s: {goal}")
        time.sleep(0.05)
    return found


def last_lines(log):
    return " | ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:])


@contextlib.contextmanager
def running(*command, log, **options):
    """Runs a process until the end of the block, with its output in the log."""
    with log.open("w") as file:
        process = subprocess.Popen(
            [str(word) for word in command],
            **{"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT, **options},
        )
    process.log = log
    try:
        yield process
    finally:
        # SIGINT is a fast shutdown for Postgres, and stops the other servers as well.
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def new_certificate(name, key, certificate, *options):
    """Writes a key and a certificate, self-signed unless the options contain a CA."""
    new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    files = "-keyout", key, "-out", certificate
    output("openssl", *new, "-days", "2", "-subj", f"/CN={name}", *files, *options)


def free_port():
    """
    Returns a free port on loopback below the ephemeral range. A client that connects to an
    ephemeral port without a listener can connect to itself, and then the server cannot bind.
    """
    ephemeral = pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0]
    end = int(ephemeral) if int(ephemeral) > 2 * FIRST_PORT else 32_768
    for _ in range(PORT_TRIES):
        port = random.randrange(FIRST_PORT, end)
        with socket.socket() as server, contextlib.suppress(OSError):
            server.bind(("127.0.0.1", port))
            return port
    raise RuntimeError(f"no free port on loopback from {FIRST_PORT} to {end - 1}")


def accepts_connections(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def seconds(duration):
    """Converts a duration such as 1m30s to seconds."""
    assert re.fullmatch(r"(\d+(ms|[smh]) ?)+", duration), f"'{duration}' is not a duration"
    return sum(int(n) * UNITS_S[unit] for n, unit in re.findall(r"(\d+)(ms|s|m|h)", duration))


# Environment for --help, which wraps lines and shows values of variables.
HELP = {"COLUMNS": "100"}


SERVICES = ("ingest", "consumer")


@functools.cache
def opentelemetry_variables():
    """Returns the OpenTelemetry variables of services. They have no flags, so --help omits them."""
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    return frozenset(re.findall(r"^#? ?(OTEL_[A-Z_]+)=", example, re.MULTILINE))


class Programs:
    """The programs in a folder, with the settings that their --help lists."""

    def __init__(self, folder):
        self.folder = folder

    @functools.cache  # noqa: B019 - one instance, with the lifetime of the process
    def help(self, *command):
        return output(self.folder / command[0], *command[1:], "--help", env=HELP)

    @functools.cache  # noqa: B019
    def settings(self, *command):
        """Returns the environment variables of a command, with their defaults or None."""
        options = re.split(r"\n +(?=-)", self.help(*command))
        defaults = {}
        for option in options:
            if name := re.search(r"\[env:\s+(\w+)", option):
                default = re.search(r"\[default:\s+([^\]]+)\]", option)
                defaults[name[1]] = default and default[1]
        if command[0] in SERVICES:
            defaults |= dict.fromkeys(opentelemetry_variables())
        return defaults

    @functools.cache  # noqa: B019
    def secrets(self, program):
        """Returns the settings with values that --help hides, and headers, which contain tokens."""
        hidden = set(re.findall(r"\[env:\s+(\w+)\]", self.help(program)))
        return hidden | {name for name in self.settings(program) if name.endswith("_HEADERS")}

    def listens(self, *command):
        """Returns the settings that are listen addresses."""
        return [name for name in self.settings(*command) if name.endswith("_LISTEN")]
