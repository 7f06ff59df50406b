"""Runs Redis and Postgres with the configuration of compose.yaml, and programs in a container."""

import contextlib
import os
import pathlib
import re
import signal

import requests

from support import ROOT, accepts_connections, free_port, output, run, running, wait_until

# User ID of `nobody`. Postgres refuses to run as root or as a user without a name.
NOBODY = 65534
START_S = 90
# The start period in compose.yaml.
READY_S = 30


@contextlib.contextmanager
def redis(folder, secrets, *options):
    """Runs Redis with the redis.conf of compose.yaml and yields its port."""
    port = free_port()
    data = folder / f"redis-{port}"
    data.mkdir()
    text = (ROOT / "deploy/compose/redis.conf").read_text()
    text = text.replace("/run/secrets", str(secrets)).replace("dir /data", f"dir {data}")
    config = data / "redis.conf"
    config.write_text(f"{text}bind 127.0.0.1\nport {port}\n")
    options = [str(option).format(port=port) for option in options]
    with running("redis-server", config, *options, log=data / "log") as process:
        wait_until("Redis listens", lambda: accepts_connections(port), START_S, process)
        yield port


@contextlib.contextmanager
def postgres(folder, secrets):
    """Runs Postgres with the user, password and database of compose.yaml and yields its port."""
    port, data = free_port(), folder / "postgres"
    password = folder / "postgres-password"
    password.write_text((secrets / "postgres-password").read_text())
    data.mkdir()
    for path in (data, password):
        os.chown(path, NOBODY, NOBODY)
    as_nobody = {"user": NOBODY, "group": NOBODY, "extra_groups": [], "cwd": "/"}
    versions = pathlib.Path("/usr/lib/postgresql").glob("*/bin")
    bin_ = max(versions, key=lambda path: int(path.parent.name))
    options = "--no-sync", "--auth=scram-sha-256", "--username=likes", f"--pwfile={password}"
    output(bin_ / "initdb", *options, data, **as_nobody)
    command = bin_ / "postgres", "-D", data, "-h", "127.0.0.1", "-p", port, "-k", "", "-F"
    with running(*command, log=folder / "postgres.log", **as_nobody) as process:
        url = (secrets / "database-url").read_text().strip()
        url = re.sub("@.*", f"@127.0.0.1:{port}/postgres", url)
        create = "CREATE DATABASE likes"
        wait_until("Postgres answers", lambda: query(url, create) is not None, START_S, process)
        yield port


def query(url, statement):
    """Returns the output of psql, or None if it fails."""
    ended = run("psql", "--no-psqlrc", "-tA", "--command", statement, url)
    return ended.stdout.strip() if ended.returncode == 0 else None


class Container:
    """A container of the image."""

    def __init__(self, storage, name):
        self.storage, self.name = storage, name

    def command(self, words, environment, mounts):
        command = [*self.storage.command, "run", "--isolation", "chroot", "--cap-drop", "all"]
        for name, value in environment.items():
            command += ["--env", f"{name}={value}"]
        for source, target in mounts:
            command += ["--volume", f"{source}:{target}:ro"]
        return [*command, self.name, "--", *words]

    def run(self, words, environment=None, mounts=()):
        command = self.command(words, environment or {}, mounts)
        return run(*command, env=self.storage.environment)

    @contextlib.contextmanager
    def running(self, words, environment, mounts):
        """Runs a service and kills it at the end of the block."""
        log = self.storage.scratch / f"{words[0]}.log"
        command = self.command(words, environment, mounts)
        with running(*command, log=log, env=self.storage.environment) as engine:
            service = Service(engine, words[0])
            try:
                yield service
            finally:
                # The engine exits after the service.
                service.signal(signal.SIGKILL)


class Service:
    """A program in a container."""

    def __init__(self, engine, name):
        self.engine, self.name = engine, name

    def pid(self):
        """Returns the process ID of the program, a descendant of the engine; None if it exited."""
        pids = [self.engine.pid]
        for pid in pids:
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/exe").endswith(f"/usr/local/bin/{self.name}"):
                    return pid
                for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
                    pids += map(int, (task / "children").read_text().split())
        return None

    def signal(self, number):
        if pid := self.pid():
            os.kill(pid, number)

    def terminate(self):
        """Stops the service with SIGTERM and returns the exit code."""
        self.signal(signal.SIGTERM)
        return self.engine.wait(READY_S)

    def user(self):
        status = pathlib.Path(f"/proc/{self.pid()}/status").read_text()
        return ":".join(
            re.search(rf"^{name}:\t(\d+)", status, re.MULTILINE)[1] for name in ("Uid", "Gid")
        )

    def wait_ready(self, admin_port):
        def is_ready():
            with contextlib.suppress(requests.RequestException):
                return requests.get(f"http://127.0.0.1:{admin_port}/readyz", timeout=10).ok
            return False

        wait_until(f"{self.name} is ready", is_ready, READY_S, self.engine)
