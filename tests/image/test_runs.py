"""The programs run from the image with settings and secrets of compose.yaml and real servers."""

import contextlib
import os

import pytest
import requests

import servers
from compose import SERVICES, health_command, listens, port_of
from support import ROOT, free_port, new_certificate, output, run, wait_until
from test_image import BUNDLE, USER

STORED_S = 20
INGEST, CONSUMER = SERVICES["ingest"], SERVICES["consumer"]


@pytest.fixture(scope="module")
def secrets(storage):
    folder = storage.scratch / "secrets"
    output(ROOT / "deploy/compose/secrets.sh", folder)
    return folder


@pytest.fixture(scope="module")
def redis(storage, secrets):
    with servers.redis(storage.scratch, secrets) as port:
        yield port


@pytest.fixture(scope="module")
def password(secrets):
    return (secrets / "redis-password").read_text().split()[1]


@pytest.fixture(scope="module")
def container(storage, image):
    with storage.container(image) as name:
        yield servers.Container(storage, name)


def mounts(service, secrets):
    """Returns the secrets of a service and their mount points in compose."""
    return [(secrets / name, f"/run/secrets/{name}") for name in service.get("secrets", [])]


@pytest.fixture(scope="module")
def migrated(container, storage, secrets, redis):
    """URL of a Postgres that `migrate` has prepared. Secrets refer to the local servers."""
    with servers.postgres(storage.scratch, secrets) as postgres:
        here = {"redis-url": ("redis:6379", redis), "database-url": ("postgres:5432", postgres)}
        for name, (host, port) in here.items():
            text = (secrets / name).read_text()
            (secrets / name).write_text(text.replace(f"@{host}/", f"@localhost:{port}/"))
        migrate = SERVICES["migrate"]
        how = migrate["command"], migrate["environment"], mounts(migrate, secrets)
        ended = container.run(*how)
        assert ended.returncode == 0, ended
        yield (secrets / "database-url").read_text().strip()


@contextlib.contextmanager
def running(container, service, secrets, programs):
    """Runs a service on free ports. Yields it and its ports, by the ports in compose.yaml."""
    environment, ports = dict(service["environment"]), {}
    for name, address in listens(service, programs).items():
        ports[port_of(address)] = free_port()
        environment[name] = f"127.0.0.1:{ports[port_of(address)]}"
    how = service["command"], environment, mounts(service, secrets)
    with container.running(*how) as process:
        process.wait_ready(ports[port_of(health_command(service)[-1])])
        yield process, ports


@pytest.fixture(scope="module")
def ingest(container, migrated, secrets, programs):
    with running(container, INGEST, secrets, programs) as started:
        yield started


@pytest.fixture(scope="module")
def consumer(container, migrated, secrets, programs):
    with running(container, CONSUMER, secrets, programs) as started:
        yield started


both = pytest.mark.parametrize(("name", "service"), [("ingest", INGEST), ("consumer", CONSUMER)])


@both
def test_service_runs_as_the_user_of_the_image(name, service, request):
    process, _ = request.getfixturevalue(name)
    assert process.user() == USER


@both
def test_compose_health_check_distinguishes_ready_from_absent(name, service, request, container):
    _, ports = request.getfixturevalue(name)
    *words, address = health_command(service)
    ready = container.run([*words, f"127.0.0.1:{ports[port_of(address)]}"])
    assert ready.returncode == 0, ready
    absent = container.run([*words, f"127.0.0.1:{free_port()}"])
    assert absent.returncode == 1, absent


def test_like_goes_through_the_pipeline_into_the_table(ingest, consumer, migrated):
    url = f"http://127.0.0.1:{ingest[1][8080]}/likes"
    answer = requests.post(url, json={"user_id": 7, "post_id": 42}, timeout=10)
    assert answer.status_code == 202, answer.text
    select = "SELECT user_id, post_id FROM likes"
    wait_until("the like is stored", lambda: servers.query(migrated, select) == "7|42", STORED_S)


@both
def test_service_exits_with_0_after_sigterm(name, service, request):
    process, _ = request.getfixturevalue(name)
    assert process.terminate() == 0


def test_redis_health_check_distinguishes_ready_from_absent(redis, secrets):
    [line] = health_command(SERVICES["redis"])
    line = line.replace("/run/secrets", str(secrets))
    for port, is_healthy in ((redis, True), (1, False)):
        ended = run("sh", "-c", line.replace("redis-cli", f"redis-cli -p {port}"))
        assert (ended.returncode == 0) == is_healthy


@pytest.mark.parametrize(
    ("setting", "value"),
    [("maxmemory-policy", "noeviction"), ("appendonly", "yes"), ("maxmemory", str(512 << 20))],
)
def test_redis_is_durable_and_does_not_evict(setting, value, redis, password):
    environment = {**os.environ, "REDISCLI_AUTH": password}
    said = output("redis-cli", "-p", redis, "CONFIG", "GET", setting, env=environment)
    assert said.split() == [setting, value]


@pytest.fixture
def tls_redis(tmp_path, secrets):
    """Port of a Redis with a certificate of a private CA, and the CA certificate."""
    authority, key, certificate = tmp_path / "ca.crt", tmp_path / "key", tmp_path / "crt"
    new_certificate("authority", tmp_path / "ca.key", authority)
    signer = "-CA", authority, "-CAkey", tmp_path / "ca.key"
    extensions = "subjectAltName=DNS:localhost", "basicConstraints=critical,CA:FALSE"
    added = [word for extension in extensions for word in ("-addext", extension)]
    new_certificate("localhost", key, certificate, *signer, *added)
    options = "--tls-port", "{port}", "--port", "0", "--tls-auth-clients", "no"
    files = "--tls-cert-file", certificate, "--tls-key-file", key
    with servers.redis(tmp_path, secrets, *options, *files) as port:
        yield port, authority


def test_trusts_only_the_certificate_authorities_of_the_image(
    tls_redis, container, storage, image, password
):
    (port, authority), admin = tls_redis, free_port()
    url = {"REDIS_URL": f"rediss://:{password}@localhost:{port}/0"}
    ended = container.run(["likesctl", "status"], url)
    assert ended.returncode == 1, ended
    assert "trusted authority" in ended.stderr
    environment = {
        **url,
        "INGEST_LISTEN": "127.0.0.1:0",
        "INGEST_ADMIN_LISTEN": f"127.0.0.1:{admin}",
    }
    trusted = storage.scratch / "trusted.crt"
    with storage.mounted(image) as files:
        trusted.write_text((files / BUNDLE).read_text() + authority.read_text())
    with container.running(["ingest"], environment, [(trusted, f"/{BUNDLE}")]) as ingest:
        ingest.wait_ready(admin)
        assert ingest.terminate() == 0
