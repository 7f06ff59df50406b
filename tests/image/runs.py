"""The programs run from the image, as its user: with compose.yaml's variables, secrets and health checks, and with real servers."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request

import build
import compose
import servers
import settings
import storage
from free_port import free_port
from tree import CARGO, ROOT, Failed

# The longest that compose.yaml lets them take.
READY_S = 30
STORED_S = 20
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
OF_RUN = ["--isolation", "chroot", "--cap-drop", "all"]


class Image:
    """A container of the image, and what is run in it."""

    def __init__(self, folder, container, logs):
        self.storage = storage.Storage(folder)
        self.container, self.logs = container, logs

    def command(self, words, environment=(), mounts=()):
        variables = [part for name, value in dict(environment).items() for part in ("--env", f"{name}={value}")]
        volumes = [part for source, target in mounts for part in ("--volume", f"{source}:{target}:ro")]
        return [*self.storage.command, "run", *OF_RUN, *variables, *volumes, self.container, "--", *words]

    def run(self, words, environment=(), mounts=()):
        """Runs it to its end. Returns the exit code, and what it has said, which may be lost: see `why`."""
        ended = subprocess.run(self.command(words, environment, mounts), env=self.storage.environment, stdin=subprocess.DEVNULL,
                               capture_output=True, text=True, timeout=storage.TIMEOUT_S, check=False)
        return ended.returncode, one_line(ended.stdout + ended.stderr)

    def why(self, words, environment=(), mounts=()):
        """What it says when it fails. buildah loses the output of programs that end at once, now and then, so it is asked some
        times; for people to read, and never to decide by."""
        said = (self.run(words, environment, mounts)[1] for _ in range(5))
        return next(filter(None, said), "and says nothing")

    @contextlib.contextmanager
    def running(self, words, environment=(), mounts=()):
        """A service, which ends with the block."""
        log = self.logs / f"{words[0]}.log"
        with servers.running(self.command(words, environment, mounts), log, env=self.storage.environment) as engine:
            service = Service(engine, words[0], log, lambda: self.why(words, environment, mounts))
            try:
                yield service
            finally:
                service.kill()


class Service:
    """A program in a container."""

    def __init__(self, engine, name, log, why):
        self.engine, self.name, self.log, self.why = engine, name, log, why

    def pid(self):
        """Of the program itself, some processes below the engine; None before it runs and after."""
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

    def kill(self):
        """So that the engine, which ends after it, has nothing left."""
        self.signal(signal.SIGKILL)

    def end(self):
        """By SIGTERM, as an engine does it. Returns the exit code."""
        self.signal(signal.SIGTERM)
        try:
            return self.engine.wait(READY_S)
        except subprocess.TimeoutExpired:
            return "none, for it does not end"

    def is_ready(self, admin_port):
        """Whether it becomes so in time."""
        end = time.monotonic() + READY_S
        while self.engine.poll() is None and time.monotonic() < end:
            if answer(f"http://127.0.0.1:{admin_port}/readyz")[0] == 200:
                return True
            time.sleep(0.05)
        return False

    def says(self):
        said = one_line(self.log.read_text(encoding="utf-8"))
        return said or (self.why() if self.engine.poll() else "it says nothing")


def problems(folder, programs):
    scratch = folder / "tmp"
    image = storage.Storage(folder)
    with image.container(build.IMAGE) as name, contextlib.ExitStack() as stack:
        ran = Image(folder, name, scratch)
        yield from starts(ran, programs)
        secrets = scratch / "secrets"
        subprocess.run([ROOT / "deploy/compose/secrets.sh", secrets], check=True, timeout=60)
        redis = stack.enter_context(servers.redis(scratch, secrets))
        postgres = stack.enter_context(servers.postgres(scratch, secrets))
        lead_to(secrets, redis, postgres)
        yield from redis_is_safe(secrets, redis)
        yield from pipeline(ran, programs, secrets)
        yield from trust(ran, scratch, secrets)


def starts(image, programs):
    """Each program, as the image's user and with its variables. What they print is read without buildah, which loses the
    output of programs that end at once, now and then."""
    version = CARGO["workspace"]["package"]["version"]
    variables = dict(entry.split("=", 1) for entry in image.storage.config(build.IMAGE)["Env"])
    with image.storage.mounted(build.IMAGE) as files:
        for name in settings.PROGRAMS:
            # The help tells also what the environment sets, so only its first line is the same.
            for argument, line in (("--version", f"{name} {version}"), ("--help", programs.help(name).partition("\n")[0])):
                ended = subprocess.run(
                    [shutil.which("chroot"), f"--userspec={build.USER}", "--groups=", files, name, argument], env=variables,
                    stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
                )
                if ended.returncode or ended.stdout.partition("\n")[0] != line:
                    yield f"the image: '{name} {argument}' ends with {ended.returncode}: {one_line(ended.stdout + ended.stderr)}"


def one_line(text):
    """The end of what a program has said, without what buildah adds to it."""
    text = re.sub(r"(process exited with error: .*)?subprocess exited with status \d+|^Error: exit status \d+$", "", text,
                  flags=re.MULTILINE)
    return " | ".join([line for line in text.splitlines() if line.strip()][-3:])


def lead_to(secrets, redis, postgres):
    """The servers are here: only names and ports of the URLs change, and `localhost` has to be looked up."""
    for name, host, port in (("redis-url", "redis:6379", redis), ("database-url", "postgres:5432", postgres)):
        file = secrets / name
        file.write_text(file.read_text().replace(f"@{host}/", f"@localhost:{port}/"))


def redis_is_safe(secrets, port):
    """What its health check says, and whether it keeps what it has."""
    [line] = compose.health_command(compose.SERVICES["redis"])
    line = line.replace("/run/secrets", str(secrets)).replace("redis-cli", f"redis-cli -p {port}")
    if subprocess.run(["sh", "-c", line], timeout=60, check=False).returncode:
        yield f"{compose.PATH}: redis: its health check fails: {line}"
    if subprocess.run(["sh", "-c", line.replace(f"-p {port}", "-p 1")], stderr=subprocess.DEVNULL, timeout=60, check=False).returncode == 0:
        yield f"{compose.PATH}: redis: its health check passes where there is no Redis"
    password = (secrets / "redis-password").read_text().split()[1]
    for name, wanted in (("maxmemory-policy", "noeviction"), ("appendonly", "yes"), ("maxmemory", str(512 << 20))):
        said = subprocess.run(["redis-cli", "-p", str(port), "CONFIG", "GET", name], env={**os.environ, "REDISCLI_AUTH": password},
                              capture_output=True, text=True, timeout=60, check=False).stdout.split()
        if said != [name, wanted]:
            yield f"deploy/compose/redis.conf: {name} is {said}, and should be {wanted}"


def environment(service, programs):
    """That of compose.yaml, but for the ports, which may be taken here. Returns also what each port has become."""
    found, ports = dict(service.get("environment", {})), {}
    for name, address in settings.listens(service, programs).items():
        ports[settings.port_of(address)] = free_port()
        found[name] = f"127.0.0.1:{ports[settings.port_of(address)]}"
    return found, ports


def mounts(service, secrets):
    """Each secret that a service gets, as compose mounts it."""
    return [(secrets / name, f"/run/secrets/{name}") for name in service.get("secrets", [])]


def pipeline(image, programs, secrets):
    """A like goes all the way, and both programs end as they are told."""
    migrate = compose.SERVICES["migrate"]
    how = migrate["command"], migrate["environment"], mounts(migrate, secrets)
    code, said = image.run(*how)
    if code:
        yield f"{compose.PATH}: migrate: it ends with {code}: {said or image.why(*how)}"
        return
    with contextlib.ExitStack() as stack:
        services, ports = {}, {}
        for name in ("ingest", "consumer"):
            service = compose.SERVICES[name]
            variables, ports[name] = environment(service, programs)
            services[name] = stack.enter_context(image.running(service["command"], variables, mounts(service, secrets)))
        failed = [problem for name, service in services.items() for problem in becomes_ready(image, name, service, ports[name])]
        yield from failed
        if not all(service.pid() for service in services.values()):
            return
        yield from like(services, ports["ingest"], secrets)
        for name, service in services.items():
            if (code := service.end()) != 0:
                yield f"the image: after SIGTERM the exit code of '{name}' is {code}: {service.says()}"


def becomes_ready(image, name, service, ports):
    command = compose.health_command(compose.SERVICES[name])
    port = ports[settings.port_of(command[-1])]
    if not service.is_ready(port):
        yield f"the image: '{name}' does not become ready: {service.says()}"
        return
    status = pathlib.Path(f"/proc/{service.pid()}/status").read_text()
    ids = re.search(r"^Uid:\t(\d+)", status, re.MULTILINE)[1] + ":" + re.search(r"^Gid:\t(\d+)", status, re.MULTILINE)[1]
    if ids != build.USER:
        yield f"the image: '{name}' runs as {ids}, and should as {build.USER}"
    health = [*command[:-1], f"127.0.0.1:{port}"]
    code, said = image.run(health)
    if code:
        yield f"the image: '{' '.join(health)}' ends with {code} though '{name}' is ready: {said or image.why(health)}"
    nobody = [*command[:-1], f"127.0.0.1:{free_port()}"]
    code, said = image.run(nobody)
    if code != 1:
        yield f"the image: '{' '.join(nobody)}' ends with {code} where nobody listens, and should with 1: {said or image.why(nobody)}"


def answer(url, body=None):
    """Status and body, or none."""
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as got:
            return got.status, got.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError:
        return None, b""


def like(services, ports, secrets):
    port = ports[8080]
    status, body = answer(f"http://127.0.0.1:{port}/likes", json.dumps({"user_id": 7, "post_id": 42}).encode())
    if status != 202:
        yield f"the image: POST /likes is answered with {status} {body.decode()}: {services['ingest'].says()}"
        return
    url = (secrets / "database-url").read_text().strip()
    try:
        servers.wait_for("the like is in the table", lambda: servers.query(url, "SELECT user_id, post_id FROM likes") == "7|42", STORED_S)
    except Failed as failed:
        yield f"the image: {failed}: {services['consumer'].says()}"


def trust(image, scratch, secrets):
    """Whom the programs trust is read from the image: not Redis with a certificate of our own, until its authority is there."""
    key, certificate = certify(scratch)
    # It has no port without TLS then.
    options = ("--tls-port", "{port}", "--port", "0", "--tls-cert-file", str(certificate), "--tls-key-file", str(key),
               "--tls-auth-clients", "no")
    with servers.redis(scratch, secrets, *options) as port:
        password = (secrets / "redis-password").read_text().split()[1]
        admin = free_port()
        variables = {"REDIS_URL": f"rediss://:{password}@localhost:{port}/0", "STARTUP_TIMEOUT": "5s",
                     "INGEST_LISTEN": "127.0.0.1:0", "INGEST_ADMIN_LISTEN": f"127.0.0.1:{admin}"}
        code, said = image.run(["ingest"], variables)
        if code != 1:
            yield f"the image: before a Redis that nobody has certified ingest ends with {code}: {said}"
        with image.storage.mounted(build.IMAGE) as files:
            trusted = scratch / "trusted.crt"
            trusted.write_text((files / BUNDLE[1:]).read_text() + (scratch / "authority.crt").read_text())
        with image.running(["ingest"], variables, [(trusted, BUNDLE)]) as service:
            if not service.is_ready(admin):
                yield f"the image: it does not trust who is in {BUNDLE}: {service.says()}"
                return
            if (code := service.end()) != 0:
                yield f"the image: with TLS, after SIGTERM the exit code is {code}: {service.says()}"


def certify(folder):
    """The key and the certificate of `localhost`, by an authority made for it."""
    def openssl(*arguments):
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=60)

    authority, key, certificate = folder / "authority.crt", folder / "server.key", folder / "server.crt"
    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    openssl(*new, "-subj", "/CN=authority", "-keyout", folder / "authority.key", "-out", authority)
    openssl(*new, "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE",
            "-CA", authority, "-CAkey", folder / "authority.key", "-keyout", key, "-out", certificate)
    return key, certificate
