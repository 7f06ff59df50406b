"""What the programs themselves say: their settings, their commands, and their admin ports."""

import contextlib
import functools
import pathlib
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request

from free_port import free_port

PROGRAMS = ("ingest", "consumer", "likesctl")
# What one signal alone may have: files for these would have to be mounted, and the chart has those for both.
FILES_OF_A_SIGNAL = re.compile(r"OTEL_EXPORTER_OTLP_(TRACES|METRICS)_(CERTIFICATE|CLIENT_CERTIFICATE|CLIENT_KEY)")
NOBODY = "127.0.0.1:1"
START_TIMEOUT_S = 20
# Where pods have their files.
FILES = "/etc/likestream/"


class Programs:
    """The release binaries."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)

    @functools.cache
    def help(self, *command):
        """What it prints for --help, or nothing where it doesn't know the command."""
        program, *arguments = command
        ended = subprocess.run(
            [self.folder / program, *arguments, "--help"], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=START_TIMEOUT_S, check=False)
        return ended.stdout if ended.returncode == 0 else None

    @functools.cache
    def settings(self, program):
        """Its settings; of likesctl those of all its commands."""
        if program != "likesctl":
            return settings_in(self.help(program))
        commands = re.findall(r"^  ([a-z]+)  ", self.help(program).split("Options:")[0], re.MULTILINE)
        return set().union(*(settings_in(self.help(program, name)) for name in commands if name != "help"))

    @functools.cache
    def secrets(self, program):
        """Those of its settings whose values it doesn't show in --help: there is no = behind their names."""
        return set(re.findall(r"\[env: ([A-Z][A-Z0-9_]*)\]", " ".join(self.help(program).split())))

    @contextlib.contextmanager
    def running(self, program, *arguments, environment):
        process = subprocess.Popen(
            [self.folder / program, *arguments], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True)
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def admin_answers(self, program, paths):
        """The status of each path on the admin port, while the servers are away; nothing where the port isn't what it is told."""
        port = free_port()
        environment = {**NOWHERE, **listening(program, port), "STARTUP_TIMEOUT": "1m"}
        with self.running(program, environment=environment) as process:
            if not listens(process, port):
                return dict.fromkeys(paths, "nothing")
            return {path: status(f"http://127.0.0.1:{port}{path}") for path in paths}

    def refusal(self, command, environment, folder):
        """
        What it says to settings that it doesn't take, or nothing. The files that they name are looked for in this folder. A program that takes
        its settings ends with 1, because the servers are away; otherwise with 2.
        """
        environment = {name: value.replace(FILES, f"{folder}/") for name, value in environment.items()}
        environment = {name: re.sub(r"\$\([^)]*\)", "a-pod", value) for name, value in environment.items()}
        environment |= {**listening(command[0], free_port()), "STARTUP_TIMEOUT": "50ms"}
        if "REDIS_TLS_CA" in environment:
            environment["REDIS_URL_FILE"] = f"{folder}/redis/url-with-tls"
        if "INGEST_JWT_JWKS" in environment:
            environment["INGEST_JWT_JWKS"] = f"https://{NOBODY}/jwks.json"
        if endpoint := environment.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
            environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"{endpoint.partition('://')[0]}://{NOBODY}"
        # This host's name doesn't end in a number.
        if environment.get("CONSUMER_PARTITIONS", "").startswith("ordinal/"):
            environment["CONSUMER_PARTITIONS"] = environment["CONSUMER_PARTITIONS"].replace("ordinal", "0")
        with self.running(*command, environment=environment) as process:
            said, _ = process.communicate(timeout=START_TIMEOUT_S)
        last = said.strip().splitlines()[-1] if said.strip() else "nothing"
        return None if process.returncode == 1 else f"exit code {process.returncode}: {last}"


NOWHERE = {"REDIS_URL": f"redis://{NOBODY}"}


def settings_in(text):
    return set(re.findall(r"\[env: ([A-Z][A-Z0-9_]*)", " ".join(text.split())))


def listening(program, admin_port):
    if program == "ingest":
        return {"INGEST_LISTEN": "127.0.0.1:0", "INGEST_ADMIN_LISTEN": f"127.0.0.1:{admin_port}"}
    return {"CONSUMER_ADMIN_LISTEN": f"127.0.0.1:{admin_port}"} if program == "consumer" else {}


def listens(process, port):
    end = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        time.sleep(0.02)
    return False


def status(url):
    try:
        with urllib.request.urlopen(url, timeout=START_TIMEOUT_S) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def make_files(folder):
    """A file for each that a pod may have, with something in it that programs can read."""

    def write(path, text):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=START_TIMEOUT_S)

    write("redis/url", f"redis://{NOBODY}")
    write("redis/url-with-tls", f"rediss://{NOBODY}")
    write("database/url", f"postgres://nobody@{NOBODY}/likes")
    write("api-keys/api-keys", f"shop {'0' * 64}\n")
    folders = ["tls", "redis-tls", "otel-tls", "database-tls", "jwks-ca"]
    (folder / "tls").mkdir(parents=True)
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1", "-subj", "/CN=localhost",
            "-keyout", folder / "tls/tls.key", "-out", folder / "tls/tls.crt")
    certificate, key = ((folder / "tls" / name).read_text(encoding="utf-8") for name in ("tls.crt", "tls.key"))
    for name in folders:
        write(f"{name}/ca.crt", certificate)
        write(f"{name}/tls.crt", certificate)
        write(f"{name}/tls.key", key)
    (folder / "jwt-key").mkdir()
    openssl("pkey", "-in", folder / "tls/tls.key", "-pubout", "-out", folder / "jwt-key/jwt-key")
