"""Redis and Postgres on loopback, as compose.yaml has them: with its redis.conf, and the passwords of secrets.sh."""

import contextlib
import os
import pathlib
import re
import signal
import socket
import subprocess
import time

from free_port import free_port
from tree import ROOT, Failed

# It is everywhere, and Postgres wants a user that has a name.
NOBODY = 65534
START_S = 90
STOP_S = 30


def wait_for(what, condition, seconds=START_S):
    """Until it is so. Returns what the condition has found."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise Failed(f"after {seconds} s it is not so that {what}")


@contextlib.contextmanager
def running(command, log, **options):
    """A process that ends with the block."""
    with open(log, "w", encoding="utf-8") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def listening(port, process, log):
    def condition():
        if process.poll() is not None:
            raise Failed(f"{' '.join(map(str, process.args[:2]))} has ended: {' | '.join(pathlib.Path(log).read_text().splitlines()[-3:])}")
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    wait_for(f"something listens on {port}", condition)


@contextlib.contextmanager
def redis(folder, secrets, *options):
    """The port of a Redis with the configuration of compose."""
    port, log = free_port(), folder / "redis.log"
    data = folder / f"redis-{port}"
    data.mkdir()
    text = (ROOT / "deploy/compose/redis.conf").read_text(encoding="utf-8")
    text = text.replace("/run/secrets", str(secrets)).replace("dir /data", f"dir {data}")
    config = folder / "redis.conf"
    config.write_text(f"{text}bind 127.0.0.1\nport {port}\n", encoding="utf-8")
    command = ["redis-server", config, *(option.format(port=port) for option in options)]
    with running(command, log) as process:
        listening(port, process, log)
        yield port


def postgres_program(name):
    versions = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    return versions[-1] / name


@contextlib.contextmanager
def postgres(folder, secrets):
    """The port of a Postgres with the user, the password and the database of compose."""
    port, log, data = free_port(), folder / "postgres.log", folder / "postgres"
    data.mkdir()
    os.chown(data, NOBODY, NOBODY)
    as_nobody = {"user": NOBODY, "group": NOBODY, "extra_groups": [], "cwd": "/"}
    password = folder / "postgres-password"
    password.write_text((secrets / "postgres-password").read_text(), encoding="utf-8")
    os.chown(password, NOBODY, NOBODY)
    made = subprocess.run(
        [postgres_program("initdb"), "--no-sync", "--auth=scram-sha-256", "--username=likes", f"--pwfile={password}", data],
        capture_output=True, text=True, timeout=START_S, check=False, **as_nobody,
    )
    if made.returncode:
        raise Failed(f"initdb: {made.stderr}")
    command = [postgres_program("postgres"), "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", "", "-F"]
    with running(command, log, **as_nobody) as process:
        listening(port, process, log)
        url = re.sub("@.*", f"@127.0.0.1:{port}/postgres", (secrets / "database-url").read_text().strip())
        wait_for("Postgres answers", lambda: query(url, "CREATE DATABASE likes") is not None)
        yield port


def query(url, statement):
    """What psql prints, None when it fails."""
    ended = subprocess.run(["psql", "--no-psqlrc", "--tuples-only", "--no-align", "--command", statement, url],
                           capture_output=True, text=True, timeout=START_S, check=False)
    return ended.stdout.strip() if ended.returncode == 0 else None
