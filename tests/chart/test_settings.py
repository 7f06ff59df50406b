"""The chart and the programs have the same settings, and programs accept the rendered values."""

import functools
import re

import pytest

from conftest import SERVICES, START_S, UNREACHABLE, admin
from rendering import NAMES, pods, rendered, values_schema
from support import free_port, new_certificate, output, run
from test_pods import FILES

# The chart mounts only the files that all signals share.
FILE_OF_ONE_SIGNAL = re.compile(
    r"OTEL_EXPORTER_OTLP_(TRACES|METRICS)_(CERTIFICATE|CLIENT_CERTIFICATE|CLIENT_KEY)"
)


@pytest.mark.parametrize("program", SERVICES)
def test_every_setting_can_be_set_by_a_value(program, programs, settings_of):
    """Each setting is set by a value, allowed in `settings`, or a secret."""
    service = values_schema()["properties"][program]["properties"]["settings"]
    allowed, secrets = set(service["properties"]), programs.secrets(program)
    all_pods = [pod for name in NAMES for pod in pods(rendered(name)) if pod.program == program]
    by_values = {entry["name"] for pod in all_pods for entry in pod.env}
    known = settings_of(program)
    missing = known - allowed - by_values - secrets
    assert not [name for name in missing if not FILE_OF_ONE_SIGNAL.fullmatch(name)]
    assert not allowed & secrets
    assert allowed <= known


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A folder with each file that a pod can mount."""
    folder = tmp_path_factory.mktemp("files")
    key, certificate, public = folder / "key", folder / "certificate", folder / "public"
    new_certificate("localhost", key, certificate)
    output("openssl", "pkey", "-in", key, "-pubout", "-out", public)
    texts = {
        "redis/url": f"redis://{UNREACHABLE}",
        "redis/url-with-tls": f"rediss://{UNREACHABLE}",
        "database/url": f"postgres://likes@{UNREACHABLE}/likes",
        "api-keys/api-keys": f"shop {'0' * 64}\n",
        "jwt-key/jwt-key": public.read_text(),
    }
    for name in ("tls", "redis-tls", "otel-tls", "database-tls", "jwks-ca"):
        texts[f"{name}/ca.crt"] = texts[f"{name}/tls.crt"] = certificate.read_text()
        texts[f"{name}/tls.key"] = key.read_text()
    for path, text in texts.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text)
    return folder


@pytest.fixture(scope="session")
def ended(programs, files):
    """Runs a program with settings, without servers, until it exits. Caches results by settings."""

    def adapted(program, settings):
        environment = {
            name: re.sub(r"\$\([^)]*\)", "a-pod", value.replace(FILES, f"{files}/"))
            for name, value in settings
        }
        environment |= {**admin(program, free_port()), "STARTUP_TIMEOUT": "50ms"}
        if "REDIS_TLS_CA" in environment:
            environment["REDIS_URL_FILE"] = f"{files}/redis/url-with-tls"
        if "INGEST_JWT_JWKS" in environment:
            environment["INGEST_JWT_JWKS"] = f"https://{UNREACHABLE}/jwks.json"
        if endpoint := environment.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
            scheme = endpoint.partition("://")[0]
            environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"{scheme}://{UNREACHABLE}"
        # `ordinal` needs a host name that ends in a number.
        partitions = environment.get("CONSUMER_PARTITIONS", "")
        if partitions.startswith("ordinal/"):
            environment["CONSUMER_PARTITIONS"] = partitions.replace("ordinal", "0")
        return environment

    @functools.cache
    def run_once(command, settings):
        program, *arguments = command
        environment = adapted(program, settings)
        return run(programs.folder / program, *arguments, env=environment, timeout=START_S)

    return run_once


def test_program_accepts_its_settings(ending_pod, ended):
    """Invalid settings exit with 2. Valid ones exit with 1, because the servers are down."""
    found = ended(tuple(ending_pod.command), frozenset(ending_pod.settings.items()))
    assert found.returncode == 1, found.stdout + found.stderr
